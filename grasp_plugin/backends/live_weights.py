"""The weights of a packed network as arrays that can be written while it runs."""

from __future__ import annotations

import numpy as np

from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network
from grasp_plugin.network.packed import Packed
from grasp_plugin.network.weights import Array, Conv


class LiveWeights:
    """The weights and biases of a packed network, as arrays that can be written in place.

    Args:
        network, packed: a network and `pack(network)`.
    """

    def __init__(self, network: Network, packed: Packed) -> None:
        self._network = network
        *_, synapses, biases, bias_value, dense, data, _, indptr = packed.arrays
        self.arrays: dict[str, Array] = {}
        self._expanded: dict[str, tuple[Array, Array]] = {}
        row = bias_row = 0
        for p in network.populations:
            for k in network.into(p.name):
                offset = int(synapses[row][6])
                row += 1 if np.ndim(k.delay_steps) == 0 else len(np.unique(k.delay_steps))
                if np.ndim(k.delay_steps):
                    continue
                if isinstance(k.weight, np.ndarray):
                    part = dense[offset : offset + k.weight.size]
                    self.arrays[k.name] = part.reshape(k.weight.shape[::-1]).T
                elif isinstance(k.weight, Conv):
                    first = int(indptr[offset])
                    place = _places(k.weight)
                    self.arrays[k.name] = k.weight.kernel.astype(data.dtype)
                    self._expanded[k.name] = data[first : first + place.size], place
            for b in network.biases:
                if b.target == p.name:
                    start = int(biases[bias_row][1])
                    self.arrays[b.name] = bias_value[start : start + p.size]
                    bias_row += 1

    def written(self, name: str) -> None:
        """Make a change of `arrays[name]` known to the compiled step (kernels are kept twice)."""
        if name in self._expanded:
            data, place = self._expanded[name]
            data[:] = self.arrays[name].ravel()[place]


def _places(conv: Conv) -> Array:
    """Which kernel entry each stored entry of the convolution as a matrix is, by column."""
    numbered = W.with_values(conv, np.arange(conv.kernel.size).reshape(conv.kernel.shape) + 1)
    columns = W.to_sparse(numbered).tocsc()
    columns.sort_indices()
    return np.asarray(columns.data, np.int64) - 1
