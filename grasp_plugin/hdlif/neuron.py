"""The HD-LIF neuron as a torch module, and what its gradients are.

Per step, with chi = 1 where m > theta (`neurons.hdlif`):

    BPTT      dL/dm_t = sum_{i>=t} dL/ds_i chi_i prod_{j=t+1..i} lambda_j (1 - chi_{j-1})
    online    dL/dm_t = dL/ds_t chi_t                    v_{t-1} is a constant
    trace     dL/dW   = sum_t (dL/ds_t chi_t) e_t,  e_t = lambda_t (1 - chi_{t-1}) e_{t-1} + x_t

At most one term of BPTT's sum is not 0: that of the first spike at or after t. Online is BPTT
masked by "did it fire now". Both are given the same dL/ds; below another spiking layer that dL/ds
itself holds paths through later steps, which online leaves out. So online equals BPTT

    in every layer     if all neurons are parallel (or lambda = 0)
    in all W           if every neuron fires at every step
    in the last hidden layer's W    in trace mode

and in general it does not. What holds always: the memory of training does not grow with T.

References:
    specs/hmdf.md 2 to 4; arXiv:2410.07547 v3 (Theorem 4.2), its released `modules.py`.
Departures:
    The trace mode is not in the paper. A parallel neuron counts its steps, so that theta_t is the
    step's own; the released code stays at theta_1. Steps beyond T are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.hdlif.quantisers import quantised_spikes
from grasp_plugin.neurons import hdlif

State = dict[str, Any]
GRAD_MODES = ("bptt", "online", "trace")
SPIKES = ("float", "4bit")


class HDLIF(nn.Module):
    """Graded-spike neurons with a decay and a threshold for each step of a sample.

    lambda_t = sigmoid(a_t), theta_t = sigmoid(b_t), a = b = 0 at first: both 0.5; () each.

    `forward(x, state=None) -> (out, state)`: state None is rest, what comes back goes into the
    next step; it is Norse's interface (`SequentialState`) and serves a snnTorch loop as
    `spk, mem = neuron(cur, mem)`. With init_hidden=True the module keeps its state and gives `out`
    alone, as snnTorch's do in nn.Sequential; call `reset_state` before each sample.

    Args:
        steps: T; a step beyond it is refused.
        grad_mode: "bptt", "online" or "trace" (inside an `HDLayer` only: it needs the weights).
        parallel: no memory: out = max(I - theta_t, 0).
        spikes: "float": s*; "4bit": Q(s*).
        shared: one lambda and one theta for all steps, as hardware has them.
        mem_bn: channels of a normalisation of the membrane, or None:
            m^ = sigmoid(p_t) m + sigmoid(r_t) BN_t(m), one BatchNorm a step.
        init_hidden: keep the state inside.

    Shapes:
        x, out: (batch, neuron) or (batch, channel, height, width)
        state: {"v": like x, "t": int, "margin": m - theta of the last step}

    Raises:
        Invalid: unknown options; a step beyond T; a state of another shape than x.
        Refused: mem_bn beside parallel; trace mode without an `HDLayer`.

    Example:
        >>> neuron = HDLIF(4, grad_mode="online", spikes="4bit")
        >>> out, state = neuron(torch.tensor([[0.2, 1.6]]))
        >>> out.tolist(), state["v"].tolist()[0][1]
        ([[0.0, 1.0]], 0.5)
    """

    def __init__(
        self,
        steps: int,
        *,
        grad_mode: str = "bptt",
        parallel: bool = False,
        spikes: str = "float",
        shared: bool = False,
        mem_bn: int | None = None,
        init_hidden: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _option("grad_mode", grad_mode, GRAD_MODES)
        _option("spikes", spikes, SPIKES)
        if steps < 1:
            raise Invalid("HDLIF", f"expected steps >= 1, got {steps}", "Pass T of a sample")
        if parallel and mem_bn is not None:
            raise Refused(
                "HDLIF", "expected no mem_bn on a parallel neuron, got both: it has no membrane",
                "Normalise its current instead",
            )  # fmt: skip
        self.steps, self.grad_mode, self.parallel = steps, grad_mode, parallel
        self.spikes, self.shared, self.init_hidden = spikes, shared, init_hidden
        count = 1 if shared else steps
        self.decay_logit: nn.Parameter | None = None
        if not parallel:
            self.decay_logit = nn.Parameter(torch.zeros(count, dtype=dtype))
        self.theta_logit = nn.Parameter(torch.zeros(count, dtype=dtype))
        self.mem_norms: nn.ModuleList | None = None
        if mem_bn is not None:
            self.mem_norms = nn.ModuleList(MemBN(mem_bn, dtype=dtype) for _ in range(count))
        self._held: State | None = None

    def decay(self, t: int) -> Tensor:
        """lambda_t of step t from 0, (); 0 of a parallel neuron.

        Raises:
            Invalid: a step beyond T; so does `theta`.
        """
        if self.decay_logit is None:
            return torch.zeros_like(self.theta_logit[0])
        return torch.sigmoid(self.decay_logit[self._at(t)])

    def theta(self, t: int) -> Tensor:
        """theta_t, ()."""
        return torch.sigmoid(self.theta_logit[self._at(t)])

    def _at(self, t: int) -> int:
        if not 0 <= t < self.steps:
            raise Invalid(
                "HDLIF", f"expected at most {self.steps} steps, got step {t + 1}",
                "Start each sample with state=None (reset_state), or make it with more steps",
            )  # fmt: skip
        return 0 if self.shared else t

    def reset_state(self) -> None:
        """Back to rest, for init_hidden=True."""
        self._held = None

    def forward(self, x: Tensor, state: State | None = None) -> Any:
        if self.grad_mode == "trace":
            raise Refused(
                "HDLIF", "expected the weights of the neuron for grad_mode='trace', got its "
                "current alone: a trace is kept for each synapse", "Use HDLayer(linear, neuron)",
            )  # fmt: skip
        if self.init_hidden:
            if state is not None:
                raise Invalid("HDLIF", "expected no state with init_hidden, got one", "Leave it")
            out, self._held = self.advance(x, self._held)
            return out
        return self.advance(x, state)

    def advance(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One step; (out, state). state["margin"] is m - theta, which traces and rules read."""
        t = 0 if state is None else int(state["t"])
        theta = self.theta(t)
        v = torch.zeros_like(x) if state is None else state["v"]
        if v.shape != x.shape:
            raise Invalid(
                "HDLIF", f"expected a state of shape {tuple(x.shape)}, got {tuple(v.shape)}",
                "Start each sample with state=None",
            )  # fmt: skip
        if self.grad_mode != "bptt":
            v = v.detach()
        if self.mem_norms is None:
            s, after, margin = hdlif.step(
                x, {"v": v}, decay=self.decay(t), theta=theta, parallel=self.parallel
            )
            v = after["v"]
        else:
            m = self.mem_norms[self._at(t)](self.decay(t) * v + x)
            s, v = hdlif.fire(m, theta)
            margin = m - theta
        out = quantised_spikes(s) if self.spikes == "4bit" else s
        return out, {"v": v, "t": t + 1, "margin": margin.detach()}

    def extra_repr(self) -> str:
        return (
            f"{self.steps}, grad_mode={self.grad_mode!r}, spikes={self.spikes!r}, "
            f"parallel={self.parallel}, shared={self.shared}"
        )


