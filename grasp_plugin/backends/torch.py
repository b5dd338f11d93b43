"""The `torch` back end: a float `Network` as an `nn.Module`, batched, on CPU or GPU.

The reference run, and what is trained: weights and biases are `nn.Parameter`s, and `spike` may be a
surrogate. Per step, in evaluation order, the equations of `network.network` and `neurons.lif`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grasp_plugin.errors import Refused
from grasp_plugin.network import weights as W
from grasp_plugin.network.network import Network, Population, Projection
from grasp_plugin.network.weights import Array, Conv
from grasp_plugin.neurons import lif
from grasp_plugin.runtime.session import Floats, Recording, Session

State = dict[str, Any]


class TorchNetwork(nn.Module):
    """A `Network` as a module over whole sequences.

    Args:
        network: float precision.
        dtype: float64 for exactness, float32 for training.
        spike: the spike function of (membrane - threshold); H by default. A surrogate keeps H as
            its forward value.

    Raises:
        Refused: the network is in Loihi integers.
    """

    def __init__(
        self,
        network: Network,
        dtype: torch.dtype = torch.float64,
        spike: Callable[[Tensor], Tensor] = lif.heaviside,
    ) -> None:
        super().__init__()
        if network.precision != "float":
            raise Refused(
                "network",
                "expected float precision for torch, got Loihi integers",
                "Run dequantise(network) here, or the integers with backend='lava'",
            )
        self.network = network
        self.spike = spike
        self.dtype = dtype
        for i, projection in enumerate(network.projections):
            values = torch.as_tensor(W.values(projection.weight).copy(), dtype=dtype)
            self.register_parameter(f"weight_{i}", nn.Parameter(values))
        for i, bias in enumerate(network.biases):
            self.register_parameter(
                f"bias_{i}", nn.Parameter(torch.as_tensor(bias.value.copy(), dtype=dtype))
            )
        for i, population in enumerate(network.populations):
            for key in (*_parameters(population), "v_init"):
                value = torch.as_tensor(getattr(population, key).copy(), dtype=dtype)
                self.register_buffer(f"{key}_{i}", value)
        self._fields = [_parameters(p) for p in network.populations]
        self._synapses = [_synapse(p) for p in network.projections]

    def weights(self) -> dict[str, Floats]:
        """Current weights by projection, float64."""
        return {
            p.name: getattr(self, f"weight_{i}").detach().cpu().numpy().astype(np.float64)
            for i, p in enumerate(self.network.projections)
        }

    def initial_state(self, batch: int) -> State:
        """Rest: v = v_init and else 0 for every population, (batch, size); see `lif.step`."""
        state: State = {"populations": {}, "past": {}}
        for i, p in enumerate(self.network.populations):
            v = getattr(self, f"v_init_{i}").expand(batch, -1)
            zero = torch.zeros_like(v)
            state["populations"][p.name] = {"u": zero, "v": v, "s": zero}
            if p.adaptive:
                state["populations"][p.name] |= {"adapt": zero, "wait": zero}
        return state

    def step(
        self, t: int, inputs: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State, dict[str, Tensor]]:
        """One step: inputs (batch, size) by name -> outputs, state, margins by population."""
        outputs: dict[str, Tensor] = dict(inputs)
        past: dict[str, list[Tensor]] = state["past"]
        margins: dict[str, Tensor] = {}
        populations = {}
        for i, p in enumerate(self.network.populations):
            old = state["populations"][p.name]
            a = torch.zeros_like(old["v"])
            for k, projection in enumerate(self.network.projections):
                if projection.target == p.name:
                    weight = getattr(self, f"weight_{k}")
                    a = self._synapses[k](a, weight, projection, outputs, past)
            for k, bias in enumerate(self.network.biases):
                if bias.target == p.name and t >= bias.onset_steps:
                    a = a + getattr(self, f"bias_{k}")
            parameters = {key: getattr(self, f"{key}_{i}") for key in self._fields[i]}
            out, new, margin = lif.step(a, old, reset=p.reset, spike=self.spike, **parameters)
            outputs[p.name], populations[p.name], margins[p.name] = out, new, margin
        return (
            outputs,
            {"populations": populations, "past": _shift(self.network, past, outputs)},
            (margins),
        )

    def forward(
        self, inputs: Mapping[str, Tensor], state: State | None = None
    ) -> tuple[dict[str, Tensor], State]:
        """Run a sequence.

        Args:
            inputs: (time, batch, size) by input name, sizes flattened.
            state: as returned; None means rest. Bias onsets count from step 0 of this call.

        Returns:
            outputs (time, batch, size) by population, and the state after the last step.
        """
        first = next(iter(inputs.values()))
        state = self.initial_state(first.shape[1]) if state is None else state
        kept: dict[str, list[Tensor]] = {p.name: [] for p in self.network.populations}
        for t in range(first.shape[0]):
            outputs, state, _ = self.step(t, {n: x[t] for n, x in inputs.items()}, state)
            for name, record in kept.items():
                record.append(outputs[name])
        return {name: torch.stack(record) for name, record in kept.items()}, state


def _parameters(p: Population) -> tuple[str, ...]:
    """What `lif.step` takes for a population."""
    plain = ("du", "dv", "v_th", "drive")
    return (*plain, "rho", "theta", "n_ref") if p.adaptive else plain


def _shift(
    network: Network, past: dict[str, list[Tensor]], outputs: dict[str, Tensor]
) -> dict[str, list[Tensor]]:
    """past[name][d - 1] is the source's output d steps ago, as far back as any delay needs."""
    depth: dict[str, int] = {}
    for p in network.projections:
        depth[p.source] = max(depth.get(p.source, 0), p.max_delay)
    return {
        name: [outputs[name], *past.get(name, [])][:steps] for name, steps in depth.items() if steps
    }


