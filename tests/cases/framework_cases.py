"""Framework models by name, for the parity and round-trip tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

IN, HIDDEN, OUT, BATCH, STEPS = 12, 16, 6, 2, 120
Make = Callable[[], tuple[nn.Module, tuple[int, ...]]]


def snntorch_cases() -> dict[str, Make]:
    import snntorch as snn

    cases: dict[str, Make] = {}

    def chain(*make: Callable[[], nn.Module], shape: tuple[int, ...] = (IN,)) -> Make:
        return lambda: (Chain(*(one() for one in make)), shape)

    def dense(neuron: Callable[[int], nn.Module], bias: bool = True) -> Make:
        return chain(
            lambda: strong(nn.Linear(IN, HIDDEN, bias)),
            lambda: neuron(HIDDEN),
            lambda: strong(nn.Linear(HIDDEN, OUT, bias)),
            lambda: neuron(OUT),
        )

    rules = [("subtract", True), ("subtract", False), ("zero", True), ("zero", False),
             ("none", True), ("none", False)]  # fmt: skip
    for mechanism, delay in rules:
        o: dict[str, Any] = {
            "reset_mechanism": mechanism,
            "reset_delay": delay,
            "init_hidden": True,
        }
        tag = f"{mechanism}-{'delay' if delay else 'nodelay'}"
        cases[f"Leaky-{tag}"] = dense(lambda n, o=o: snn.Leaky(0.9, **o))
        cases[f"Synaptic-{tag}"] = dense(lambda n, o=o: snn.Synaptic(0.6, 0.8, threshold=2.0, **o))
        cases[f"RLeaky-{tag}"] = dense(lambda n, o=o: snn.RLeaky(0.9, linear_features=n, **o))
        if delay:
            cases[f"RSynaptic-{tag}"] = dense(
                lambda n, o=o: snn.RSynaptic(0.6, 0.8, linear_features=n, threshold=2.0, **o)
            )
            short = {k: v for k, v in o.items() if k != "reset_delay"}
            cases[f"Lapicque-{tag}"] = dense(
                lambda n, o=short: snn.Lapicque(beta=0.7, threshold=0.23, **o)
            )
    h = {"init_hidden": True}
    cases |= {
        "Leaky-no-bias": dense(lambda n: snn.Leaky(0.9, **h), bias=False),
        "Leaky-beta-1": dense(lambda n: snn.Leaky(1.0, **h)),
        "Leaky-beta-0": dense(lambda n: snn.Leaky(0.0, threshold=0.6, **h)),
        "Leaky-beta-above-1": dense(lambda n: snn.Leaky(1.3, **h)),
        "Leaky-some-beta-1": dense(lambda n: snn.Leaky(torch.rand(n).round(decimals=0), **h)),
        "Synaptic-alpha-beta-1": dense(lambda n: snn.Synaptic(1.0, 1.0, threshold=9.0, **h)),
        "Leaky-vectors": dense(
            lambda n: snn.Leaky(torch.rand(n), threshold=torch.rand(n) + 0.5, **h)
        ),
        "Synaptic-vectors": dense(
            lambda n: snn.Synaptic(
                torch.rand(n),
                torch.rand(n),
                threshold=torch.rand(n) + 0.5,
                reset_mechanism="zero",
                **h,
            )
        ),
        "RLeaky-scalar-V": dense(lambda n: snn.RLeaky(0.9, V=0.7, all_to_all=False, **h)),
        "RLeaky-vector-V": dense(
            lambda n: snn.RLeaky(0.9, V=torch.randn(n), all_to_all=False, **h)
        ),
        "RSynaptic-vector-V": dense(
            lambda n: snn.RSynaptic(
                0.5,
                0.9,
                V=torch.randn(n),
                all_to_all=False,
                threshold=2.0,
                reset_mechanism="zero",
                **h,
            )
        ),
        "Lapicque-RC": dense(
            lambda n: snn.Lapicque(R=2.0, C=5.0, time_step=1, threshold=0.17, **h)
        ),
        "Leaky-graded": dense(lambda n: snn.Leaky(0.9, graded_spikes_factor=0.5, **h)),
        "RLeaky-graded": dense(lambda n: graded(snn.RLeaky(0.9, linear_features=n, **h))),
        "Leaky-negative-threshold-zero": dense(
            lambda n: snn.Leaky(0.9, threshold=-0.3, reset_mechanism="zero", **h)
        ),
        "conv": chain(
            lambda: strong(nn.Conv2d(2, 4, (3, 5), stride=(1, 2), padding=(1, 0), groups=2)),
            lambda: snn.Leaky(0.8, **h),
            lambda: nn.AvgPool2d(2),
            lambda: strong(nn.Conv2d(4, 3, 3, padding=2, dilation=2, bias=False)),
            lambda: snn.Leaky(0.9, reset_mechanism="zero", threshold=0.3, **h),
            lambda: nn.Flatten(),
            lambda: strong(nn.Linear(12, OUT)),
            lambda: snn.Leaky(0.9, **h),
            shape=(2, 8, 9),
        ),
        "conv-same-pool-padding": chain(
            lambda: strong(nn.Conv2d(1, 3, 3, padding="same")),
            lambda: snn.Leaky(0.8, **h),
            lambda: nn.AvgPool2d(3, stride=2, padding=1),
            lambda: snn.Leaky(0.8, threshold=0.3, **h),
            lambda: nn.LPPool2d(1, 2),
            lambda: snn.Leaky(0.8, threshold=1.5, **h),
            shape=(1, 8, 8),
        ),
        "conv1d": chain(
            lambda: strong(nn.Conv1d(2, 4, 3, stride=2, padding=1)),
            lambda: snn.Synaptic(0.5, 0.8, **h),
            lambda: nn.Flatten(),
            lambda: strong(nn.Linear(20, OUT)),
            lambda: snn.Leaky(0.8, **h),
            shape=(2, 9),
        ),
        "conv-recurrent": chain(
            lambda: strong(nn.Conv2d(1, 2, 3)),
            lambda: snn.RLeaky(0.813, conv2d_channels=2, kernel_size=3, threshold=0.7, **h),
            lambda: snn.RLeaky(
                0.813, all_to_all=False, V=0.437, reset_mechanism="zero", threshold=0.61, **h
            ),
            shape=(1, 6, 6),
        ),
        "batch-norm": chain(
            lambda: strong(nn.Conv2d(1, 2, 3, bias=False)),
            lambda: settled(nn.BatchNorm2d(2)),
            lambda: snn.Leaky(0.8, **h),
            lambda: nn.Dropout(0.5),
            lambda: settled(nn.BatchNorm2d(2)),
            lambda: nn.Flatten(),
            lambda: strong(nn.Linear(32, OUT, bias=False)),
            lambda: settled(nn.BatchNorm1d(OUT)),
            lambda: snn.Leaky(0.9, **h),
            lambda: settled(nn.BatchNorm1d(OUT)),
            lambda: snn.Leaky(0.5, threshold=0.3, **h),
            shape=(1, 6, 6),
        ),
        "skip": lambda: (SnnSkip(), (IN,)),
        "time-loop": lambda: (SnnTimeLoop(), (IN,)),
        "feedback": lambda: (SnnFeedback(), (IN,)),
    }
    return cases


def norse_cases() -> dict[str, Make]:
    import norse.torch as norse

    t = torch.as_tensor

    def box(**p: Any) -> norse.LIFBoxCell:
        return norse.LIFBoxCell(norse.LIFBoxParameters(**({"v_th": t(0.11)} | p)))

    def cell(**p: Any) -> norse.LIFCell:
        return norse.LIFCell(norse.LIFParameters(**({"v_th": t(0.3)} | p)))

    def dense(neuron: Callable[[int], nn.Module], bias: bool = True) -> Make:
        return lambda: (
            norse.SequentialState(
                strong(nn.Linear(IN, HIDDEN, bias)), neuron(HIDDEN),
                strong(nn.Linear(HIDDEN, OUT, bias)), neuron(OUT),
            ),
            (IN,),
        )  # fmt: skip

    def sequential(*make: Callable[[], nn.Module], shape: tuple[int, ...] = (IN,)) -> Make:
        return lambda: (norse.SequentialState(*(one() for one in make)), shape)

    def recurrent_cell() -> nn.Module:
        p = norse.LIFParameters(v_th=t(0.5), v_leak=t(0.1), v_reset=t(-0.1))
        return norse.LIFRecurrentCell(IN, HIDDEN, p)

    return {
        "LIFBoxCell": dense(lambda n: box()),
        "LIFBoxCell-no-bias": dense(lambda n: box(), bias=False),
        "LIFBoxCell-leak-reset": dense(lambda n: box(v_leak=t(0.07), v_reset=t(-0.1))),
        "LIFBoxCell-reset-above-0": dense(lambda n: box(v_reset=t(0.03))),
        "LIFBoxCell-subtract": dense(lambda n: box(reset_method=norse.reset_subtract)),
        "LIFBoxCell-subtract-leak": dense(
            lambda n: box(reset_method=norse.reset_subtract, v_leak=t(0.05))
        ),
        "LIFBoxCell-vectors": dense(
            lambda n: box(
                tau_mem_inv=50 + 100 * torch.rand(n),
                v_th=0.08 + 0.1 * torch.rand(n),
                v_leak=0.07 * torch.rand(n),
                v_reset=-0.1 * torch.rand(n),
            )
        ),
        "LIFCell": dense(lambda n: cell()),
        "LIFCell-leak-reset": dense(lambda n: cell(v_leak=t(0.1), v_reset=t(-0.1))),
        "LIFRecurrentCell": sequential(
            recurrent_cell, lambda: strong(nn.Linear(HIDDEN, OUT)), lambda: cell()
        ),
        "IAFCell": dense(lambda n: norse.IAFCell()),
        "IAFCell-reset": dense(lambda n: norse.IAFCell(norse.IAFParameters(v_reset=t(-0.2)))),
        "LI-readouts": sequential(
            lambda: strong(nn.Linear(IN, HIDDEN)),
            lambda: box(),
            lambda: nn.Linear(HIDDEN, OUT),
            lambda: norse.LICell(norse.LIParameters(v_leak=t(0.1))),
            lambda: nn.Linear(OUT, OUT),
            lambda: norse.LIBoxCell(norse.LIBoxParameters(v_leak=t(0.1))),
        ),
        "LILinearCell": sequential(
            lambda: strong(nn.Linear(IN, HIDDEN)),
            lambda: box(),
            lambda: norse.LILinearCell(HIDDEN, OUT),
        ),
        "conv": sequential(
            lambda: strong(nn.Conv2d(2, 4, (3, 5), stride=(1, 2))),
            lambda: box(),
            lambda: nn.AvgPool2d(2),
            lambda: nn.Flatten(),
            lambda: strong(nn.Linear(12, OUT)),
            lambda: cell(),
            shape=(2, 8, 9),
        ),
        "RecurrentSequential": lambda: (
            norse.RecurrentSequential(strong(nn.Linear(IN, IN)), box()),
            (IN,),
        ),
        "RecurrentSequential-two": lambda: (
            norse.RecurrentSequential(
                strong(nn.Linear(IN, HIDDEN)), box(), strong(nn.Linear(HIDDEN, IN)), cell()
            ),
            (IN,),
        ),
        "LIF-time": sequential(
            lambda: norse.Lift(strong(nn.Conv2d(1, 2, 3))),
            lambda: norse.LIF(norse.LIFParameters(v_th=t(0.5))),
            lambda: nn.Flatten(2),
            lambda: strong(nn.Linear(32, HIDDEN)),
            lambda: norse.IAF(),
            lambda: norse.LIFRecurrent(HIDDEN, OUT, norse.LIFParameters(v_th=t(0.5))),
            lambda: norse.LI(),
            shape=(1, 6, 6),
        ),
        "Lift-cell": sequential(
            lambda: norse.Lift(norse.SequentialState(strong(nn.Linear(IN, OUT)), box())),
        ),
    }


TIMED = {"time-loop", "LIF-time", "Lift-cell"}


def strong(layer: nn.Module) -> nn.Module:
    """Weights large enough for lively spiking."""
    with torch.no_grad():
        layer.weight.mul_(3.0)
    return layer


def graded(neuron: nn.Module) -> nn.Module:
    neuron.graded_spikes_factor = torch.tensor(0.75)
    return neuron


def promoted(model: nn.Module) -> nn.Module:
    """Spikes in the model's dtype: snnTorch's are float32, and a 0-d factor does not promote them,
    so its recurrent neurons cannot otherwise run in float64."""
    for module in model.modules():
        if hasattr(module, "graded_spikes_factor"):
            module.graded_spikes_factor = module.graded_spikes_factor.reshape(1)
    return model


def settled(norm: nn.Module) -> nn.Module:
    """A batch norm as after training."""
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
    return norm


class Chain(nn.Module):
    """Layers in a row; snnTorch's spikes are float32, so cast them back for float64 models."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        for layer in self.layers:
            x = layer(x).to(dtype)
        return x


