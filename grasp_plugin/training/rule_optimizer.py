"""Our learning rules behind the face of a `torch.optim.Optimizer`.

    observe(name, factors):   delta, state' = plan.update(factors, state, W)
    step():                   W <- W + lr delta,  b <- b + lr delta_b,  state <- state'
    with a base optimizer:    W.grad = -delta,  b.grad = -delta_b,  base.step()

W is [N_o, N_i], b [N_o]; the batch is the first axis of every factor. `lr` of the parameter group
is a factor on the plan's own learning rate, so that `torch.optim.lr_scheduler` works; with a base
the groups are the base's, and `lr` is the base's alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.deltas import Delta
from grasp_plugin.learning.rule import Factors, Plan, Rule, Transform
from grasp_plugin.learning.states import State, check_finite, leaves

log = logging.getLogger(__name__)


class RuleOptimizer(Optimizer):
    """Rules and plans that train a module's parameters, layer by layer, from factors.

    In each step observe the layers that learn in it, in any order, then call `step`; or call
    `step({name: factors})`. All layers are written or, where one update is not finite, none.
    Parameters without a plan are not touched (with a base: by the base, from their own gradient).

    Args:
        params: `module.named_parameters()`, parameters (their names are "0", "1", ...), or groups.
        plans: by the parameter's name: a `Rule` or `Plan`.
        biases: the bias that a weight's plan also trains, by the weight's name; where not named,
            the "bias" beside the "weight". Without one, the bias's delta has no use.
        batch: size of the first sequence's batch; `reset_traces` sets the next one's.
        lr: a factor on every delta; groups may have their own. Not with `base`.
        base: an optimizer of the same parameters, such as DECOLLE's `torch.optim.Adamax`, that
            gets -delta as the gradient. A delta of zero (`BurnIn`) is a gradient of zero to it.

    Raises:
        Invalid: a name that no parameter has; a bias of the wrong shape; a base without the
            parameters; `lr` beside `base`.
        Refused: a plan for a parameter that is not a matrix.

    Example:
        >>> from grasp_plugin.learning import Factors, sltt
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = RuleOptimizer(layer.named_parameters(), {"weight": sltt(0.1)})
        >>> one = torch.ones(1, 1)
        >>> optimizer.step({"weight": Factors(torch.ones(1, 2), signal=one, membrane=0 * one)})
    """

    def __init__(
        self,
        params: Iterable[Any],
        plans: Mapping[str, Rule],
        *,
        biases: Mapping[str, str] | None = None,
        batch: int = 1,
        lr: float = 1.0,
        base: Optimizer | None = None,
    ) -> None:
        self.base: Optimizer | None = None
        super().__init__(params, {"lr": lr})
        self.names = _names(self.param_groups)
        self.plans = dict(plans)
        self.biases = {**_beside(self.plans, self.names), **(biases or {})}
        self._named = tuple(biases or ())  # biases that the caller asked for
        self.steps = 0
        self._pending: dict[str, tuple[Delta, State]] = {}
        self._check(lr, base)
        if base is not None:
            self.base, self.param_groups = base, base.param_groups
        self.rules: dict[str, State] = {}
        self.batch = batch
        self.reset_traces(batch)
        log.info("no plan for %s", [n for n in self.names if n not in self._owned()])

    def reset_traces(
        self, batch: int | None = None, *, keep: tuple[type[Transform], ...] = ()
    ) -> None:
        """The state before a new sequence: traces at zero, transforms as new.

        Args:
            batch: of the next sequence; None: as before.
            keep: transforms that go on where they are, such as `Accumulate` over sequences.

        Raises:
            Invalid: batch < 1; a layer is observed and not yet stepped.
        """
        self._settled("reset_traces")
        batch = self.batch if batch is None else batch
        if batch < 1:
            raise Invalid("reset_traces", f"expected batch >= 1, got {batch}", "Pass its size")
        for name, plan in self.plans.items():
            fresh = plan.init(self.names[name].detach(), batch=batch)
            self.rules[name] = _kept(plan, fresh, self.rules.get(name), keep)
        self.batch = batch

    @torch.no_grad()
    def observe(self, name: str, factors: Factors, **extras: Any) -> None:
        """Work out one layer's update of this step; `step` makes it.

        Args:
            name: of the weight.
            factors: tensors of the weight's dtype and device, (batch, N_i) and (batch, N_o).
            extras: what the plan's transforms ask for.

        Raises:
            Invalid: no plan of that name; observed already; a factor of another shape or dtype, or
                one that the rule needs and does not get.
        """
        if name not in self.plans:
            raise Invalid(name, f"expected one of {[*self.plans]}, got {name!r}", "Pass its plan")
        if name in self._pending:
            raise Invalid(name, "expected one observation a step, got two", "Call step() between")
        weight = self.names[name].detach()
        seen = _checked(name, factors, weight, self.batch)
        self._pending[name] = self.plans[name].update(seen, self.rules[name], weight, **extras)

    def step(self, closure: Any = None) -> Any:
        """Make the updates of the layers observed, and let their states go on.

        Args:
            closure: {name: factors} to observe first, or a function that observes and returns a
                loss, or None.

        Returns:
            What the function returns, else None.

        Raises:
            Invalid: a trace or an update is NaN or infinite (names layer, step and entry). Weights
                and states are those of the step before, and the observations are dropped.
        """
        result = None
        try:
            if isinstance(closure, Mapping):
                for name, factors in closure.items():
                    self.observe(name, factors)
            elif closure is not None:
                with torch.enable_grad():
                    result = closure()
            with torch.no_grad():
                changes = [self._change(name, *new) for name, new in self._pending.items()]
        except Exception:
            self._pending = {}
            raise
        with torch.no_grad():
            self._write({id(p): (p, value) for change in changes for p, value in change})
        self.rules |= {name: state for name, (_, state) in self._pending.items()}
        self._pending = {}
        self.steps += 1
        return result

    def _change(self, name: str, delta: Delta, state: State) -> list[tuple[Tensor, Tensor]]:
        """(parameter, what to add) of one layer, all finite."""
        change = {"weight": delta["weight"].dense()}
        pairs = [(self.names[name], change["weight"])]
        if name in self.biases and "bias" in delta:
            change["bias"] = delta["bias"]
            pairs.append((self.names[self.biases[name]], change["bias"]))
        elif name in self._named:
            raise Invalid(name, "expected a delta for its bias, got none", "Leave it out of biases")
        check_finite({**state, "delta": change}, node=name, step=self.steps)
        return pairs

    def _write(self, changes: dict[int, tuple[Tensor, Tensor]]) -> None:
        if self.base is None:
            for group in self.param_groups:
                for p in group["params"]:
                    if id(p) in changes:
                        p.add_(changes[id(p)][1], alpha=float(group["lr"]))
            return
        ours = [self.names[name] for name in self._owned()]
        for p in ours:  # a gradient of autograd is not the rule's, and an old one is spent
            p.grad = None
        for p, value in changes.values():
            p.grad = -value
        self.base.step()
        for p in ours:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """torch's, plus "rules" (nested dicts of tensors), "steps", "batch" and "base".

        Raises:
            Invalid: a layer is observed and not yet stepped.
        """
        self._settled("state_dict")
        out = super().state_dict()
        base = None if self.base is None else self.base.state_dict()
        return {
            **out,
            "rules": {**self.rules},
            "steps": self.steps,
            "batch": self.batch,
            "base": base,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; the weights are the module's to load.

        Raises:
            Invalid: the state is of other layers, plans or shapes, or has (no) base.
        """
        expected = ["param_groups", "rules", "steps", "batch", "base"]
        missing = [key for key in expected if key not in state_dict]
        if missing:
            raise Invalid("load_state_dict", f"expected {expected}, {missing} missing", _OURS)
        if (state_dict["base"] is None) != (self.base is None):
            given = ["with", "without"][state_dict["base"] is None]
            raise Invalid("load_state_dict", f"got the state of an optimizer {given} base", _OURS)
        rules, batch = state_dict["rules"], state_dict["batch"]
        if rules.keys() != self.plans.keys():
            reason = f"expected plans for {[*self.plans]}, got {[*rules]}"
            raise Invalid("load_state_dict", reason, _OURS)
        for name, plan in self.plans.items():
            _same_kind(name, plan.init(self.names[name].detach(), batch=batch), rules[name])
        if self.base is None:
            super().load_state_dict(state_dict)
        else:
            self.base.load_state_dict(state_dict["base"])
            self.param_groups = self.base.param_groups
        self.rules = {n: _copied(state, self.names[n].device) for n, state in rules.items()}
        self.steps, self.batch, self._pending = int(state_dict["steps"]), int(batch), {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """More parameters without a plan (for the base, if there is one)."""
        if self.base is None:
            super().add_param_group(param_group)
        else:
            self.base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        mine = ("base", "names", "plans", "biases", "_named", "steps", "_pending", "rules", "batch")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in mine}}

    def _owned(self) -> list[str]:
        """Names of the parameters that plans write."""
        return [*self.plans, *self.biases.values()]

    def _settled(self, call: str) -> None:
        if self._pending:
            reason = f"expected no update under way, got {[*self._pending]} observed"
            raise Invalid(call, reason, "Call step() first")

    def _check(self, lr: float, base: Optimizer | None) -> None:
        known = [*self.names]
        for name in [*self.plans, *self.biases, *self.biases.values()]:
            if name not in known:
                raise Invalid(name, f"expected one of {known}, got {name!r}", "Mend plans, biases")
        for name in self.plans:
            shape = tuple(self.names[name].shape)
            if len(shape) != 2:
                reason = f"expected a matrix [N_o, N_i] to learn by a rule, got {shape}"
                raise Refused(name, reason, "Leave it out of plans")
        for name, bias in self.biases.items():
            want, got = (self.names[name].shape[0],), tuple(self.names[bias].shape)
            if name not in self.plans or got != want:
                reason = f"expected a bias {want} of a weight in plans, got {bias!r} {got}"
                raise Invalid(name, reason, "Mend biases")
        if base is not None:
            held = {id(p) for group in base.param_groups for p in group["params"]}
            lacking = [name for name in self._owned() if id(self.names[name]) not in held]
            if lacking or lr != 1.0:
                reason = f"expected a base that holds every parameter, {lacking} missing"
                reason = reason if lacking else f"expected lr in the base alone, got lr={lr} too"
                raise Invalid("base", reason, "Build it on the same parameters, with its own lr")