def _synapse(projection: Projection) -> Callable[..., Tensor]:
    """A function that adds the projection's contribution to `a`, where one is due."""
    weight = projection.weight
    if isinstance(weight, Conv):
        multiply = _conv(weight)
    elif isinstance(weight, np.ndarray):
        multiply = functional.linear
    else:
        multiply = _sparse(weight)
    if np.ndim(projection.delay_steps) == 0:
        return _uniform(multiply, projection.min_delay)
    delays = torch.as_tensor(projection.delay_steps)

    def per_synapse(a: Tensor, w: Tensor, p: Projection, now: Any, past: Any) -> Tensor:
        for delay in torch.unique(delays).tolist():
            due = _due(now, past, p.source, delay)
            if due is not None:
                a = a + functional.linear(due, w * (delays.to(w.device) == delay))
        return a

    return per_synapse


def _uniform(multiply: Callable[[Tensor, Tensor], Tensor], delay: int) -> Callable[..., Tensor]:
    def uniform(a: Tensor, w: Tensor, p: Projection, now: Any, past: Any) -> Tensor:
        due = _due(now, past, p.source, delay)
        return a if due is None else a + multiply(due, w)

    return uniform


def _due(now: Any, past: Any, source: str, delay: int) -> Tensor | None:
    if delay == 0:
        return now[source]  # type: ignore[no-any-return]
    history = past.get(source, [])
    return history[delay - 1] if delay <= len(history) else None


def _conv(conv: Conv) -> Callable[[Tensor, Tensor], Tensor]:
    axes = len(conv.in_shape) - 1
    operation = functional.conv1d if axes == 1 else functional.conv2d
    pads = [n for low_high in reversed(conv.padding) for n in low_high]

    def multiply(x: Tensor, kernel: Tensor) -> Tensor:
        shaped = functional.pad(x.reshape(-1, *conv.in_shape), pads)
        y = operation(
            shaped, kernel, stride=conv.stride, dilation=conv.dilation, groups=conv.groups
        )
        return y.reshape(x.shape[0], -1)

    return multiply


