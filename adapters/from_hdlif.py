"""HD-LIF layers to NIR: stock nodes with hints, or a node of our own.

Stock form, which every NIR reader opens. For each layer

    Affine    weight = mean_t(g) K, bias = mean_t(c)                        dequantised
    LIF       tau = dt / (1 - mean lambda), r = tau / dt, v_leak = 0      v (1 - dt/tau) + I a step
              v_threshold = v_reset = mean theta

and the layer itself in hints, from which `read_hdlif` gives it back exactly. NIR has no graded
spike, no reset to the threshold, no parameter that differs by step and no quantiser: a reader that
does not know the hints gets a LIF with spikes of 0 and 1, which is another network. Each export
says so in the log. `discretise`, `to_snntorch` and `to_norse` refuse it.

Hints of the LIF: neuron = "hdlif", hdlif_version = 1, hdlif_steps, hdlif_decay, hdlif_theta,
hdlif_gain, hdlif_offset (rows as in `GradedLayer`), hdlif_parallel, hdlif_code_step (0: float
spikes), hdlif_top, hdlif_phase (the layer's place, from 1). Of the Affine: hdlif_bits, and
hdlif_kernel where K cannot be read off weight and gain.

Exact form: Linear (K) -> `hdlif_node.HDLIF`; write it with `nir.write`, and call
`register_nir_extensions` before `nir.read`.

References:
    specs/hmdf.md 12.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import nir
import numpy as np

from grasp_plugin.adapters.hdlif_node import HDLIF as Node
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hdlif import Deployed, GradedLayer
from grasp_plugin.network.hints import HDLIF, NEURON, write_hints

log = logging.getLogger(__name__)
VERSION = 1


def from_hdlif(net: Any, dt_s: float = 1e-3, *, exact: bool = False) -> nir.NIRGraph:
    """HD-LIF layers as NIR; forms and hints in the module.

    Args:
        net: an `HDStack`, or what `hdlif.deploy.deploy` made of it.
        dt_s: the step that the LIF's time constants are written for [s].
        exact: the node HDLIF in place of a LIF with hints.

    Returns:
        Input -> layers [-> readout] -> Output.

    Raises:
        Invalid: a step that is not positive, or a layer with the name of another node.
        Refused: what `deploy` refuses; in stock form a mean lambda outside [0, 1), which no tau has
            (a folded Mem-BN can have it).

    Example:
        >>> import torch
        >>> from grasp_plugin.hdlif import hdlif_compressed
        >>> graph = from_hdlif(hdlif_compressed(3, 2, 4))
        >>> sorted(graph.nodes)
        ['input', 'layer1', 'layer1.weight', 'output']
    """
    if not 0 < dt_s < np.inf:
        raise Invalid("dt_s", f"expected a step > 0 s, got {dt_s}", "Pass e.g. 1e-3")
    made = net if isinstance(net, Deployed) else _deployed(net)
    names = [name for k in made.layers for name in (k.name, f"{k.name}.weight")]
    names += ["input", "output", *(["readout"] if made.readout else [])]
    if len(set(names)) < len(names):
        raise Invalid(
            "layers", f"expected names that no other node has, got {names}", "Rename the layers"
        )
    nodes: dict[str, Any] = {"input": nir.Input(np.array([made.layers[0].kernel.shape[1]]))}
    for phase, layer in enumerate(made.layers, start=1):
        pair = _exact(layer) if exact else _stock(layer, dt_s, phase)
        nodes |= {f"{layer.name}.weight": pair[0], layer.name: pair[1]}
    outs = made.layers[-1].kernel.shape[0]
    if made.readout is not None:
        nodes["readout"] = nir.Affine(weight=made.readout[0], bias=made.readout[1])
        outs = len(made.readout[0])
    nodes["output"] = nir.Output(np.array([outs]))
    graph = nir.NIRGraph(nodes=nodes, edges=list(pairwise(nodes)), type_check=False)
    write_hints(graph, time_unit="s", source="nir", dt_s=dt_s)
    return graph


def _deployed(net: Any) -> Deployed:
    from grasp_plugin.hdlif.deploy import deploy

    return deploy(net)


def _exact(layer: GradedLayer) -> tuple[nir.NIRNode, nir.NIRNode]:
    linear = nir.Linear(weight=np.asarray(layer.kernel, float).copy())
    write_hints(linear, hdlif_bits=layer.bits)
    rows = {n: np.asarray(getattr(layer, n)) for n in ("decay", "theta", "gain", "offset")}
    return linear, Node(
        **rows, steps=layer.steps, parallel=int(layer.parallel), top=layer.top,
        code_step=layer.code_step or 0.0,
    )  # fmt: skip


def _stock(layer: GradedLayer, dt_s: float, phase: int) -> tuple[nir.NIRNode, nir.NIRNode]:
    size = len(layer.kernel)
    gain, one = layer.gain.mean(0), np.ones(size)
    keep = one * (0.0 if layer.parallel else layer.decay.mean(0))
    if keep.min() < 0 or keep.max() >= 1:
        raise Refused(
            layer.name, f"expected a mean lambda in [0, 1), got {keep.min():.3g}..{keep.max():.3g}",
            "Pass exact=True",
        )  # fmt: skip
    affine = nir.Affine(weight=gain[:, None] * layer.kernel, bias=layer.offset.mean(0))
    write_hints(affine, hdlif_bits=layer.bits)
    if np.any(gain == 0) or (layer.bits == "fp" and np.any(gain != 1)):
        write_hints(affine, hdlif_kernel=np.asarray(layer.kernel, float))
    tau, theta = dt_s / (1 - keep), one * layer.theta.mean()
    lif = nir.LIF(tau=tau, r=tau / dt_s, v_leak=0 * one, v_threshold=theta, v_reset=theta.copy())
    write_hints(
        lif, **{NEURON: HDLIF}, source="nir", comparator=">", dt_s=dt_s, hdlif_version=VERSION,
        hdlif_steps=layer.steps, hdlif_decay=layer.decay, hdlif_theta=layer.theta,
        hdlif_gain=layer.gain, hdlif_offset=layer.offset, hdlif_parallel=int(layer.parallel),
        hdlif_code_step=layer.code_step or 0.0, hdlif_top=layer.top, hdlif_phase=phase,
    )  # fmt: skip
    log.warning(
        "%s: written as a LIF with hints: tools that do not know them read spikes of 0 and 1 and "
        "one decay and threshold for all steps, which is another network", layer.name,
    )  # fmt: skip
    return affine, lif
