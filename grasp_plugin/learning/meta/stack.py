"""Dense layers of leaky neurons and a leaky readout: fast to meta-train, and a `Network` at once.

    m_l[t] = k m_l[t-1] + W_l s_l-1[t] - theta s_l[t-1],   s_l[t] = H(m_l[t] - theta)   l = 1..L-1
    u[t]   = k u[t-1] + W_L s_L-1[t]                       logits = u[T-1]

The reset subtracts in the step after the spike ("subtract-delayed"); the readout is the membrane at
the last step, as in Stewart & Neftci (2022). Weights are multiplied for all steps at once.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.meta.checks import whole
from grasp_plugin.learning.meta.spikes import spike
from grasp_plugin.network.discretise import Discretisation, discretise
from grasp_plugin.network.network import Network
from grasp_plugin.neurons.surrogate import FastSigmoid


class Stack(nn.Module):
    """The module's layers; parameters weight_1 ... weight_L [N_l, N_l-1].

    Args:
        sizes: N_0 ... N_L, inputs first.
        keep: k, per step, in [0, 1).
        threshold: theta.
        gain: weights begin at gain U(-1, 1) / sqrt(N_l-1).
        spikes: H with a surrogate; None: `FastSigmoid(10)`.
        detach_reset: no gradient through the spike that is subtracted.

    Raises:
        Invalid: fewer than two layers of weights, a size < 1, or keep, threshold or gain out of
            range; in `forward`, inputs of another shape.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        keep: float = 0.9,
        threshold: float = 1.0,
        gain: float = 1.0,
        spikes: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(sizes, keep, threshold, gain)
        self.sizes, self.keep, self.threshold = tuple(sizes), keep, threshold
        self.spike = spike(FastSigmoid(10.0)) if spikes is None else spikes
        self.detach_reset = detach_reset
        for layer, (below, above) in enumerate(pairwise(sizes), 1):
            weight = torch.empty(above, below, dtype=dtype).uniform_(-1, 1) * (gain / below**0.5)
            self.register_parameter(f"weight_{layer}", nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (sample, N_L) of spikes (time, sample, neuron...)."""
        if x.dim() < 3 or not len(x) or math.prod(x.shape[2:]) != self.sizes[0]:
            raise Invalid(
                "Stack", f"expected spikes (time, sample, neuron...) of one step or more and "
                f"{self.sizes[0]} neurons, got {tuple(x.shape)}", "Time is axis 0",
            )  # fmt: skip
        s = x.flatten(2)
        top = len(self.sizes) - 1
        for layer in range(1, top):
            s = self._spikes(s @ getattr(self, f"weight_{layer}").T)
        powers = torch.arange(len(s) - 1, -1, -1, dtype=s.dtype, device=s.device)
        seen = ((self.keep**powers)[:, None, None] * s).sum(0)  # the trace at the last step
        out: Tensor = seen @ getattr(self, f"weight_{top}").T
        return out

    def _spikes(self, a: Tensor) -> Tensor:
        v, out = a[0], [self.spike(a[0] - self.threshold)]
        for now in a[1:]:
            lost = out[-1].detach() if self.detach_reset else out[-1]
            v = self.keep * v + now - self.threshold * lost
            out.append(self.spike(v - self.threshold))
        return torch.stack(out)

    def parameter_of(self) -> dict[str, str]:
        """The name of the parameter by that of the projection in `network`."""
        names = ["input", *(f"layer{i}" for i in range(1, len(self.sizes)))]
        return {f"{a}->{b}": f"weight_{i}" for i, (a, b) in enumerate(pairwise(names), 1)}

    def network(
        self, parameters: Mapping[str, Tensor] | None = None, dt_s: float = 0.01
    ) -> Network:
        """The network of these weights, populations layer1 ... layerL, in float64.

        Args:
            parameters: by name, such as adapted ones; None: the module's own.
            dt_s: the length of a step, which spikes do not depend on.
        """
        given = dict(self.named_parameters()) if parameters is None else parameters
        nodes: dict[str, Any] = {"input": nir.Input(np.array([self.sizes[0]]))}
        top = len(self.sizes) - 1
        for layer in range(1, top + 1):
            weight = given[f"weight_{layer}"].detach().cpu().double().numpy()
            nodes[f"w{layer}"] = nir.Linear(weight)
            nodes[f"layer{layer}"] = self._cells(len(weight), layer < top, dt_s)
        nodes["output"] = nir.Output(np.array([self.sizes[-1]]))
        graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
        return discretise(graph, Discretisation(dt_s=dt_s, reset="subtract-delayed"))

    def _cells(self, count: int, spiking: bool, dt_s: float) -> Any:
        full = np.ones(count)
        tau, gain = dt_s / (1 - self.keep) * full, full / (1 - self.keep)
        if spiking:
            return nir.LIF(tau, gain, 0 * full, self.threshold * full, v_reset=0 * full)
        return nir.LI(tau, gain, 0 * full)


def _check(sizes: Sequence[int], keep: float, threshold: float, gain: float) -> None:
    for size in sizes:
        whole("sizes", size, 1)
    if len(sizes) < 3:
        raise Invalid("Stack", f"expected three sizes or more, got {tuple(sizes)}", "Add a layer")
    for name, value, fits, wanted in (
        ("keep", keep, 0 <= keep < 1, "in [0, 1)"),
        ("threshold", threshold, 0 < threshold < math.inf, "> 0 and finite"),
        ("gain", gain, math.isfinite(gain), "that is finite"),
    ):
        if not fits:
            raise Invalid("Stack", f"expected {name} {wanted}, got {value}", f"Correct {name}")
