"""`build_hdlif(layers, backend)`: a chain of HD-LIF layers on torch, Lava or fused.

Layers are `network.hdlif.GradedLayer` (float) or `network.hdlif_fixed.FixedLayer` (integers). In
float, weights of -1, 0 and 1 and 4-bit spikes every back end gives the same numbers; fp weights or
float spikes add up in another order, with rounding. In integers all are equal, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.network.hdlif import GradedLayer, check_stack, run_float
from grasp_plugin.network.hdlif_fixed import FixedLayer
from grasp_plugin.network.weights import Array
from grasp_plugin.runtime.inputs import check_numbers
from grasp_plugin.runtime.lava_import import forget_processes, kept_logging, require_lava
from grasp_plugin.runtime.session import Closing

BACKENDS = ("torch", "lava", "fused")
MESSAGE_BITS = 8  # of a graded spike in integers
FLOAT_BITS = 24  # any number above 0 tells Lava's float Dense not to take spikes as bool


@dataclass(frozen=True, eq=False)
class GradedRecording:
    """What a run sent.

    Args:
        sent: by layer (time, batch, N), in units of the spikes: codes times their step in integers.
        saturated: membranes at their 24-bit limit, by layer; only where that happened.
    """

    sent: dict[str, Array]
    saturated: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.sent[name]


class GradedSession(Closing, ABC):
    """A chain of layers ready to run; a context manager."""

    def __init__(self, layers: Any) -> None:
        self.layers: list[Any] = check_stack(layers)
        self.fixed = isinstance(self.layers[0], FixedLayer)

    def run(self, x: Array) -> GradedRecording:
        """Run samples, each from rest.

        Args:
            x: (time, batch, N_i), time <= T, in units of the spikes; in integers whole multiples of
                the first layer's `input_step`, up to `input_top` of them.

        Raises:
            Invalid: another shape, more steps than T, NaN, or no whole multiples.
            RunFailed: the session is closed.
        """
        self._require_open()
        given, first = np.asarray(x, float), self.layers[0]
        expected = (f"1..{first.steps}", "batch", first.kernel.shape[1])
        if given.ndim != 3 or given.shape[2] != expected[2] or not 0 < len(given) <= first.steps:
            raise Invalid("x", f"expected {expected}, got {given.shape}", "Pass (time, batch, N_i)")
        check_numbers("x", given)
        if not self.fixed:
            return GradedRecording(*self._run(given))
        codes = given / first.input_step
        limit = first.input_top
        if np.any(codes != np.round(codes)) or np.abs(codes).max(initial=0) > limit:
            raise Invalid(
                "x", f"expected whole multiples of {first.input_step:g} up to {limit} of them, got "
                f"{given.min():g}..{given.max():g}", "Quantise the input, or tell to_fixed of it",
            )  # fmt: skip
        sent, saturated = self._run(np.round(codes).astype(np.int64))
        by_name = {layer.name: layer for layer in self.layers}
        return GradedRecording({n: c * by_name[n].code_step for n, c in sent.items()}, saturated)

    @abstractmethod
    def _run(self, x: Array) -> tuple[dict[str, Array], dict[str, int]]:
        """(what is sent by layer, saturated); codes in integers."""


def build_hdlif(layers: Any, backend: str = "lava", **options: Any) -> GradedSession:
    """Make a chain of HD-LIF layers ready to run.

    Args:
        layers: all GradedLayer or all FixedLayer, from the input on.
        backend: "torch" (float; option device), "lava" or "fused".

    Raises:
        Refused: an unknown back end, Lava where it is not installed, integers on torch.
        Invalid: layers that do not chain.

    Example:
        >>> one = np.ones((1, 1))
        >>> layer = GradedLayer("a", np.array([[1, -1]]), "1bit", 2, one / 2, one / 2, one, 0 * one)
        >>> with build_hdlif([layer], "fused") as session:
        ...     session.run(np.array([[[2.0, 1.0]], [[1.0, 0.0]]]))["a"].ravel()
        array([0.5 , 0.75])
    """
    kinds: dict[str, Callable[..., GradedSession]] = {
        "torch": _Torch,
        "lava": _Lava,
        "fused": _Fused,
    }
    if backend not in kinds:
        raise Refused(backend, f"expected a back end of {', '.join(BACKENDS)}", "Pick one")
    return kinds[backend](layers, **options)


class _Torch(GradedSession):
    """`run_float` on tensors."""

    def __init__(self, layers: Any, device: str = "cpu") -> None:
        super().__init__(layers)
        self.device = device
        if self.fixed:
            raise Refused("torch", "expected float layers, got integers", "Use lava or fused")

    def _run(self, x: Array) -> tuple[dict[str, Array], dict[str, int]]:
        import torch

        sent = run_float(self.layers, torch.as_tensor(x, device=self.device))
        return {name: s.cpu().numpy() for name, s in sent.items()}, {}


class _Fused(GradedSession):
    """One compiled loop a layer."""

    def _run(self, x: Array) -> tuple[dict[str, Array], dict[str, int]]:
        from grasp_plugin.neurons import hdlif_kernels as kernels

        in_float: Any = kernels.layer_float
        in_integers: Any = kernels.layer_fixed
        sent, saturated = {}, {}
        for layer in self.layers:
            outs = layer.kernel.shape[0]
            kind = np.int64 if self.fixed else np.float64
            kernel = np.ascontiguousarray(layer.kernel.T, kind)
            x, out = np.ascontiguousarray(x), np.empty((*x.shape[:2], outs), kind)
            if isinstance(layer, FixedLayer):
                count = in_integers(
                    x, kernel, _wide(layer.dv, outs), _wide(layer.vth, outs), layer.bias,
                    layer.act_shift, layer.q_mult, layer.q_shift, layer.parallel, layer.top, out,
                )  # fmt: skip
                if count:
                    saturated[layer.name] = int(count)
            else:
                rows = (layer.decay, layer.theta, layer.gain, layer.offset)
                in_float(
                    x, kernel, *(_wide(r, outs) for r in rows), layer.parallel,
                    float(layer.code_step or 0.0), float(layer.top), out,
                )  # fmt: skip
            sent[layer.name] = x = out
        return sent, saturated


class _Lava(GradedSession):
    """source -> Dense -> GradedHDLIF -> Dense -> ..., all samples one after another."""

    def __init__(self, layers: Any) -> None:
        super().__init__(layers)
        require_lava()

    def _run(self, x: Array) -> tuple[dict[str, Array], dict[str, int]]:
        from lava.magma.core.run_conditions import RunSteps
        from lava.magma.core.run_configs import Loihi2SimCfg

        from grasp_plugin.backends.lava import model_class
        from grasp_plugin.processes.hdlif import models
        from grasp_plugin.runtime.inprocess import InProcessRuntime

        steps, batch, _ = x.shape
        period = self.layers[0].steps
        padded = np.zeros((batch, period, x.shape[2]), x.dtype)
        padded[:, :steps] = x.transpose(1, 0, 2)
        length = batch * period + len(self.layers)
        tag = "fixed_pt" if self.fixed else "floating_pt"
        own = models.PyGradedHDLIFFixed if self.fixed else models.PyGradedHDLIFFloat
        with kept_logging():
            processes, neurons, sinks = _chain(self.layers, padded.reshape(-1, x.shape[2]), length)
            chosen = {p: own if p in neurons else model_class(p, tag) for p in processes}
            config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=chosen)
            runtime = InProcessRuntime(processes[0].compile(config), processes[0])
        try:
            processes[0].run(RunSteps(num_steps=length))
            counts = [runtime.model_of(p).saturated for p in neurons]
            sent = {}
            for k, (layer, sink) in enumerate(zip(self.layers, sinks, strict=True), start=1):
                data = np.asarray(runtime.model_of(sink).data)[:, k : k + batch * period].T
                by_sample = data.reshape(batch, period, data.shape[1]).transpose(1, 0, 2)
                sent[layer.name] = by_sample[:steps].copy()
        finally:
            runtime.stop()
            forget_processes(processes)
        names = [layer.name for layer in self.layers]
        return sent, {n: c for n, c in zip(names, counts, strict=True) if c}


def _chain(layers: list[Any], x: Array, length: int) -> tuple[list[Any], list[Any], list[Any]]:
    """(all Processes, the neurons, the sinks) for an input (step, N_i)."""
    from lava.proc.dense.process import Dense
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.utils.weightutils import SignMode

    fixed = isinstance(layers[0], FixedLayer)
    data = np.zeros((x.shape[1], length), np.int32 if fixed else np.float64)
    data[:, : len(x)] = x.T
    source = Source(data=data)
    processes, neurons, sinks, out = [source], [], [], source.s_out
    for phase, layer in enumerate(layers, start=1):
        if fixed:
            synapse = Dense(
                weights=2 * layer.kernel.astype(np.int32), num_message_bits=MESSAGE_BITS,
                sign_mode=SignMode.MIXED,
            )  # fmt: skip
        else:
            synapse = Dense(weights=np.asarray(layer.kernel, float), num_message_bits=FLOAT_BITS)
        neuron, sink = neuron_process(layer, phase), Sink(shape=(len(layer.kernel),), buffer=length)
        out.connect(synapse.s_in)
        synapse.a_out.connect(neuron.a_in)
        neuron.s_out.connect(sink.a_in)
        out = neuron.s_out
        processes += [synapse, neuron, sink]
        neurons.append(neuron)
        sinks.append(sink)
    return processes, neurons, sinks


def neuron_process(layer: GradedLayer | FixedLayer, phase: int) -> Any:
    """The Lava Process of a layer's neurons, for Lava programs of one's own.

    In integers its input comes from a Dense of 2 `kernel`, sign mode MIXED, and 8-bit messages.

    Args:
        phase: how many connections lie between the source and the layer.
    """
    from grasp_plugin.processes.hdlif.process import GradedHDLIF

    shape, common = (len(layer.kernel),), {"steps": layer.steps, "phase": phase}
    if isinstance(layer, FixedLayer):
        return GradedHDLIF(
            shape=shape, decay=layer.dv, vth=layer.vth, gain=1, offset=layer.bias,
            q_mult=layer.q_mult, q_shift=layer.q_shift, act_shift=layer.act_shift, top=layer.top,
            parallel=layer.parallel, **common,
        )  # fmt: skip
    return GradedHDLIF(
        shape=shape, decay=layer.decay, vth=layer.theta, gain=layer.gain, offset=layer.offset,
        code_step=layer.code_step, top=layer.top, parallel=layer.parallel, **common,
    )  # fmt: skip


def _wide(rows: Array, size: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(rows, (len(rows), size)))
