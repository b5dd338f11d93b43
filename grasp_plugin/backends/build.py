"""`build(network, backend=...)`: one door to every back end, to run and to learn."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, overload

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.rule import Rule
from grasp_plugin.learning.spec import Learning, Signal
from grasp_plugin.network.network import Network, require_network
from grasp_plugin.runtime.learning import LearningSession
from grasp_plugin.runtime.session import Session

BACKENDS = ("torch", "lava", "fused")
INTEGER_OPTIONS = ("error_max", "rate_max", "seed")  # of `learning.fixed_plan.fixed_plans`


@overload
def build(
    network: Network,
    backend: str = "lava",
    *,
    plans: Learning | Mapping[str, Rule],
    signals: Mapping[str, Signal] | None = None,
    classes: int | None = None,
    readout: str | None = None,
    **options: Any,
) -> LearningSession: ...


@overload
def build(
    network: Network, backend: str = "lava", *, plans: None = None, **options: Any
) -> Session: ...


def build(
    network: Network,
    backend: str = "lava",
    *,
    plans: Learning | Mapping[str, Rule] | None = None,
    signals: Mapping[str, Signal] | None = None,
    classes: int | None = None,
    readout: str | None = None,
    **options: Any,
) -> Session | LearningSession:
    """Make a network ready to run, or to learn.

    Args:
        network: from `discretise` (float) or `quantise` (Loihi integers; not torch).
        backend: "torch" (float; options device, dtype), "lava" (float and Loihi integers) or
            "fused" (the same two, compiled, without Lava).
        plans: a `Learning`, from `decolle_for`, `etlp_for`, `ottt_for` or `sltt_for`; or a `Rule`
            (a `Plan` is one) by projection or bias, with the three arguments below.
        signals: by population, as in `Learning`.
        classes: number of classes.
        readout: the population that the class is read from; None: the network's only output.
        options: passed to the back end's session; on "lava" with plans, postponed=True: the fastest
            updates in float, see `LavaLearning`.

    Returns:
        A `Session`, or with plans a `LearningSession`; use it as a context manager.

    Raises:
        Refused: an unknown back end, one that is not installed, or a network or plan that it cannot
            express.
        Invalid: no Network; an unknown option; a plan for something that is no projection or bias,
            without a signal, or made from another network.
    """
    require_network(network)
    if backend not in BACKENDS:
        raise Refused(
            backend, f"expected a back end of {', '.join(BACKENDS)}, got {backend!r}", "Pick one"
        )
    beside = {"signals": signals, "classes": classes, "readout": readout}
    given = [name for name, value in beside.items() if value is not None]
    if given and (plans is None or isinstance(plans, Learning)):
        raise Invalid(
            ", ".join(given), "expected these only beside plans by projection, got them with "
            f"{'no plans' if plans is None else 'a Learning'}", "Leave them out",
        )  # fmt: skip
    if plans is None:
        kind: Any = _session(backend)
        _check_options(network, backend, kind, options)
        return kind(network, **options)  # type: ignore[no-any-return]
    if not isinstance(plans, Learning):
        plans = _learning(network, plans, signals, classes, readout)
    kind = _learning_session(backend)
    _check_options(network, backend, kind, options)
    return kind(network, plans, **options)  # type: ignore[no-any-return]


def _session(backend: str) -> type[Session]:
    if backend == "torch":
        from grasp_plugin.backends.torch import TorchSession

        return TorchSession
    if backend == "lava":
        from grasp_plugin.backends.lava import LavaSession

        return LavaSession
    from grasp_plugin.backends.fused import FusedSession

    return FusedSession


def _learning_session(backend: str) -> type[LearningSession]:
    if backend == "torch":
        from grasp_plugin.backends.learning_torch import TorchLearning

        return TorchLearning
    if backend == "lava":
        from grasp_plugin.backends.learning_lava import LavaLearning

        return LavaLearning
    from grasp_plugin.backends.learning_fused import FusedLearning

    return FusedLearning


def _check_options(
    network: Network, backend: str, kind: type[Any], options: Mapping[str, Any]
) -> None:
    """Refuse options that the session does not have.

    Raises:
        Invalid: names them, and those that it has.
    """
    parameters = inspect.signature(kind).parameters
    own = [name for name in parameters if name not in ("network", "learning", "options")]
    if "options" in parameters and network.precision == "loihi":
        own += INTEGER_OPTIONS
    unknown = [name for name in options if name not in own]
    if unknown:
        learns = " with plans" if issubclass(kind, LearningSession) else ""
        known = f"options of {backend!r}{learns} ({network.precision}), one of {', '.join(own)}"
        raise Invalid(
            ", ".join(unknown), f"expected {known if own else f'no options of {backend!r}{learns}'}"
            f", got {', '.join(unknown)}", "Leave it out, or use another back end",
        )  # fmt: skip


def _learning(
    network: Network,
    plans: Mapping[str, Rule],
    signals: Mapping[str, Signal] | None,
    classes: int | None,
    readout: str | None,
) -> Learning:
    outputs = list(dict.fromkeys(network.outputs.values()))
    if not isinstance(plans, Mapping):
        raise Invalid(
            "plans", f"expected a Learning, or rules by projection or bias, got "
            f"{type(plans).__name__}", "Pass e.g. plans=ottt_for(network, classes, 0.1)",
        )  # fmt: skip
    if signals is None or classes is None or (readout is None and len(outputs) != 1):
        raise Invalid(
            "plans", "expected signals, classes and a readout population beside them, got "
            f"signals={signals}, classes={classes}, readout={readout}",
            "Pass them, or a Learning from decolle_for(network, ...)",
        )  # fmt: skip
    return Learning(dict(plans), dict(signals), classes, readout or outputs[0])
