"""`build(network, backend=...)`: one door to every back end, to run and to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.rule import Rule
from grasp_plugin.learning.spec import Learning, Signal
from grasp_plugin.network.network import Network
from grasp_plugin.runtime.learning import LearningSession
from grasp_plugin.runtime.session import Session

BACKENDS = ("torch", "lava", "fused")


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
        Invalid: a plan for something that is no projection or bias, or without a signal.
    """
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
        return _session(network, backend, options)
    if not isinstance(plans, Learning):
        plans = _learning(network, plans, signals, classes, readout)
    return _learning_session(network, backend, plans, options)


def _session(network: Network, backend: str, options: dict[str, Any]) -> Session:
    if backend == "torch":
        from grasp_plugin.backends.torch import TorchSession

        return TorchSession(network, **options)
    if backend == "lava":
        from grasp_plugin.backends.lava import LavaSession

        return LavaSession(network, **options)
    from grasp_plugin.backends.fused import FusedSession

    return FusedSession(network, **options)


def _learning_session(
    network: Network, backend: str, learning: Learning, options: dict[str, Any]
) -> LearningSession:
    if backend == "torch":
        from grasp_plugin.backends.learning_torch import TorchLearning

        return TorchLearning(network, learning, **options)
    if backend == "lava":
        from grasp_plugin.backends.learning_lava import LavaLearning

        return LavaLearning(network, learning, **options)
    from grasp_plugin.backends.learning_fused import FusedLearning

    return FusedLearning(network, learning, **options)


def _learning(
    network: Network,
    plans: Mapping[str, Rule],
    signals: Mapping[str, Signal] | None,
    classes: int | None,
    readout: str | None,
) -> Learning:
    outputs = list(dict.fromkeys(network.outputs.values()))
    if signals is None or classes is None or (readout is None and len(outputs) != 1):
        raise Invalid(
            "plans", "expected signals, classes and a readout population beside them, got "
            f"signals={signals}, classes={classes}, readout={readout}",
            "Pass them, or a Learning from decolle_for(network, ...)",
        )  # fmt: skip
    return Learning(dict(plans), dict(signals), classes, readout or outputs[0])