class SnnSkip(nn.Module):
    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.fc1, self.fc2 = strong(nn.Linear(IN, IN)), strong(nn.Linear(IN, IN))
        self.lif1, self.lif2 = snn.Leaky(0.9), snn.Leaky(0.8)

    def forward(self, x: torch.Tensor, mem1: Any, mem2: Any) -> Any:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk1 = spk1.to(x.dtype)
        spk2, mem2 = self.lif2(self.fc2(spk1) + spk1 + x, mem2)
        return spk2, mem1, mem2


class SnnTimeLoop(nn.Module):
    """The usual loop of the snnTorch tutorials, with a hand-made recurrence."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.fc1, self.rec = strong(nn.Linear(IN, HIDDEN)), nn.Linear(HIDDEN, HIDDEN)
        self.lif1, self.fc2 = snn.Leaky(0.9), strong(nn.Linear(HIDDEN, OUT))
        self.lif2 = snn.Synaptic(0.6, 0.8, threshold=2.0)

    def forward(self, x: torch.Tensor) -> Any:
        mem1 = self.lif1.init_leaky()
        syn2, mem2 = self.lif2.init_synaptic()
        spk1 = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        spikes, membranes = [], []
        for t in range(x.size(0)):
            cur1 = self.fc1(x[t])
            cur1 += self.rec(spk1)
            spk1, mem1 = self.lif1(cur1, mem1)
            spk1 = spk1.to(x.dtype)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes, dim=0), torch.stack(membranes, dim=0)


class SnnFeedback(nn.Module):
    """Two layers; the second feeds back to the first, its spikes kept on the module."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.fc1, self.fc2 = strong(nn.Linear(IN, HIDDEN)), strong(nn.Linear(HIDDEN, OUT))
        self.back = nn.Linear(OUT, HIDDEN)
        self.lif1 = snn.RLeaky(0.9, linear_features=HIDDEN, init_hidden=True)
        self.lif2 = snn.Leaky(0.8, init_hidden=True)
        self.last = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = torch.zeros(x.shape[0], OUT, dtype=x.dtype) if self.last is None else self.last
        spk1 = self.lif1(self.fc1(x) + self.back(last)).to(x.dtype)
        self.last = self.lif2(self.fc2(spk1)).to(x.dtype)
        return self.last


def inputs(shape: tuple[int, ...], dtype: torch.dtype, steps: int = STEPS) -> torch.Tensor:
    return (torch.rand(steps, BATCH, *shape) < 0.3).to(dtype)


def sample_of(name: str, x: torch.Tensor) -> torch.Tensor:
    return x[:4] if name in TIMED else x[0]


def run(model: nn.Module, x: torch.Tensor, timed: bool) -> torch.Tensor:
    """The framework's own output over all steps, (time, batch, ...)."""
    import inspect

    stateful = "state" in inspect.signature(model.forward).parameters
    required = [
        None for p in list(inspect.signature(model.forward).parameters.values())[1:]
        if p.default is inspect.Parameter.empty
    ]  # fmt: skip
    with torch.no_grad():
        if timed:
            return first(model(x))
        outs, state = [], None
        for now in x:
            if stateful:
                out, state = model(now, state)
            else:
                out = model(now, *required)
            outs.append(first(out))
        return torch.stack(outs)


def first(out: Any) -> torch.Tensor:
    return first(out[0]) if isinstance(out, tuple) else out