class MemBN(nn.Module):
    """m^ = alpha m + beta BN(m), alpha = sigmoid(p), beta = sigmoid(r); both 0.5 at first.

    Args:
        channels: of m, (batch, channel) or (batch, channel, height, width).

    References:
        specs/hmdf.md 3.
    """

    def __init__(self, channels: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.mem_logit = nn.Parameter(torch.zeros((), dtype=dtype))
        self.bn_logit = nn.Parameter(torch.zeros((), dtype=dtype))
        self.norm = _AnyNorm(channels, dtype=dtype)

    def forward(self, m: Tensor) -> Tensor:
        out: Tensor = torch.sigmoid(self.mem_logit) * m + torch.sigmoid(self.bn_logit) * self.norm(
            m
        )
        return out

    def folded(self) -> tuple[Tensor, Tensor]:
        """(g, c), (channel,) each, of `neurons.hdlif.fold_mem_bn` with the running statistics."""
        norm = self.norm
        with torch.no_grad():
            g, c = hdlif.fold_mem_bn(
                torch.sigmoid(self.mem_logit), torch.sigmoid(self.bn_logit), scale=norm.weight,
                shift=norm.bias, mean=norm.running_mean, var=norm.running_var, eps=norm.eps,
            )  # fmt: skip
        return g, c


class _AnyNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over channel 1 of any number of dimensions from 2 on."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise Invalid("MemBN", f"expected (batch, channel, ...), got {input.dim()}-D", "Batch")


def _option(name: str, got: str, options: tuple[str, ...]) -> None:
    if got not in options:
        raise Invalid("HDLIF", f"expected {name} in {options}, got {got!r}", "Pass one of them")
