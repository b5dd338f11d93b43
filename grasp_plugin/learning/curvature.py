"""Curvature of the instantaneous loss as an operator on membranes: u -> M u, (batch, N_o) both.

The Hessian of a rule's loss at step t in the weights of a projection is known by M alone, since
U = W p + (what does not depend on W at this step):

    (H V) = sum_b (M_b V p_b) p_b^T                         V [N_o, N_i], p the trace

    signal            Gauss-Newton M u                                        full: and
    RandomReadout     s' * G^T [Lambda G (s' * u)]                            (dL/dS) s'' * u
    Projection        proxy: s' * Bf [Bf^T (s' * u)] at an event              L s'' * u, exact alone
    OutputError       s'^2 * u at an event                                    (S_o - y*) s'' * u
    Backpropagation   the tangents s' * u forward through the layers above,   g s'' * u, at the
                      Lambda, and back                                        population itself

s' = sigma'(margin), Lambda = d^2 L / dY^2. Gauss-Newton is positive semi-definite and needs no
sigma''; that of a steep surrogate changes its sign at the threshold and drowns the rest. ETLP's
hidden loss is linear in the spikes: its Gauss-Newton term is 0, and the proxy is the curvature of
||Bf^T S - y*||^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from array_api_compat import array_namespace

from grasp_plugin.learning.rule import Array, State
from grasp_plugin.learning.signals import Backpropagation, OutputError, Projection, RandomReadout
from grasp_plugin.neurons.surrogate import Surrogate

Operator = Callable[[Array], Array]


def readout_curvature(
    signal: RandomReadout, spikes: Array, slope: Array, target: Array, mask: Array, state: State
) -> Operator:
    """Gauss-Newton M of DECOLLE's local loss.

    Args:
        spikes, slope: S and s' (batch, N).
        target, mask: (batch, C), (batch, 1).
        state: the signal's, before this step (its dropout mask is this step's).
    """
    keep = signal.keep(spikes, state) if signal.dropout else 1.0
    g = state["readout"]
    y = signal.logits(spikes * keep, state)
    inner = slope * keep

    def product(u: Array) -> Array:
        bent = signal.loss.curvature(y, target, (inner * u) @ g.T, mask)
        return inner * (bent @ g)

    return product


def projection_curvature(signal: Projection, slope: Array, state: State) -> Operator:
    """The proxy M of ETLP's hidden layer; `state` is the signal's after this step (its event)."""
    bf, event = state["feedback"], state["event"]
    del signal
    return lambda u: event * slope * (((slope * u) @ bf) @ bf.T)


def output_curvature(signal: OutputError, slope: Array, event: Array) -> Operator:
    """Gauss-Newton M of ETLP's output, at an event (1,) of 1."""
    del signal
    return lambda u: event * slope * slope * u


def surrogate_curvature(surrogate: Surrogate | None, margin: Array, third: Array) -> Operator:
    """The term that Gauss-Newton leaves out: (dL/dS) s''(margin) * u; 0 without a surrogate."""
    if surrogate is None:
        return lambda u: u * 0
    bend = third * surrogate.second(margin)
    return lambda u: bend * u


def plus(*parts: Operator) -> Operator:
    """The sum of operators."""
    return lambda u: sum(part(u) for part in parts)


class InstantaneousGraph:
    """The layers above each population at one step, for `Backpropagation`.

    Args:
        signal: the top's loss.
        slope: s' by population (batch, N); ones where a population does not spike.
        above: by population, (target population, weight [N_o, N_i]) of its undelayed projections.
        top: the population that the loss reads, its logits, and target and mask.
    """

    def __init__(
        self,
        signal: Backpropagation,
        slope: Mapping[str, Array],
        above: Mapping[str, list[tuple[str, Array]]],
        top: str,
        logits: Array,
        target: Array,
        mask: Array,
    ) -> None:
        self._signal, self._slope, self._above = signal, slope, above
        self._top, self._loss = top, (logits, target, mask)

    def of(self, population: str) -> Operator:
        """Gauss-Newton M of a population: tangents up, Lambda, errors down."""
        return lambda u: self._bent(population, u)

    def _bent(self, population: str, u: Array) -> Array:
        order, tangent = [population], {population: self._slope[population] * u}
        for p in order:  # grows while it is gone through: sources before targets
            for target, weight in self._above.get(p, []):
                step = self._slope[target] * (tangent[p] @ weight.T)
                tangent[target] = tangent[target] + step if target in tangent else step
                if target not in order:
                    order.append(target)
        logits, wanted, mask = self._loss
        if self._top not in tangent:
            return u * 0
        back = {self._top: self._signal.loss.curvature(logits, wanted, tangent[self._top], mask)}
        for p in reversed(order):
            for target, weight in self._above.get(p, []):
                if target in back:
                    down = (self._slope[target] * back[target]) @ weight
                    back[p] = back[p] + down if p in back else down
        zero = array_namespace(u).zeros_like(u)
        return self._slope[population] * back.get(population, zero)


def hessian_vector(product: Operator, trace: Array, v: Array) -> Array:
    """H V [N_o, N_i] for any direction V [N_o, N_i]; trace (batch, N_i)."""
    return product(trace @ v.T).T @ trace
