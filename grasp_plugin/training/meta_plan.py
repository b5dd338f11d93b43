"""`PlanStep`: adaptation by any `Learning` (DECOLLE, ETLP, SOEL, ...) as an inner step of MAML.

    W <- W + a D[t]      at every step t of every sample, D[t] the plan's delta, a the step size

With order 2 the deltas keep their graph: the rule itself is differentiated, through its traces, its
signals and the weights they depend on (design.md: MAML differentiates through `Plan.update`). Build
the rules with learning_rate 1 where a is learned.

A step is a `LearningSession` of its own on the torch back end: it begins with the plan's state
before step 0, and from one sample or batch to the next what lasts in a session goes on (random
readouts, the counters of random numbers, optimisers' moments, budgets), traces do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from grasp_plugin.backends.learning_torch import OnlineTorch
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Delta
from grasp_plugin.learning.grasp import GRASP
from grasp_plugin.learning.losses import one_hot
from grasp_plugin.learning.meta.checks import finite
from grasp_plugin.learning.meta.inner import Inner, Params, Run
from grasp_plugin.learning.optimise import Lazy
from grasp_plugin.learning.rule import Plan
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import State
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
        mask: (time,), 0 to 1, 0 at steps without a target; None: all 1.
        one_by_one: samples one after another, as on Lava; else as a batch.
        dtype: of the model.

    Raises:
        Invalid: a projection or bias without a parameter; a mask outside [0, 1]; not one input. At
            a step: a plan whose parameter does not adapt, a parameter that is unknown or not of its
            shape or dtype, inputs of another shape or dtype or not finite, labels out of range, an
            update that is not finite.
        Refused: order 2 through `GRASP` or an optimiser with moments, which are in NumPy; as
            `OnlineLearner`.
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
        if len(network.inputs) != 1:
            raise Invalid(
                "network", f"expected one input, got {', '.join(network.inputs) or 'none'}",
                "Join them into one",
            )  # fmt: skip
        self.learning, self.one_by_one = learning, one_by_one
        self.mask = None if mask is None else np.asarray(mask, np.float64)
        if self.mask is not None and not np.all((self.mask >= 0) & (self.mask <= 1)):
            raise Invalid("mask", "expected 0 to 1 at every step, got others", "Pass 0 or 1")
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
        self._opaque = _opaque(learning)

    def step(
        self, run: Run, phi: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, order: int
    ) -> Params:
        self._check(phi, sizes, x)
        if order == 2:
            if self._opaque:
                name, kind = self._opaque
                raise Refused(
                    name, f"expected a plan that can be differentiated for order 2, got {kind}",
                    "Use order=1, or a plan without it",
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
        learner = self._online.learner
        state = learner.init(self._plastic(now), 1)
        parts = [slice(i, i + 1) for i in range(len(y))] if self.one_by_one else [slice(None)]
        for part in parts:
            state = learner.rest(state, self._plastic(now), len(y[part]))
            given = x[:, part].flatten(2), y[part]
            now, state = self._sequence(now, sizes, *given, total, state)
            state = learner.ended(state)
        return {name: now[name] for name in total}, total

    def _plastic(self, now: Params) -> Params:
        """The weights that learn, by plan, without their graph."""
        return {name: now[self._owners[name]].detach() for name in self.learning.plans}

    def _sequence(
        self, now: Params, sizes: Mapping[str, Tensor], x: Tensor, y: Tensor, total: Params,
        state: State,
    ) -> tuple[Params, State]:  # fmt: skip
        """(the parameters, the learner's state) after one sequence from rest."""
        online, learner = self._online, self._online.learner
        (source,) = online.network.inputs
        target = one_hot(y, self.learning.classes, x)
        weights = {owner: now[name] for owner, name in self._owners.items()}
        forward = online.module.initial_state(len(y))
        masks = np.ones(len(x)) if self.mask is None else self.mask
        for t, spikes in enumerate(x):
            inside = {f"net.{own}": now[name] for own, name in self._inside.items()}
            before: State = forward
            output, forward, margin = functional_call(
                self._stepper, inside, (t, {source: spikes}, before)
            )
            seen = online.seen(t, output, margin, before)
            mask = torch.full_like(target[:, :1], float(masks[t]))
            deltas, state = learner.step(seen, target, mask, state, weights)
            learner.check({owner: _still(delta) for owner, delta in deltas.items()}, state, t)
            for owner, delta in deltas.items():
                now = self._added(now, owner, delta, sizes, total)
                weights[owner] = now[self._owners[owner]]
        for owner, held in learner.pending(state).items():
            for delta in held:
                now = self._added(now, owner, delta, sizes, total)
        return now, state

    def _added(
        self, now: Params, owner: str, delta: Delta, sizes: Mapping[str, Tensor], total: Params
    ) -> Params:
        """The parameters with a delta; it is counted in `total`."""
        name = self._owners[owner]
        part = delta["weight"].dense().reshape(now[name].shape)
        total[name] = part if name not in total else total[name] + part
        return now | {name: now[name] + sizes[name] * part}

    def _check(self, phi: Params, sizes: Mapping[str, Tensor], x: Tensor) -> None:
        """Refuse a step whose parts do not fit the network."""
        for owner, name in self._owners.items():
            own = self._online.parameters[owner]
            wanted = f"{tuple(own.shape)} in {own.dtype}"
            got = "none"
            if name in phi:
                got = f"{tuple(phi[name].shape)} in {phi[name].dtype}"
            if got != wanted:
                raise Invalid(
                    owner, f"expected its parameter {name!r} as {wanted}, got {got}",
                    f"Name the one of {', '.join(phi)} that holds it in parameter_of, or pass "
                    "dtype= as the model's",
                )  # fmt: skip
        for name in self.learning.plans:
            if self._owners[name] not in sizes:
                raise Invalid(
                    name, f"expected its parameter {self._owners[name]!r} to adapt, got "
                    f"{', '.join(sizes)}", "Add it to adapt",
                )  # fmt: skip
        self._check_inputs(x)

    def _check_inputs(self, x: Tensor) -> None:
        network, kind = self._online.network, self._online.module.dtype
        ((source, shape),) = network.inputs.items()
        width = math.prod(shape)
        if x.dim() < 3 or not x.numel() or math.prod(x.shape[2:]) != width or x.dtype != kind:
            raise Invalid(
                source, f"expected (time, sample, {width} neurons) in {kind}, got "
                f"{tuple(x.shape)} in {x.dtype}", "Check the axes, and .to(dtype)",
            )  # fmt: skip
        finite(source, x)
        if self.mask is not None and self.mask.shape != (len(x),):
            raise Invalid(
                "mask", f"expected ({len(x)},), got {self.mask.shape}", "One for each step"
            )


class _Stepper(nn.Module):
    """`TorchNetwork.step` as a forward, so that `functional_call` reaches it."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, *given: Any) -> Any:
        return self.net.step(*given)


def _opaque(learning: Learning) -> tuple[str, str] | None:
    """(plan, what) of the first transform that autograd does not see through."""
    for name, rule in learning.plans.items():
        plan = rule
        while isinstance(plan, Plan):
            for transform in plan.transforms:
                if isinstance(transform, GRASP):
                    return name, "GRASP, whose choice is made in NumPy"
                if isinstance(transform, Lazy):
                    return name, f"{type(transform).__name__}, whose moments are NumPy arrays"
            plan = plan.rule
    return None


def _still(delta: Delta) -> Delta:
    """A delta without its graph."""
    return {key: replace(part, **_detached(part)) for key, part in delta.items()}


def _detached(part: Any) -> dict[str, Tensor]:
    return {name: v.detach() for name, v in vars(part).items() if isinstance(v, Tensor)}
