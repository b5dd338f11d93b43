"""Learning on the `torch` back end: batched, CPU or GPU, no graph kept between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn import grad as convolution_grad

from grasp_plugin.backends.torch import TorchNetwork, TorchSession
from grasp_plugin.learning.chosen import Chosen, Sparse
from grasp_plugin.learning.online import OnlineLearner
from grasp_plugin.learning.spec import Learning, Seen, may_rest
from grasp_plugin.learning.states import State, leaves, with_leaves
from grasp_plugin.network.network import Network
from grasp_plugin.network.weights import Array, Conv
from grasp_plugin.neurons import lif
from grasp_plugin.runtime.learning import LearningSession, lasting_of, with_states
from grasp_plugin.runtime.session import Floats, Session

Apply = Callable[[dict[str, Any]], None]


class OnlineTorch:
    """A `TorchNetwork` and an `OnlineLearner` in one loop: the torch face of online learning.

    Args:
        network: float.
        learning: plans and signals.
        device, dtype: torch's.

    Raises:
        Invalid, Refused: as `OnlineLearner`.
    """

    def __init__(
        self,
        network: Network,
        learning: Learning,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.network, self.device = network, device
        self.learner = OnlineLearner(network, learning, self._below)
        self.module = TorchNetwork(network, dtype).to(device).requires_grad_(False)
        projections = {k.name: f"weight_{i}" for i, k in enumerate(network.projections)}
        biases = {b.name: f"bias_{i}" for i, b in enumerate(network.biases)}
        self.parameters: dict[str, torch.nn.Parameter] = {
            name: getattr(self.module, attribute)
            for name, attribute in {**projections, **biases}.items()
        }
        self.plastic = {n: self.parameters[n] for n in learning.plans}
        self.state: State = self.learner.init(self.plastic, 1)

    def sequence(
        self,
        inputs: Mapping[str, Tensor],
        target: Tensor,
        mask: Tensor,
        apply: Apply | None = None,
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Learn on one sequence from rest, yielding (outputs, logits) at each step.

        Args:
            inputs: (time, batch, size) by input; target, mask: (time, batch, C), (time, batch, 1).
            apply: what to do with the deltas of a step; None: add them to the weights.
        """
        first = next(iter(inputs.values()))
        batch = first.shape[1]
        apply = apply or self.add
        self.state = self.learner.rest(self.state, self.plastic, batch)
        forward = self.module.initial_state(batch)
        for t in range(first.shape[0]):
            with torch.no_grad():
                now = {n: x[t] for n, x in inputs.items()}
                old = forward
                output, forward, margin = self.module.step(t, now, old)
                seen = self.seen(t, output, margin, old)
                logits = self.learner.logits(output, self.state["signals"])
                deltas, self.state = self.learner.step(
                    seen, target[t], mask[t], self.state, self.parameters
                )
                self.learner.check(deltas, self.state, t)
                apply(deltas)
            yield output, logits
        for name, held in self.learner.pending(self.state).items():
            for delta in held:
                apply({name: delta})
        self.state = self.learner.ended(self.state)

    def add(self, deltas: dict[str, Any]) -> None:
        """weight += delta, in place."""
        for name, delta in deltas.items():
            weight = self.plastic[name]
            part = delta["weight"]
            if isinstance(part, (Chosen, Sparse)) and weight.device.type == "cpu":
                part.add_to(weight.detach().numpy().reshape(len(weight), -1))
            else:
                weight.add_(part.dense().reshape(weight.shape))

    def seen(
        self, t: int, output: Mapping[str, Tensor], margin: Mapping[str, Tensor], before: State
    ) -> Seen:
        """What the learner sees of step t; output and margin are of `module.step` from `before`."""
        return Seen(self._pre(t, output, before), output, margin, self._active(before))

    def _pre(self, t: int, output: Mapping[str, Tensor], old: State) -> dict[str, Tensor]:
        pre: dict[str, Tensor] = {}
        like = next(iter(output.values()))
        for name in self.learner.rules:
            if name in self.learner.biases:
                on = t >= self.learner.biases[name].onset_steps
                pre[name] = torch.full_like(like[:, :1], float(on))
                continue
            k = self.learner.projections[name]
            delay, history = k.min_delay, old["past"].get(k.source, [])
            if delay == 0:
                pre[name] = output[k.source]
            elif delay <= len(history):
                pre[name] = history[delay - 1]
            else:
                pre[name] = like.new_zeros((like.shape[0], self.network.size_of(k.source)))
        return pre

    def _active(self, old: State) -> dict[str, Tensor]:
        out = {}
        for p in self.network.populations:
            if may_rest(p):
                state = old["populations"][p.name]
                out[p.name] = lif.ready(state)
                if p.reset == "refractory1":
                    out[p.name] = out[p.name] * (1 - state["s"])
        return out

    def _below(self, name: str, weight: Tensor, error: Tensor) -> Tensor:
        conv = self.learner.projections[name].weight
        return conv_transposed(conv, weight, error) if isinstance(conv, Conv) else error @ weight


