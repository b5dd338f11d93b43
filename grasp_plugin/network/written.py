"""How a network is laid out as NIR nodes: paths, shapes, and which weight node holds which bias.

A projection is written as one path for each of its delays: Delay, then weights; or weights, then
Delay, where the weights hold a bias that comes in as late as the delay. A convolution stays one
only between populations that keep their shapes, and NIR has no reshape: what is flat once makes
everything behind it flat, down to the next flat population.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from grasp_plugin.network import loops
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.weights import Array, Conv, Weight

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Path:
    """A projection's synapses of one delay.

    Args:
        projection: where they belong.
        delay: steps, less the step that a loop takes by itself.
        weight: the weights before the gain of the written neuron.
    """

    projection: Projection
    delay: int
    weight: Weight


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything into the populations, as it is written.

    Args:
        shapes: of inputs and populations.
        paths: by population.
        held: by population and number of the path, (onset, bias) that its weight node holds.
        left: by population and onset, biases that no weight node holds; before the gain.
    """

    shapes: dict[str, Shape]
    paths: dict[str, list[Path]]
    held: dict[str, dict[int, tuple[int, Array]]]
    left: dict[str, dict[int, Array]]


def layout_of(network: Network) -> Layout:
    """The layout with as many shapes and convolutions as NIR can express."""
    step = loop_steps(network)
    paths = {p.name: _paths(network, p, step) for p in network.populations}
    biases = {p.name: _biases(network, p) for p in network.populations}
    shapes: dict[str, Shape] = {name: tuple(shape) for name, shape in network.inputs.items()}
    shapes |= {p.name: tuple(p.shape) for p in network.populations}

    def keeps(name: str) -> bool:
        fits = all(_stays(path, shapes) for path in paths[name])
        return fits and not _hold(paths[name], biases[name], shapes)[1]

    while flat := [n for n in paths if len(shapes[n]) > 1 and not keeps(n)]:
        shapes |= {name: (network[name].size,) for name in flat}
    both = {name: _hold(paths[name], biases[name], shapes) for name in paths}
    held = {name: found for name, (found, _) in both.items()}
    return Layout(shapes, paths, held, {name: left for name, (_, left) in both.items()})


def loop_steps(network: Network) -> dict[str, int]:
    """1 for projections whose delay holds the implicit step of a loop, 0 for the others.

    The `loop` hint names a source and a target: it holds for all projections between the two.
    """
    component = loops.components(network.projections) if network.projections else {}
    least: dict[tuple[str, str], int] = {}
    for k in network.projections:
        edge = k.source, k.target
        least[edge] = min(k.min_delay, least.get(edge, k.min_delay))
    return {
        k.name: int(component[k.source] == component[k.target] and least[k.source, k.target] > 0)
        for k in network.projections
    }


def written_gain(p: Population) -> Array:
    """The input gain of the neuron's node; the weights are divided by it.

    1 instead of `p.gain` where that has no finite inverse (r = 0, or tau = inf): the weights hold
    the gain already, so nothing is lost. 1 as well in nodes without r.
    """
    if p.node in ("Threshold", "Output"):
        return np.ones(p.size)
    with np.errstate(divide="ignore", over="ignore"):
        usable = np.isfinite(1.0 / p.gain)
    return np.where(usable, p.gain, 1.0)


def writable(conv: Conv, source: Shape, target: Shape) -> bool:
    """NIR pads both sides alike, and has no reshape back from flat neurons."""
    fits = tuple(conv.in_shape) == source and tuple(conv.out_shape) == target
    return fits and all(low == high for low, high in conv.padding)


def _paths(network: Network, p: Population, step: Mapping[str, int]) -> list[Path]:
    inverse = 1.0 / written_gain(p)
    out = []
    for k in network.into(p.name):
        delays = np.asarray(k.delay_steps) - step[k.name]
        for delay in np.unique(delays):
            weight: Weight = k.weight
            if delays.ndim and np.any(delays != delay):
                weight = np.where(delays == delay, W.to_dense(k.weight), 0.0)
            out.append(Path(k, int(delay), W.scale_rows(weight, inverse)))
    return out


def _biases(network: Network, p: Population) -> dict[int, Array]:
    """Onset -> bias before the gain, where there is any."""
    out: dict[int, Array] = {}
    for b in network.biases:
        if b.target == p.name and np.any(b.value):
            value = b.value / written_gain(p)
            out[b.onset_steps] = out.get(b.onset_steps, np.zeros(p.size)) + value
    return out


def _stays(path: Path, shapes: Mapping[str, Shape]) -> bool:
    source, target = shapes[path.projection.source], shapes[path.projection.target]
    if isinstance(path.weight, Conv):
        return writable(path.weight, source, target)
    return W.is_identity(path.weight) and source == target


def _hold(
    paths: list[Path], biases: Mapping[int, Array], shapes: Mapping[str, Shape]
) -> tuple[dict[int, tuple[int, Array]], dict[int, Array]]:
    """The biases that weight nodes hold, one each, and those left over.

    A bias behind the path's Delay acts from step 0 on, one before it from the delay on.
    """
    held, left = {}, dict(biases)
    for i, path in enumerate(paths):
        for onset in (path.delay, 0):
            if onset in left and _can_hold(path, left[onset], shapes):
                held[i] = (onset, left.pop(onset))
                break
    return held, left


def _can_hold(path: Path, bias: Array, shapes: Mapping[str, Shape]) -> bool:
    """A convolution holds one bias a channel, a matrix any, an identity edge none."""
    weight, k = path.weight, path.projection
    if isinstance(weight, Conv) and writable(weight, shapes[k.source], shapes[k.target]):
        channels = bias.reshape(weight.out_shape[0], -1)
        return bool(np.all(channels == channels[:, :1]))
    return not W.is_identity(weight)
