"""One step of learning in a whole `Network`: signals from the top down, then every plan's update.

    for p in populations, last first:
        signal_p = dL/dS_p                                 from `signals[p]`
        for every projection or bias k into p that has a plan:
            delta_k, state_k = plan_k.update(Factors(pre_k, signal_p, margin_p, ...), state_k, W_k)

A bias is a synapse from a source that is always 1, so that it learns by the same rules. Weights are
held by the caller; nothing is changed in place. Runs on NumPy and torch arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from array_api_compat import array_namespace

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.convolved import Convolved, SharedBias, core_of
from grasp_plugin.learning.deltas import Array, Delta, is_finite
from grasp_plugin.learning.network_curvature import StepCurvature
from grasp_plugin.learning.rule import Factors, Plan, Rule, with_lasting
from grasp_plugin.learning.shared_budget import shared_price
from grasp_plugin.learning.signals import Backpropagation, OutputError, Projection, RandomReadout
from grasp_plugin.learning.spec import Learning, Seen, Signal, carries_error, check
from grasp_plugin.learning.states import State, check_finite
from grasp_plugin.learning.transforms import Late
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Conv


def third_factor(
    signal: Signal,
    output: Array,
    target: Array,
    mask: Array,
    state: State,
    *,
    network_output: Array | None = None,
    above: Array | None = None,
) -> tuple[Array, State]:
    """(dL/dS (batch, N), state) of one population, whatever its kind of signal.

    Args:
        output: the population's spikes or membrane (batch, N).
        target, mask: (batch, C) and (batch, 1); mask 0: no target, no learning.
        network_output: the readout population's output (batch, C), for e-prop's error.
        above: dL/dS from the populations above (batch, N); None at the readout.
    """
    if isinstance(signal, RandomReadout):
        return signal.update(output, target, state, mask=mask)
    if isinstance(signal, Projection):
        third, state = signal.update(target, state, output=network_output)
        return third * mask, state
    if isinstance(signal, OutputError):
        third, state = signal.update(output, target, state)
        return third * mask, state
    return (signal.top(output, target, mask) if above is None else above), state


Below = Callable[[str, Array, Array], Array]


class OnlineLearner:
    """The plans and signals of a `Learning`, bound to a network.

    Args:
        network: float; in integers, `third_factors` and `factors` only.
        learning: what learns.
        below: (projection, weight, dL/dm of the target (batch, N_o)) -> dL/dS of the source
            (batch, N_i); needed for `Backpropagation` through convolutions only.

    Raises:
        Invalid: an unknown projection, bias or population; a plan without a signal.
        Refused: sparse weights or a delay for each synapse, where they learn or carry an error
            down; a trace that is not exact.
    """

    def __init__(self, network: Network, learning: Learning, below: Below | None = None) -> None:
        self.network, self.learning = network, learning
        self.below = below or self._below_dense
        self.biases = {b.name: b for b in network.biases if b.name in learning.plans}
        self.projections = {k.name: k for k in network.projections}
        check(network, learning)
        self.carriers = {k.name for k in network.projections if carries_error(k, learning)}
        self.rules = {name: self._rule(name, plan) for name, plan in learning.plans.items()}
        self.price = shared_price(network, learning, self.weights())
        self.order = [p.name for p in reversed(network.populations) if p.name in learning.signals]

    def target_of(self, name: str) -> str:
        """The population that a plan's synapses end at."""
        return (self.biases.get(name) or self.projections[name]).target

    def _rule(self, name: str, plan: Rule) -> Rule:
        if name in self.biases:
            feeding = (k.weight for k in self.network.into(self.biases[name].target))
            conv = next((w for w in feeding if isinstance(w, Conv)), None)
            return plan if conv is None else SharedBias(plan, conv.out_shape[0])
        weight = self.projections[name].weight
        return Convolved(plan, weight) if isinstance(weight, Conv) else plan

    @staticmethod
    def as_matrix(weight: Array) -> Array:
        """A weight as the rule sees it: kernels as [C_out, C_in prod(K)], biases as [N, 1]."""
        return array_namespace(weight).reshape(weight, (weight.shape[0], -1))

    def weights(self) -> dict[str, Any]:
        """The initial weights that plans change, by plan; biases (N,)."""
        stored: dict[str, Any] = self.network.weights()
        stored |= {b.name: b.value for b in self.network.biases}
        return {name: stored[name] for name in self.learning.plans}

    def init(self, weights: Mapping[str, Array], batch: int) -> State:
        """The state before step 0, for weights by plan on their dtype and device."""
        signals = self.initial_signals(next(iter(weights.values())))
        return self.rest({"signals": signals}, weights, batch)

    def initial_signals(self, like: Array) -> State:
        """The signals' fixed matrices and counters, in like's dtype, by population."""
        return {p: s.init(self.network[p].size, like) for p, s in self.learning.signals.items()}

    def rest(self, state: State, weights: Mapping[str, Array], batch: int) -> State:
        """The state before a new sequence: traces at zero; readouts, counters and the states of
        lasting transforms kept."""
        plans = {n: r.init(self.as_matrix(weights[n]), batch=batch) for n, r in self.rules.items()}
        for name, old in state.get("plans", {}).items():
            plans[name] = with_lasting(self.learning.plans[name], plans[name], old)
        price = {} if self.price is None else {"price": self.price.start()}
        return {"plans": plans, "signals": state["signals"], **price}

    def ended(self, state: State) -> State:
        """The state after a sequence: reports to a shared price that were under way are in."""
        if self.price is None:
            return state
        plans = self.price.end(state["price"], state["plans"])
        return {**state, "plans": plans, "price": self.price.start()}

    def logits(self, output: Mapping[str, Array], signals: State) -> Array:
        """What the class is read from at this step (batch, C)."""
        name = self.learning.readout
        signal = self.learning.signals.get(name)
        if isinstance(signal, RandomReadout):
            return signal.logits(output[name], signals[name])
        return output[name]

    def step(
        self, seen: Seen, target: Array, mask: Array, state: State, weights: Mapping[str, Array]
    ) -> tuple[dict[str, Delta], State]:
        """The deltas of every plan at this step, and the state after it.

        Args:
            target, mask: (batch, C), (batch, 1).
            weights: in force at this step, by plan, and by projection where an error passes it.
        """
        late = dict(weights)
        for name, held in self.pending(state).items():
            if name in self.carriers:
                for delta in held:
                    late[name] = self.applied(name, late[name], delta)
        thirds, signals = self.third_factors(seen, target, mask, state["signals"], late)
        deltas: dict[str, Delta] = {}
        plans = dict(state["plans"])
        bent = StepCurvature(
            self.network, self.learning, seen, target, mask, late, state["signals"], signals, thirds
        )
        for name, rule in self.rules.items():
            factors = self.factors(name, seen, thirds)
            curvature = bent.of(self.target_of(name), self.learning.plans[name], factors)
            factors = replace(factors, curvature=curvature)
            weight = self.as_matrix(weights[name])
            deltas[name], plans[name] = rule.update(factors, plans[name], weight)
        if self.price is None:
            return deltas, {"plans": plans, "signals": signals}
        price, plans = self.price.step(state["price"], plans)
        return deltas, {"plans": plans, "signals": signals, "price": price}

    def third_factors(
        self,
        seen: Seen,
        target: Array,
        mask: Array,
        signals: State,
        weights: Mapping[str, Array],
    ) -> tuple[dict[str, Array], State]:
        """(dL/dS (batch, N) by population with a signal, the signals' states)."""
        thirds: dict[str, Array] = {}
        above: dict[str, Array] = {}
        signals = dict(signals)
        top = self.learning.readout
        for p in self.order:
            signal, output = self.learning.signals[p], seen.output[p]
            thirds[p], signals[p] = third_factor(
                signal, output, target, mask, signals[p], network_output=seen.output[top],
                above=None if p == top else above.get(p, output * 0),  # nothing above: no error
            )  # fmt: skip
            if isinstance(signal, Backpropagation):
                error = self._at_membrane(p, signal, thirds[p], seen)
                self._send_below(p, error, weights, above)
        return thirds, signals

    def factors(self, name: str, seen: Seen, thirds: Mapping[str, Array]) -> Factors:
        """What the synapses of one plan see."""
        p = self.target_of(name)
        return Factors(
            pre=seen.pre[name], signal=thirds[p], membrane=seen.margin[p],
            spikes=seen.output[p], active=seen.active.get(p),
        )  # fmt: skip

    def pending(self, state: State) -> dict[str, list[Delta]]:
        """By plan, the deltas that its `Late` holds back; a sequence ends by making them."""
        out: dict[str, list[Delta]] = {}
        for name, rule in self.rules.items():
            plan = core_of(rule)
            transforms = plan.transforms if isinstance(plan, Plan) else ()
            if transforms and isinstance(transforms[-1], Late):
                held = state["plans"][name]["transforms"][str(len(transforms) - 1)]
                out[name] = transforms[-1].pending(held)
        return out

    def _at_membrane(self, p: str, signal: Backpropagation, third: Array, seen: Seen) -> Array:
        if not self.network[p].spiking:
            return third
        error = third * signal.surrogate.first(seen.margin[p])
        return error * seen.active[p] if p in seen.active else error

    def _send_below(
        self, p: str, error: Array, weights: Mapping[str, Array], above: dict[str, Array]
    ) -> None:
        for k in self.network.into(p):
            if k.name in self.carriers:
                part = self.below(k.name, weights[k.name], error)
                above[k.source] = part if k.source not in above else above[k.source] + part

    def _below_dense(self, name: str, weight: Array, error: Array) -> Array:
        if isinstance(self.projections[name].weight, Conv):
            raise Refused(
                name, "expected dense weights to carry an error back, got a convolution",
                "Use a back end that passes `below`",
            )  # fmt: skip
        return error @ weight

    def applied(self, name: str, weight: Array, delta: Delta) -> Array:
        """weight + delta, in the weight's shape."""
        return weight + array_namespace(weight).reshape(delta["weight"].dense(), weight.shape)

    def check(self, deltas: Mapping[str, Delta], state: State, step: int) -> None:
        """Refuse an update that is not finite, before it is made.

        Raises:
            Invalid: names the plan, the step and the trace; the weights are those of the last step.
        """
        for name, delta in deltas.items():
            refuse_unless_finite(delta, state["plans"][name], name, step)


def refuse_unless_finite(delta: Delta, state: State, name: str, step: int) -> None:
    """One plan's part of `OnlineLearner.check`."""
    if is_finite(delta):
        return
    check_finite(state, node=name, step=step)
    raise Invalid(
        name, f"expected a finite update, got NaN or infinity in the error at step {step}",
        "Go on from the weights kept, with a smaller learning rate",
    )  # fmt: skip
