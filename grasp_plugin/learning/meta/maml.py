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
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.meta import checks
from grasp_plugin.learning.meta.checks import Grids
from grasp_plugin.learning.meta.inner import Gradient, Inner, Loss, Params
from grasp_plugin.learning.meta.tasks import Tasks
from grasp_plugin.learning.meta.trial import buffers_kept, check_runs, check_used
from grasp_plugin.learning.meta.twice import Function, check_model

_UNMAPPED = ("vmap", "setup_context", "doesn't have storage")  # in what torch.func says


class MAML(nn.Module):
    """A model with what it takes to adapt it; `forward` is the meta-loss of a batch of tasks.

    Meta-train it as any module: `maml(tasks).backward()`, an optimiser over `maml.parameters()`.
    Over several GPUs or machines (torchrun) wrap it in `torch.nn.parallel.DistributedDataParallel`
    and give each process its own tasks, equally many: the gradient is that of all tasks together.

    Args:
        model: inputs (time, sample, neuron...) to logits (sample, class), from rest at every call.
            Its parameters are theta; adaptation never changes them.
        run: (model, x) -> logits, if the model's own forward is another, e.g. one step.
        inner: a step of adaptation; None: `Gradient()`. A `Gradient` without a loss takes `loss`,
            and is mapped where the learner is.
        loss: of the query, a mean over samples.
        steps: inner steps n, >= 1.
        step_size: a >= 0, to begin with; one, or by parameter name.
        learn: "none": a is fixed; "parameter": one learned for each tensor; "entry": each entry.
        adapt: names of the parameters that adapt, as in `model.named_parameters()`; None: all.
        order: 2 or 1, of the inner gradient when meta-training.
        outer_grid: for all parameters, or for those it names, whether they adapt or not; None: not
            rounded.
        inner_grid: likewise, for those that adapt alone.
        mapped: run the tasks of a batch as one with `torch.func.vmap`. Faster for small models;
            takes no custom `autograd.Function` that `torch.func` cannot map (as snnTorch has).
        surrogates: spike functions to test, see `twice.check_model`.

    A model is tried before `forward`, `adapt` or `evaluate` first uses it in an order, and again
    for inputs of another dtype or other neurons, and after train() or eval().

    Raises:
        Invalid: an unknown name or option, steps < 1, a step size < 0 or not finite. When used:
            inputs that are not finite or in another dtype than the parameters, labels without a
            logit, a model that does not return finite logits (sample, class), a parameter to adapt
            that the inner loss does not use.
        Refused: when used: a model that carries a state or a buffer from one call to the next;
            order 2 with a surrogate that cannot be differentiated twice.
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
        self.adapted = checks.adapted_names(known, adapt)
        checks.one_of("learn", learn, checks.LEARN)
        checks.one_of("order", order, (1, 2))
        self.loss, self.order, self.mapped = loss, order, mapped
        self.steps = checks.whole("steps", steps, 1)
        self.inner = _filled(Gradient() if inner is None else inner, loss, mapped)
        self.outer_grid = checks.grids("outer_grid", outer_grid, known)
        self.inner_grid = checks.grids("inner_grid", inner_grid, known)
        self._surrogates, self._tried = tuple(surrogates), dict[Any, int]()
        begun = checks.step_sizes(step_size, self.adapted, known)
        for i, name in enumerate(self.adapted):
            value = model.get_parameter(name)
            shape = value.shape if learn == "entry" else ()
            a = torch.full(shape, begun[name], dtype=value.dtype, device=value.device)
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
        """phi_0: the model's parameters on the outer grid, those that do not adapt too."""
        theta = self.model.named_parameters()
        return {name: _rounded(self.outer_grid, name, value) for name, value in theta}

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

        Raises:
            Invalid, Refused: as the class says.
        """
        checks.one_of("order", order, (1, 2))
        steps = self.steps if steps is None else checks.whole("steps", steps, 0)
        y = checks.samples(x, y, ("x", "y"), ("time", "sample"))
        checks.labels("y", y, self._classes(x, y, order, ("x", "y")))
        return self._adapted(x, y, steps, order, phi)

    def _adapted(
        self, x: Tensor, y: Tensor, steps: int, order: int, phi: Params | None = None
    ) -> Params:
        phi = self.initial() if phi is None else phi
        for _ in range(steps):
            phi = self.inner.step(self.logits, phi, self.step_sizes(), x, y, order)
            phi |= {n: _rounded(self.inner_grid, n, phi[n]) for n in self.adapted}
        return phi

    def forward(self, tasks: Tasks) -> Tensor:
        """L (), the mean query loss of the tasks after adaptation, with its graph.

        Raises:
            Invalid, Refused: as the class says.
        """
        self._check(tasks, self.order)

        def work(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            phi = self._adapted(x, y, self.steps, self.order)
            return self.loss(self.logits(phi, query_x), query_y)

        return self._each(work, tasks).mean()

    @torch.no_grad()
    def evaluate(self, tasks: Tasks, steps: int | None = None) -> Tensor:
        """Share of query samples that are right (task,), after first-order adaptation.

        Raises:
            Invalid, Refused: as the class says.
        """
        steps = self.steps if steps is None else checks.whole("steps", steps, 0)
        self._check(tasks, 1)

        def score(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            logits = self.logits(self._adapted(x, y, steps, 1), query_x)
            return (logits.argmax(1) == query_y).to(logits.dtype).mean()

        return self._each(score, tasks)

    def _each(self, work: Callable[..., Tensor], tasks: Tasks) -> Tensor:
        """work's result for each task (task,)."""
        if not self.mapped:
            return torch.stack([work(*task) for task in tasks])
        parts = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        try:
            with buffers_kept(self.model):  # snnTorch would keep a membrane that vmap has ended
                out: Tensor = vmap(work, randomness="different")(*parts)
        except RuntimeError as error:
            if not any(clue in str(error) for clue in _UNMAPPED):
                raise
            raise Refused(
                type(self.model).__name__, "expected a model and an inner step that torch.func can "
                f"map over tasks, got: {str(error).partition('. ')[0]}", "Pass mapped=False",
            ) from error  # fmt: skip
        return out

    def _check(self, tasks: Tasks, order: int) -> None:
        """Refuse tasks that the model does not fit; what is costly, once."""
        checks.one_of("order", order, (1, 2))
        names = "support_x", "support_y"
        classes = self._classes(tasks.support_x[0], tasks.support_y[0], order, names)
        checks.labels("support_y", tasks.support_y, classes)
        checks.labels("query_y", tasks.query_y, classes)

    def _classes(self, x: Tensor, y: Tensor, order: int, names: tuple[str, str]) -> int:
        """The number of logits, of a model that passed its trial with such inputs."""
        checks.dtype(names[0], x, self.model)
        modes = tuple(module.training for module in self.model.modules())
        key = order, x.dtype, x.shape[2:], modes
        if key not in self._tried:
            with buffers_kept(self.model):
                classes = check_runs(self.logits, self.model, x)
                checks.labels(names[1], y, classes)
                if isinstance(self.inner, Gradient):
                    loss = self.inner.loss or functional.cross_entropy
                    check_used(self.logits, loss, self.model, self.adapted, x, y)
                if order == 2:
                    run = partial(self.logits, dict(self.model.named_parameters()))
                    check_model(run, self.model, x, self._surrogates)
            self._tried[key] = classes
        return self._tried[key]


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


def _filled(inner: Inner, loss: Loss, mapped: bool) -> Inner:
    """A `Gradient` with the learner's loss where it has none, and mapped where the learner is."""
    if not isinstance(inner, Gradient):
        return inner
    own = loss if inner.loss is None else inner.loss
    return replace(inner, loss=own, mapped=mapped or inner.mapped)