def conv_transposed(conv: Conv, kernel: Tensor, error: Tensor) -> Tensor:
    """W^T error of a convolution: (batch, out) -> (batch, in), flat."""
    axes = len(conv.in_shape) - 1
    gradient = convolution_grad.conv1d_input if axes == 1 else convolution_grad.conv2d_input
    padded = [
        n + low + high for n, (low, high) in zip(conv.in_shape[1:], conv.padding, strict=True)
    ]
    back: Tensor = gradient(  # type: ignore[no-untyped-call]
        (error.shape[0], conv.in_shape[0], *padded),
        kernel,
        error.reshape(error.shape[0], *conv.out_shape),
        stride=conv.stride,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    crop = [-n for low_high in reversed(conv.padding) for n in low_high]
    return functional.pad(back, crop).reshape(error.shape[0], -1)


class TorchLearning(LearningSession):
    """`build(network, backend="torch", plans=..., signals=...)`; float64 unless told otherwise."""

    def __init__(
        self,
        network: Network,
        learning: Learning,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(network, learning)
        self.online = OnlineTorch(network, learning, device, dtype)
        self._device, self._dtype = device, dtype

    def _learn(
        self, inputs: dict[str, Floats], target: Floats, mask: Floats, progress: bool
    ) -> tuple[Floats, dict[str, float]]:
        from tqdm import tqdm

        given = {n: self._tensor(x) for n, x in inputs.items()}
        kept = np.empty(target.shape)
        sums: dict[str, Any] = {p.name: 0.0 for p in self.network.populations}
        steps = self.online.sequence(given, self._tensor(target), self._tensor(mask))
        bar = tqdm(steps, total=len(target), disable=not progress, desc="learn", leave=False)
        for t, (output, logits) in enumerate(bar):
            kept[t] = logits.cpu().numpy()
            sums = {name: total + output[name].sum() for name, total in sums.items()}
        return kept, {name: float(total) for name, total in sums.items()}

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, dtype=self._dtype, device=self._device)

    def _runner(self) -> Session:
        return TorchSession(self.learned(), device=self._device, dtype=self._dtype)

    def weights(self) -> dict[str, Array]:
        return {
            name: weight.detach().cpu().numpy().astype(np.float64)
            for name, weight in self.online.plastic.items()
        }

    def _set_weights(self, weights: dict[str, Array]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.online.plastic[name].copy_(torch.as_tensor(value))

    def _memory(self) -> dict[str, Array]:
        signals = leaves(self.online.state["signals"])
        return {name: value.cpu().numpy() for name, value in signals}

    def _set_memory(self, arrays: dict[str, Array]) -> None:
        given = {n: torch.as_tensor(a, device=self._device) for n, a in arrays.items()}
        self.online.state["signals"] = with_leaves(self.online.state["signals"], given)

    def _lasting(self) -> dict[str, State]:
        plans = self.online.state["plans"]
        held = {n: lasting_of(p, plans[n]) for n, p in self.learning.plans.items()}
        return {name: _in_numpy(state) for name, state in held.items() if state}

    def _set_lasting(self, states: dict[str, State]) -> None:
        plans = self.online.state["plans"]
        for name, state in states.items():
            old = dict(leaves(lasting_of(self.learning.plans[name], plans[name])))
            given = {n: _as(a, old[n]) for n, a in leaves(state)}
            plans[name] = with_states(plans[name], with_leaves(state, given))


def _in_numpy(state: State) -> State:
    """A nested dict of tensors or NumPy arrays, in NumPy."""
    arrays = {n: v.cpu().numpy() if isinstance(v, Tensor) else v for n, v in leaves(state)}
    return with_leaves(state, arrays)


def _as(array: Array, like: Any) -> Any:
    """An array in like's kind, dtype and device."""
    return torch.tensor(array).to(like) if isinstance(like, Tensor) else array
