"""The `fused` back end: a whole `Network` as one compiled, event-driven step loop. No Lava needed.

Spike for spike the other back ends in float, and bit for bit Lava's fixed point in Loihi's integers
(`neurons.kernels`). Batched: samples run one after another in the compiled loop.
"""

from __future__ import annotations

import numpy as np

from grasp_plugin.network.network import Network
from grasp_plugin.network.packed import PackedState, advance, pack
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.session import (
    Floats,
    Recording,
    Session,
    in_float_units,
    membrane_lsbs,
    require_whole_numbers,
)


class FusedSession(Session):
    """`build(network, backend="fused")`, float or Loihi integers."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._packed = pack(network)
        self._states: list[PackedState] = []
        self._adaptive = any(p.adaptive for p in network.populations)

    def records(self) -> tuple[str, ...]:
        return ("membrane", "margin")

    def _run(self, inputs: dict[str, Floats], record: tuple[str, ...], progress: bool) -> Recording:
        from tqdm import tqdm

        require_whole_numbers(self.network, inputs)
        packed, populations = self._packed, self.network.populations
        steps, batch = next(iter(inputs.values())).shape[:2]
        kept = {
            what: {p.name: np.empty((steps, batch, p.size)) for p in populations}
            for what in ("spikes", *record)
        }
        saturated = np.zeros(len(populations), np.int64)
        for b in tqdm(range(batch), disable=not progress, desc="fused", leave=False):
            x = np.concatenate([inputs[name][:, b] for name in packed.input_slices], axis=1)
            margin = np.empty((steps, packed.neurons), packed.v_init.dtype)
            out, membrane, limits = advance(
                packed, self._states[b], x, "membrane" in record,
                margin if "margin" in record else None,
            )  # fmt: skip
            saturated += limits
            for p in populations:
                mine = out[:, packed.slices[p.name]]
                kept["spikes"][p.name][:, b] = mine if p.spiking else in_float_units(p, mine)
                if "membrane" in record:
                    v = membrane[:, packed.slices[p.name]]
                    kept["membrane"][p.name][:, b] = in_float_units(p, v)
                if "margin" in record:
                    distance = margin[:, packed.slices[p.name]] / membrane_lsbs(p)
                    kept["margin"][p.name][:, b] = distance if p.spiking else 1.0
        shaped = {
            what: {p.name: kept[what][p.name].reshape(steps, batch, *p.shape) for p in populations}
            for what in kept
        }
        counts = {p.name: int(n) for p, n in zip(populations, saturated, strict=True) if n}
        return Recording(
            shaped["spikes"],
            dict(self.network.outputs),
            shaped.get("membrane", {}),
            shaped.get("margin", {}),
            saturated=counts,
        )

    def weights(self) -> dict[str, Floats]:
        return self.network.weights()

    def _rest(self, batch: int) -> None:
        self._states = [PackedState(self._packed) for _ in range(batch)]

    def _state_arrays(self) -> dict[str, Array]:
        return {
            key: np.stack([getattr(s, key) for s in self._states])
            for key in ("u", "v", "s", "history", *(("adapt", "wait") if self._adaptive else ()))
        }

    def _set_state_arrays(self, arrays: dict[str, Array], batch: int) -> None:
        self._states = [
            PackedState(
                self._packed, **{k: a[b].copy() for k, a in arrays.items()}, step=self.steps
            )
            for b in range(batch)
        ]

    def _set_weights(self, weights: dict[str, Array]) -> None:
        self.network = self.network.with_weights(weights)
        self._packed = pack(self.network)

    def state(self) -> dict[str, dict[str, Floats]]:
        states = self._states or [PackedState(self._packed)]
        out = {}
        for p in self.network.populations:
            mine = self._packed.slices[p.name]
            u = np.stack([s.u[mine] for s in states]).astype(np.float64)
            v = np.stack([in_float_units(p, s.v[mine]) for s in states])
            u /= membrane_lsbs(p)
            out[p.name] = {"u": u.reshape(-1, *p.shape), "v": v.reshape(-1, *p.shape)}
        return out