_OURS = "Load the state of a RuleOptimizer with the same plans and base"


def _names(groups: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Parameters by name, or by place where they have none."""
    flat = [p for group in groups for p in group["params"]]
    given = [name for group in groups for name in group.get("param_names", ())]
    return dict(zip(given or map(str, range(len(flat))), flat, strict=True))


def _beside(plans: Mapping[str, Rule], names: Mapping[str, Tensor]) -> dict[str, str]:
    """The bias beside each weight, by the weight's name."""
    pairs = {n: f"{n.removesuffix('weight')}bias" for n in plans if n.endswith("weight")}
    return {name: bias for name, bias in pairs.items() if bias in names}


def _checked(name: str, factors: Factors, weight: Tensor, batch: int) -> Factors:
    """The factors without graph, of the right shapes, dtype and device."""
    seen = {}
    for entry in fields(factors):
        value = getattr(factors, entry.name)
        if value is None or entry.name == "curvature":
            continue
        shape = (batch, weight.shape[1 if entry.name == "pre" else 0])
        want = (shape, weight.dtype, weight.device)
        got = (tuple(value.shape), value.dtype, getattr(value, "device", None))
        if got != want:
            raise Invalid(
                name, f"expected Factors.{entry.name} of shape, dtype, device {want}, got {got}",
                "Convert it, or call reset_traces(batch) for another batch size",
            )  # fmt: skip
        seen[entry.name] = value.detach()
    return replace(factors, **seen)


def _kept(plan: Rule, fresh: State, old: State | None, keep: tuple[type[Transform], ...]) -> State:
    """A fresh state with the old one's transforms of the kinds in `keep`."""
    if old is None or not keep or not isinstance(plan, Plan):
        return fresh
    after = {
        str(i): (old if isinstance(t, keep) else fresh)["transforms"][str(i)]
        for i, t in enumerate(plan.transforms)
    }
    return {"rule": _kept(plan.rule, fresh["rule"], old["rule"], keep), "transforms": after}


def _same_kind(name: str, fresh: State, given: State) -> None:
    """Refuse a state with other arrays than the plan's; only transforms may have grown."""
    want = {key: (tuple(v.shape), v.dtype) for key, v in leaves(fresh)}
    got = {key: (tuple(v.shape), v.dtype) for key, v in leaves(given)}
    grown = {key for key in got.keys() - want.keys() if "transforms." in key}
    for key in sorted(want.keys() | got.keys() - grown):
        if want.get(key) != got.get(key):
            reason = f"expected a state with {key!r} {want.get(key)}, got {got.get(key)}"
            raise Invalid(name, reason, _OURS)


def _copied(state: State, device: torch.device) -> State:
    return {
        key: _copied(v, device) if isinstance(v, dict)
        else v.detach().clone().to(device) if isinstance(v, Tensor) else v.copy()
        for key, v in state.items()
    }  # fmt: skip
