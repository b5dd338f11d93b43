"""`PlanStep`: adaptation by any `Learning` (DECOLLE, ETLP, SOEL, ...) as an inner step of MAML.

    W <- W + a D[t]      at every step t of every sample, D[t] the plan's delta, a the step size

With order 2 the deltas keep their graph: the rule itself is differentiated, through its traces, its
signals and the weights they depend on (design.md: MAML differentiates through `Plan.update`). Build
the rules with learning_rate 1 where a is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from grasp_plugin.backends.learning_torch import OnlineTorch
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.losses import one_hot
from grasp_plugin.learning.meta.inner import Inner, Params, Run
from grasp_plugin.learning.rule import Delta, Plan, State
from grasp_plugin.learning.spec import Learning
from grasp_plugin.network.network import Network
from grasp_plugin.neurons.lif import heaviside


class PlanStep(Inner):
    """One pass of the support set through an online rule.

    Args:
        network: the model as a float `Network` with one input, e.g. `Stack.network()`; its own
            weights are not used.
        learning: what learns in it.
        parameter_of: by projection or bias, the model's parameter that holds it, of its shape: all
            of the network's, e.g. `Stack.parameter_of()`. Those with a plan must adapt.
        spikes: H with a surrogate, for order 2; None: H itself.
        mask: (time,), 1 at steps that have a target; None: all.
        one_by_one: samples one after another, as on Lava; else as a batch.
        dtype: of the model.

    Raises:
        Invalid: a projection or bias without a parameter; at a step, one with a plan that does not
            adapt, or labels out of range.
        Refused: order 2 through `GRASP`, which picks in NumPy; as `OnlineLearner`.
    """

    def __init__(
        self,
        network: Network,
        learning: Learning,
        parameter_of: Mapping[str, str],
        *,
        spikes: Callable[[Tensor], Tensor] | None = None,
        mask: Any = None,
        one_by_one: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.learning, self.mask, self.one_by_one = learning, mask, one_by_one
        self._online = OnlineTorch(network, learning, dtype=dtype)
        self._online.module.spike = heaviside if spikes is None else spikes
        self._stepper = _Stepper(self._online.module)
        names = [f"weight_{i}" for i in range(len(network.projections))]
        names += [f"bias_{i}" for i in range(len(network.biases))]
        owners = [k.name for k in network.projections] + [b.name for b in network.biases]
        for owner in owners:
            if owner not in parameter_of:
                raise Invalid(
                    owner, f"expected a parameter for it in parameter_of, got those of "
                    f"{', '.join(parameter_of)}", "Name the one that holds it",
                )  # fmt: skip
        self._inside = {name: parameter_of[o] for name, o in zip(names, owners, strict=True)}
        self._owners = {owner: parameter_of[owner] for owner in owners}
        self._bent = [n for n, p in learning.plans.items() if _picks(p)]

    def step(
        self, run: Run, phi: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, order: int
    ) -> Params:
        for name in self.learning.plans:
            if self._owners[name] not in sizes:
                raise Invalid(
                    name, f"expected its parameter {self._owners[name]!r} to adapt, got "
                    f"{', '.join(sizes)}", "Add it to adapt",
                )  # fmt: skip
        if order == 2:
            if self._bent:
                raise Refused(
                    self._bent[0], "expected a plan that can be differentiated for order 2, got "
                    "GRASP, whose choice is made in NumPy", "Use order=1, or GRASP afterwards",
                )  # fmt: skip
            return phi | self._pass(phi, sizes, x, y)[0]
        with torch.no_grad():
            still = {name: value.detach() for name, value in phi.items()}
            fixed = {name: a.detach() for name, a in sizes.items()}
            total = self._pass(still, fixed, x, y)[1]
        return phi | {name: phi[name] + sizes[name] * sum_ for name, sum_ in total.items()}

    def _pass(
        self, phi: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[Params, Params]:
        """(what learned after all samples, the sum of its deltas without a)."""
        now, total = dict(phi), dict[str, Tensor]()
        parts = [slice(i, i + 1) for i in range(len(y))] if self.one_by_one else [slice(None)]
        for part in parts:
            now = self._sequence(now, sizes, x[:, part].flatten(2), y[part], total)
        return {name: now[name] for name in total}, total

    def _sequence(
        self, now: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, total: Params
    ) -> Params:
        online, learner = self._online, self._online.learner
        (source,) = online.network.inputs
        target = one_hot(y, self.learning.classes, x)
        weights = {owner: now[name] for owner, name in self._owners.items()}
        start = learner.init({n: weights[n].detach() for n in self.learning.plans}, len(y))
        state, forward = start, online.module.initial_state(len(y))
        masks = np.ones(len(x)) if self.mask is None else np.asarray(self.mask, np.float64)
        if masks.shape != (len(x),):
            raise Invalid("mask", f"expected ({len(x)},), got {masks.shape}", "One for each step")
        for t, spikes in enumerate(x):
            inside = {f"net.{own}": now[name] for own, name in self._inside.items()}
            before: State = forward
            output, forward, margin = functional_call(
                self._stepper, inside, (t, {source: spikes}, before)
            )
            seen = online.seen(t, output, margin, before)
            mask = torch.full_like(target[:, :1], float(masks[t]))
            deltas, state = learner.step(seen, target, mask, state, weights)
            for owner, delta in deltas.items():
                now = self._added(now, owner, delta, sizes, total)
                weights[owner] = now[self._owners[owner]]
        for owner, held in learner.pending(state).items():
            for delta in held:
                now = self._added(now, owner, delta, sizes, total)
        return now

    def _added(
        self, now: Params, owner: str, delta: Delta, sizes: Mapping[str, Tensor], total: Params
    ) -> Params:
        """The parameters with a delta; it is counted in `total`."""
        name = self._owners[owner]
        part = delta["weight"].dense().reshape(now[name].shape)
        total[name] = part if name not in total else total[name] + part
        return now | {name: now[name] + sizes[name] * part}


class _Stepper(nn.Module):
    """`TorchNetwork.step` as a forward, so that `functional_call` reaches it."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, *given: Any) -> Any:
        return self.net.step(*given)


def _picks(plan: Any) -> bool:
    return isinstance(plan, Plan) and any(isinstance(t, GRASP) for t in plan.transforms)
