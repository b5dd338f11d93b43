"""Train an `HDStack` by learning rules, so that signals and update schedulers apply to it."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.hdlif.layer import HDLayer, HDStack
from grasp_plugin.hdlif.neuron import State
from grasp_plugin.hdlif.quantisers import QuantLinear
from grasp_plugin.learning.hdlif import hdlif_rule
from grasp_plugin.learning.rule import Factors, Plan, Rule, ThreeFactor, Transform, with_lasting
from grasp_plugin.learning.signals import RandomReadout
from grasp_plugin.learning.traces import Instant

Loss = Callable[[Tensor, Tensor], Tensor]


class RuleLearner:
    """Weights and biases of a stack, changed at every step by the plan of each layer.

    Thresholds and decays stay as they are. The third factor of a layer is dL[t]/ds through the
    layers above at this step (as OTTT and the paper's online mode take it), or of the local loss of
    a fixed random readout (DECOLLE).

    Args:
        net: `HDLayer`s of nn.Linear (or QuantLinear "fp"), neurons not in trace mode, without norm
            and attention; an nn.Linear behind them or not.
        plans: by the name of a child ("0", "1", ...); the others stand still. See `plans_for`.
        readouts: DECOLLE's, by child; None: the loss's own signal.

    Raises:
        Invalid: a name that no layer has.
        Refused: other layers: the trace of a rule is that of weights in W x alone; quantised
            weights, of which a rule would write latent ones that no synapse holds.

    Example:
        >>> from grasp_plugin.hdlif import HDLIF
        >>> net = HDStack(HDLayer(nn.Linear(3, 2), HDLIF(4)), nn.Linear(2, 2))
        >>> learner = RuleLearner(net, plans_for(net, 0.1))
        >>> x, y = torch.ones(4, 1, 3), torch.tensor([1])
        >>> learner.learn(x, y, nn.functional.cross_entropy) > 0
        True
    """

    def __init__(
        self,
        net: HDStack,
        plans: Mapping[str, Rule],
        *,
        readouts: Mapping[str, RandomReadout] | None = None,
    ) -> None:
        self.net, self.plans, self.readouts = net, dict(plans), dict(readouts or {})
        self.linear: dict[str, nn.Linear] = {}
        for name, module in net.named_children():
            self.linear[name] = _linear(name, module)
        for name in (*self.plans, *self.readouts):
            if name not in self.linear:
                raise Invalid(
                    name, f"expected one of the layers {tuple(self.linear)}", "Pass such names"
                )
        self.states: dict[str, State] = {}
        self._fixed: dict[str, State] = {}

    def learn(self, x: Tensor, y: Tensor, loss: Loss) -> float:
        """One batch of samples from rest; returns the mean loss of its steps.

        Args:
            x: (time, batch, N_i); y: target of every step, for local losses (batch, C).
            loss: of the net's output, a mean over the batch.

        Raises:
            Invalid: no steps, or a plan's own reasons.
        """
        if x.dim() != 3 or not len(x):
            raise Invalid("x", f"expected (time, batch, N_i), got {tuple(x.shape)}", "Add the axes")
        for name, plan in self.plans.items():
            fresh = plan.init(self.linear[name].weight.detach(), batch=x.shape[1])
            old = self.states.get(name)
            self.states[name] = fresh if old is None else with_lasting(plan, fresh, old)
        memory: dict[str, Any] = {}
        return sum(self._step(step, y, loss, memory) for step in x) / len(x)

    def _step(self, x: Tensor, y: Tensor, loss: Loss, memory: dict[str, Any]) -> float:
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        out = x
        for name, module in self.net.named_children():
            pre = out
            if isinstance(module, HDLayer):
                before = memory.get(name)
                if before is not None:
                    before = {**before, "v": before["v"].detach()}
                out, memory[name] = module(pre, before)
            else:
                out = module(pre)
            seen[name] = pre.detach(), out
        value = loss(out, y)
        outs = [s for _, s in seen.values()]
        signals = dict(zip(seen, torch.autograd.grad(value, outs, allow_unused=True), strict=True))
        with torch.no_grad():
            for name in self.plans:
                self._write(name, *seen[name], signals[name], memory.get(name), y)
        return float(value.detach())

    def _write(
        self, name: str, pre: Tensor, out: Tensor, signal: Tensor, memory: State | None, y: Tensor
    ) -> None:
        linear, out = self.linear[name], out.detach()
        if name in self.readouts:
            local = self.readouts[name]
            fixed = self._fixed.get(name) or local.init(out.shape[1], out)
            signal, self._fixed[name] = local.update(out, y, fixed)
        factors = Factors(pre, signal, spikes=out)
        if memory is not None:
            margin = memory["margin"]
            factors = Factors(pre, signal, margin, spikes=margin.clamp(min=0))
        delta, self.states[name] = self.plans[name].update(
            factors, self.states[name], linear.weight.detach()
        )
        linear.weight.add_(delta["weight"].dense())
        if linear.bias is not None and "bias" in delta:
            linear.bias.add_(delta["bias"])


def plans_for(
    net: HDStack,
    learning_rate: float,
    *,
    trace: str = "synapse",
    transforms: Callable[[], tuple[Transform, ...]] = tuple,
) -> dict[str, Rule]:
    """`hdlif_rule` for every layer with its neurons' decays, and the rule of a linear read-out.

    Args:
        trace: as in `hdlif_rule`; transforms: made anew for each layer, such as a `GRASP`.

    Raises:
        Invalid, Refused: as `hdlif_rule` and `RuleLearner`.
    """
    plans: dict[str, Rule] = {}
    for name, module in net.named_children():
        _linear(name, module)
        rule: Rule = ThreeFactor(Instant(), None, learning_rate, Instant(), name="readout")
        if isinstance(module, HDLayer):
            neuron = module.neuron
            decay = tuple(float(neuron.decay(t).detach()) for t in range(neuron.steps))
            rule = hdlif_rule(learning_rate, decay=decay, trace=trace, parallel=neuron.parallel)
        plans[name] = Plan(rule, transforms())
    return plans


def _linear(name: str, module: nn.Module) -> nn.Linear:
    """The weights that a rule may write, or a refusal."""
    if type(module) is nn.Linear:
        return module
    if not isinstance(module, HDLayer):
        raise _refused(name, "an HDLayer or nn.Linear", type(module).__name__, "Leave it out")
    linear = module.synapse
    if not isinstance(linear, nn.Linear):
        raise _refused(name, "a linear layer", type(linear).__name__, "Use hdlif.training")
    if isinstance(linear, QuantLinear) and linear.bits != "fp":
        raise _refused(
            name, "weights that a synapse holds", f"latent ones of {linear.bits}",
            "Use hdlif.training, or weights='fp'",
        )  # fmt: skip
    for part in ("norm", "attention"):
        if getattr(module, part) is not None:
            raise _refused(name, f"no {part} behind the weights", "one", "Use hdlif.training")
    if module.neuron.mem_norms is not None or module.neuron.grad_mode == "trace":
        raise _refused(
            name, "neurons without mem_bn, not in trace mode", "others", "Make them online"
        )
    return linear


def _refused(name: str, expected: str, got: str, remedy: str) -> Refused:
    return Refused(name, f"expected {expected} for a learning rule, got {got}", remedy)
