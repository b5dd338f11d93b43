"""MAML: learn the parameters from which a step or a few on a handful of samples solve a new task.

    theta_q = Q_o(theta)                                        outer grid; none: theta
    phi_0 = theta_q,   phi_k+1 = Q_i(inner(phi_k; support))     n inner steps, inner grid
    L(theta, a) = mean over tasks of loss(f_phi_n(query), y)

    name        inner gradient   what adapts                step sizes a
    MAML        order 2          all                        fixed
    FOMAML      order 1          all                        fixed
    ANIL        either           the head (`anil`)          either
    BOIL        either           all but the head (`boil`)  either
    Meta-SGD    either           either                     learned, one a parameter entry

    dL/dtheta, one step: (I - a H) g at order 2, g at order 1;   dL/da = -g . g_inner in both
    g = grad_phi L(query), H the Hessian of the support loss at theta

For spikes these are the derivatives of the surrogates' formal second-order expansion, not of the
loss itself, which is piecewise constant (specs/meta-learning.md 7).

References:
    Finn, Abbeel & Levine, ICML 2017 (MAML, FOMAML); Raghu et al., ICLR 2020 (ANIL); Oh et al.,
    ICLR 2021 (BOIL); Li et al., 2017, arXiv:1707.03141 (Meta-SGD); Stewart & Neftci, NCE 2(4)
    044002, 2022 (spiking, quantised; nmi-lab/snn_maml maml.py:158-219, Apache-2.0, not copied).
Departures:
    snn_maml runs the first steps of a sequence without the adapted parameters (its burn-in); here
    every step is run with them. Its cosine schedule, stepped per batch, is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.meta.grids import Grid
from grasp_plugin.learning.meta.inner import Gradient, Inner, Loss, Params
from grasp_plugin.learning.meta.tasks import Tasks
from grasp_plugin.learning.meta.twice import Function, check_model

LEARN = ("none", "parameter", "entry")
_UNMAPPED = ("vmap", "setup_context", "doesn't have storage")  # in what torch.func says
Grids = Grid | Mapping[str, Grid] | None


class MAML(nn.Module):
    """A model with what it takes to adapt it; `forward` is the meta-loss of a batch of tasks.

    Meta-train it as any module: `maml(tasks).backward()`, an optimiser over `maml.parameters()`.
    Over several GPUs or machines (torchrun) wrap it in `torch.nn.parallel.DistributedDataParallel`
    and give each process its own tasks, equally many: the gradient is that of all tasks together.

    Args:
        model: inputs (time, sample, neuron...) to logits (sample, class), from rest at every call.
            Its parameters are theta; adaptation never changes them.
        run: (model, x) -> logits, if the model's own forward is another, e.g. one step.
        inner: a step of adaptation; None: `Gradient` of `loss`.
        loss: of the query, a mean over samples.
        steps: inner steps n, >= 1.
        step_size: a, to begin with; one, or by parameter name.
        learn: "none": a is fixed; "parameter": one learned for each tensor; "entry": each entry.
        adapt: names of the parameters that adapt, as in `model.named_parameters()`; None: all.
        order: 2 or 1, of the inner gradient when meta-training.
        outer_grid, inner_grid: for all parameters that adapt, or by name; None: not rounded.
        mapped: run the tasks of a batch as one with `torch.func.vmap`. Faster for small models;
            takes no custom `autograd.Function` that `torch.func` cannot map (as snnTorch has).
        surrogates: spike functions to test, see `twice.check_model`.

    Raises:
        Invalid: an unknown name or option, steps < 1.
        Refused: at the first `forward`: order 2 with a surrogate that cannot be differentiated
            twice, or a model that carries its state from one call to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        run: Callable[[nn.Module, Tensor], Tensor] | None = None,
        inner: Inner | None = None,
        loss: Loss = functional.cross_entropy,
        steps: int = 1,
        step_size: float | Mapping[str, float] = 0.1,
        learn: str = "none",
        adapt: Collection[str] | None = None,
        order: int = 2,
        outer_grid: Grids = None,
        inner_grid: Grids = None,
        mapped: bool = False,
        surrogates: Sequence[Function] = (),
    ) -> None:
        super().__init__()
        self._runner = _Runner(model, run)
        known = tuple(name for name, _ in model.named_parameters())
        self.adapted = known if adapt is None else tuple(adapt)
        _check(known, self.adapted, steps, learn, order)
        self.loss, self.steps, self.order, self.mapped = loss, steps, order, mapped
        self.inner = Gradient(loss, mapped) if inner is None else inner
        self.outer_grid, self.inner_grid = outer_grid, inner_grid
        self._surrogates, self._checked = tuple(surrogates), False
        for i, name in enumerate(self.adapted):
            value = model.get_parameter(name)
            shape = value.shape if learn == "entry" else ()
            size = step_size if isinstance(step_size, (int, float)) else step_size[name]
            a = torch.full(shape, float(size), dtype=value.dtype, device=value.device)
            if learn == "none":
                self.register_buffer(f"step_size_{i}", a)
            else:
                self.register_parameter(f"step_size_{i}", nn.Parameter(a))

    @property
    def model(self) -> nn.Module:
        """The model, with theta."""
        return self._runner.model

    def step_sizes(self) -> Params:
        """a by the name of what adapts."""
        return {name: getattr(self, f"step_size_{i}") for i, name in enumerate(self.adapted)}

    def initial(self) -> Params:
        """phi_0: the model's parameters, those that adapt on the outer grid."""
        theta = dict(self.model.named_parameters())
        return theta | {n: _rounded(self.outer_grid, n, theta[n]) for n in self.adapted}

    def logits(self, phi: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """f_phi(x), (sample, class), from inputs (time, sample, neuron...)."""
        out: Tensor = functional_call(self._runner, {f"model.{k}": v for k, v in phi.items()}, (x,))
        return out

    def adapt(
        self, x: Tensor, y: Tensor, *, steps: int | None = None, order: int = 1,
        phi: Params | None = None,
    ) -> Params:  # fmt: skip
        """phi_n by name, from support inputs (time, sample, neuron...) and labels (sample,).

        Args:
            steps: None: those of the learner. order: 2 keeps the graph to theta.
            phi: parameters to go on from; None: `initial()`.
        """
        phi = self.initial() if phi is None else phi
        for _ in range(self.steps if steps is None else steps):
            phi = self.inner.step(self.logits, phi, self.step_sizes(), x, y, order)
            phi |= {n: _rounded(self.inner_grid, n, phi[n]) for n in self.adapted}
        return phi

    def forward(self, tasks: Tasks) -> Tensor:
        """L (), the mean query loss of the tasks after adaptation, with its graph."""
        if not self._checked:
            self._check_once(tasks.support_x[0])
        return self._each(self._after, tasks).mean()

    def _after(self, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        phi = self.adapt(x, y, order=self.order)
        return self.loss(self.logits(phi, query_x), query_y)

    @torch.no_grad()
    def evaluate(self, tasks: Tasks, steps: int | None = None) -> Tensor:
        """Share of query samples that are right (task,), after first-order adaptation."""
        steps = self.steps if steps is None else steps

        def score(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            logits = self.logits(self.adapt(x, y, steps=steps), query_x)
            return (logits.argmax(1) == query_y).to(logits.dtype).mean()

        return self._each(score, tasks)

    def _each(self, work: Callable[..., Tensor], tasks: Tasks) -> Tensor:
        """work's result for each task (task,)."""
        if not self.mapped:
            return torch.stack([work(*task) for task in tasks])
        parts = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        try:
            out: Tensor = vmap(work, randomness="different")(*parts)
        except RuntimeError as error:
            if not any(clue in str(error) for clue in _UNMAPPED):
                raise
            raise Refused(
                type(self.model).__name__, "expected a model and an inner step that torch.func can "
                f"map over tasks, got: {str(error).partition('. ')[0]}", "Pass mapped=False",
            ) from error  # fmt: skip
        return out

    def _check_once(self, x: Tensor) -> None:
        theta = dict(self.model.named_parameters())
        with torch.no_grad():
            first, again = self.logits(theta, x), self.logits(theta, x)
        if not torch.equal(first, again):
            raise Refused(
                type(self.model).__name__, "expected the same output for the same input, got "
                "another at the second call: a state or a random number is carried over",
                "Start from rest in every call (snnTorch: init_hidden=False), without dropout",
            )  # fmt: skip
        if self.order == 2:
            check_model(lambda z: self.logits(theta, z), self.model, x, self._surrogates)
        self._checked = True


class _Runner(nn.Module):
    """A model whose forward is `run`, so that `functional_call` reaches it."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.model, self._run = model, run

    def forward(self, x: Tensor) -> Any:
        return self.model(x) if self._run is None else self._run(self.model, x)


def anil(model: nn.Module, head: Collection[str]) -> tuple[str, ...]:
    """The parameters of modules `head` (paths) alone: what ANIL adapts.

    Raises:
        Invalid: a path without parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    for path in head:
        if not any(_within(name, path) for name in names):
            raise Invalid(path, f"expected a path of some of {', '.join(names)}", "Check it")
    return tuple(n for n in names if any(_within(n, path) for path in head))


def boil(model: nn.Module, head: Collection[str]) -> tuple[str, ...]:
    """All parameters but those of modules `head`: what BOIL adapts."""
    own = anil(model, head)
    return tuple(name for name, _ in model.named_parameters() if name not in own)


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _rounded(grids: Grids, name: str, value: Tensor) -> Tensor:
    grid = grids.get(name) if isinstance(grids, Mapping) else grids
    return value if grid is None else grid(value)


def _check(
    known: Sequence[str], adapted: Sequence[str], steps: int, learn: str, order: int
) -> None:
    for name in adapted:
        if name not in known:
            raise Invalid(name, f"expected a parameter, one of {', '.join(known)}", "Check adapt")
    if steps < 1 or order not in (1, 2) or learn not in LEARN or not adapted:
        raise Invalid(
            "MAML", f"expected steps >= 1, order 1 or 2, learn in {LEARN} and something to adapt, "
            f"got {steps}, {order}, {learn!r}, {len(adapted)} parameters", "Correct them",
        )  # fmt: skip