def _sparse(matrix: Any) -> Callable[[Tensor, Tensor], Tensor]:
    coo = matrix.tocoo()
    indices = torch.as_tensor(np.stack([coo.row, coo.col]).astype(np.int64))
    size = tuple(matrix.shape)

    def multiply(x: Tensor, values: Tensor) -> Tensor:
        w = torch.sparse_coo_tensor(indices.to(x.device), values, size, check_invariants=False)
        y: Tensor = torch.sparse.mm(w, x.T).T
        return y

    return multiply


class TorchSession(Session):
    """`build(network, backend="torch")`: float64 on the CPU unless told otherwise.

    Args:
        network: float precision.
        device, dtype: torch's.
    """

    def __init__(
        self, network: Network, device: str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(network)
        self.module = TorchNetwork(network, dtype).to(device)
        self._device = device
        self._state: State = self.module.initial_state(1)

    def records(self) -> tuple[str, ...]:
        return ("membrane", "margin")

    def _run(self, inputs: dict[str, Floats], record: tuple[str, ...], progress: bool) -> Recording:
        from tqdm import tqdm

        module, populations = self.module, self.network.populations
        tensors = {
            n: torch.as_tensor(x, dtype=module.dtype, device=self._device)
            for n, x in inputs.items()
        }
        steps, batch = next(iter(tensors.values())).shape[:2]
        kept = {
            what: {p.name: np.empty((steps, batch, p.size)) for p in populations}
            for what in ("spikes", *record)
        }
        with torch.no_grad():
            state = self._state
            for t in tqdm(range(steps), disable=not progress, desc="torch", leave=False):
                now = {n: x[t] for n, x in tensors.items()}
                out, state, margin = module.step(self.steps + t, now, state)
                for p in populations:
                    kept["spikes"][p.name][t] = out[p.name].cpu().numpy()
                    if "membrane" in record:
                        v = state["populations"][p.name]["v"].cpu().numpy()
                        kept["membrane"][p.name][t] = v + p.v_offset
                    if "margin" in record:
                        kept["margin"][p.name][t] = margin[p.name].cpu().numpy()
        self._state = state
        shaped = {
            what: {p.name: kept[what][p.name].reshape(steps, batch, *p.shape) for p in populations}
            for what in kept
        }
        return Recording(
            shaped["spikes"],
            dict(self.network.outputs),
            shaped.get("membrane", {}),
            shaped.get("margin", {}),
        )

    def weights(self) -> dict[str, Floats]:
        return self.module.weights()

    def _rest(self, batch: int) -> None:
        self._state = self.module.initial_state(batch)

    def _state_arrays(self) -> dict[str, Array]:
        out = {
            f"{name}/{key}": value.cpu().numpy()
            for name, state in self._state["populations"].items()
            for key, value in state.items()
        }
        for name, past in self._state["past"].items():
            out |= {f"{name}/past{i}": value.cpu().numpy() for i, value in enumerate(past)}
        return out

    def _set_state_arrays(self, arrays: dict[str, Array], batch: int) -> None:
        state: State = {"populations": {p.name: {} for p in self.network.populations}, "past": {}}
        for path in sorted(arrays, key=lambda p: (p.rpartition("/")[0], len(p), p)):
            name, _, key = path.rpartition("/")
            value = torch.as_tensor(arrays[path], device=self._device)
            if key.startswith("past"):
                state["past"].setdefault(name, []).append(value)
            else:
                state["populations"][name][key] = value
        self._state = state

    def _set_weights(self, weights: dict[str, Array]) -> None:
        with torch.no_grad():
            for i, k in enumerate(self.network.projections):
                getattr(self.module, f"weight_{i}").copy_(torch.as_tensor(weights[k.name]))

    def state(self) -> dict[str, dict[str, Floats]]:
        state = self._state
        return {p.name: _visible(p, state["populations"][p.name]) for p in self.network.populations}


def _visible(p: Population, state: Mapping[str, Tensor]) -> dict[str, Floats]:
    u, v = (state[key].detach().cpu().numpy().astype(np.float64) for key in ("u", "v"))
    return {"u": u.reshape(-1, *p.shape), "v": (v + p.v_offset).reshape(-1, *p.shape)}
