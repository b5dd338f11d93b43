"""What meta-learning refuses, and how it says so: culprit, expected, got, remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import meta_cases as cases
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grasp_plugin.errors import GraspError, Invalid, Refused
from grasp_plugin.learning.meta import MAML, Gradient, Grid, Stack, Tasks

NAN, INF = float("nan"), float("inf")
GRID = Grid(8, 7)


def made(**changes: Any) -> Tasks:
    return replace(cases.tasks(), **changes)


def holed(value: float) -> Tensor:
    x = cases.tasks().support_x.clone()
    x[0, 0, 0, 0] = value
    return x


def support() -> tuple[Tensor, Tensor]:
    x, y, *_ = next(iter(cases.tasks()))
    return x, y


def learner(**options: Any) -> MAML:
    return MAML(cases.model(), **options)


def adapt(**options: Any) -> Any:
    x, y = support()
    return learner().adapt(options.pop("x", x), options.pop("y", y), **options)


def stack_of(**options: Any) -> Stack:
    return Stack(**({"sizes": (5, 4, 3), "dtype": torch.float64} | options))


def minus(y: Tensor, label: int) -> Tensor:
    y = y.clone()
    y[..., 0] = label
    return y


class Idle(cases.Toy):
    """With a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(2, dtype=torch.float64))


X, Y = cases.tasks().support_x, cases.tasks().support_y
Q, QY = cases.tasks().query_x, cases.tasks().query_y
Case = tuple[Callable[[], Any], str, str]  # what is done, the culprit, and part of the rest
BAD_TASKS: list[Case] = [
    (lambda: made(support_x=X.numpy()), "support_x", "expected a tensor, got ndarray. Pass"),
    (lambda: made(query_y=QY.numpy()), "query_y", "expected a tensor, got ndarray"),
    (lambda: made(support_y=Y.double()), "support_y", "integer labels, got torch.float64"),
    (lambda: made(support_y=Y > 0), "support_y", "integer labels, got torch.bool"),
    (lambda: made(support_x=X[:, :, :0], support_y=Y[:, :0]), "support_x", "one or more of each"),
    (lambda: made(query_x=Q[:, :, :0], query_y=QY[:, :0]), "query_x", "one or more of each"),
    (lambda: cases.tasks().part(0, 0), "support_x", "one or more of each of task, time, sample"),
    (lambda: made(support_x=X[:, :0]), "support_x", "one or more of each"),
    (lambda: made(support_x=holed(NAN)), "support_x", "expected finite numbers, got 1 NaN"),
    (lambda: made(support_x=holed(-INF)), "support_x", "expected finite numbers, got 1 NaN"),
    (lambda: made(query_x=Q[..., :4]), "query_x", "neurons (5,) in torch.float64, as support_x"),
    (lambda: made(query_x=Q.float()), "query_x", "got 2 tasks of neurons (5,) in torch.float32"),
    (lambda: made(query_x=Q[:1], query_y=QY[:1]), "query_x", "expected 2 tasks"),
    (lambda: made(support_x=X[0]), "support_x", "Time is axis 1"),
    (lambda: made(support_y=Y[:, :2]), "support_x", "labels (task, sample), got (2, 6, 3, 5)"),
]  # fmt: skip
BAD_LEARNERS: list[Case] = [
    (lambda: learner(outer_grid={"bod.weight": GRID}), "bod.weight", "got 'bod.weight' in outer"),
    (lambda: learner(inner_grid={"bod.weight": GRID}), "bod.weight", "got 'bod.weight' in inner"),
    (lambda: learner(outer_grid=8), "outer_grid", "expected a Grid, a mapping of names"),
    (lambda: learner(inner_grid={"body.weight": 8}), "inner_grid", "or None, got int"),
    (lambda: learner(step_size={"nothing": 1.0}), "nothing", "got 'nothing' in step_size"),
    (lambda: learner(step_size={"body.weight": 1.0}), "body.bias", "Add it to step_size"),
    (lambda: learner(step_size=NAN), "step_size", "a finite step size >= 0, got nan"),
    (lambda: learner(step_size=-0.1), "step_size", "a finite step size >= 0, got -0.1"),
    (lambda: learner(step_size=INF, learn="entry"), "step_size", "got inf"),
    (lambda: learner(step_size="0.1"), "step_size", "got '0.1'"),
    (lambda: learner(step_size=None), "step_size", "got None"),
    (lambda: learner(step_size=torch.ones(2)), "step_size", "got tensor([1., 1.])"),
    (lambda: learner(adapt=["head.bias"], step_size={"head.bias": -1.0}), "head.bias", "got -1.0"),
    (lambda: learner(adapt=["head.bias"] * 2), "head.bias", "once in adapt, got it twice"),
    (lambda: learner(adapt="head.bias"), "adapt", "Pass ['head.bias']"),
    (lambda: learner(adapt=["nothing"]), "nothing", "got 'nothing' in adapt"),
    (lambda: learner(adapt=[]), "adapt", "expected something to adapt"),
    (lambda: learner(steps=0), "steps", "a whole number >= 1, got 0"),
    (lambda: learner(steps=1.5), "steps", "a whole number >= 1, got 1.5"),
    (lambda: learner(order=3), "order", "expected one of 1, 2, got 3"),
    (lambda: learner(learn="all"), "learn", "'entry', got 'all'"),
]  # fmt: skip
BAD_USE: list[Case] = [
    (lambda: adapt(steps=-1), "steps", "a whole number >= 0, got -1"),
    (lambda: adapt(steps=1.0), "steps", "a whole number >= 0, got 1.0"),
    (lambda: adapt(order=0), "order", "expected one of 1, 2, got 0"),
    (lambda: learner().evaluate(cases.tasks(), -1), "steps", "a whole number >= 0, got -1"),
    (lambda: learner().evaluate(cases.tasks(), 0.5), "steps", "a whole number >= 0, got 0.5"),
    (lambda: adapt(x=holed(NAN)[0]), "x", "expected finite numbers, got 1 NaN or infinite"),
    (lambda: adapt(x=support()[0].numpy()), "x", "expected a tensor, got ndarray"),
    (lambda: adapt(y=support()[1].double()), "y", "integer labels, got torch.float64"),
    (lambda: adapt(y=minus(support()[1], 3)), "y", "labels in 0..2, the model's logits, got 3"),
    (lambda: adapt(y=minus(support()[1], -100)), "y", "labels in 0..2, the model's logits, got -"),
    (lambda: adapt(x=support()[0][:, 0]), "x", "Time is axis 0"),
    (lambda: adapt(x=support()[0].float()), "x", "expected torch.float64, as the parameters of "
     "Toy, got torch.float32. Pass .to(torch.float64)"),
    (lambda: learner()(cases.tasks().to(torch.float32)), "support_x", "got torch.float32"),
    (lambda: learner().evaluate(cases.tasks().to(torch.float32)), "support_x", "torch.float64"),
    *((lambda m=m, y=y: learner(mapped=m)(made(support_y=minus(Y, y))), "support_y", f"got {y}")
      for m in (False, True) for y in (-100, -1, 3)),
    *((lambda m=m, y=y: learner(mapped=m).evaluate(made(query_y=minus(QY, y))), "query_y",
       f"got {y}") for m in (False, True) for y in (-100, -1, 3)),
    *((lambda m=m: MAML(Idle(), mapped=m)(cases.tasks()), "idle", "the inner loss depends on")
      for m in (False, True)),
    *((lambda m=m: MAML(Idle(), mapped=m).evaluate(cases.tasks()), "idle", "Leave it out")
      for m in (False, True)),
    (lambda: MAML(cases.model(), run=lambda m, x: (m(x), x))(cases.tasks()), "Toy",
     "expected logits (3 samples, class) of inputs (6, 3, 5), got tuple. Pass run=lambda"),
    (lambda: MAML(cases.model(), run=lambda m, x: m(x)[None])(cases.tasks()), "Toy",
     "got (1, 3, 3) of torch.float64"),
    (lambda: MAML(cases.model(), run=lambda m, x: m(x).argmax(1))(cases.tasks()), "Toy",
     "got (3,) of torch.int64"),
    (lambda: MAML(cases.model(), run=lambda m, x: m(x) / 0)(cases.tasks()), "logits of Toy",
     "expected finite numbers, got 9 NaN or infinite"),
    (lambda: learner(loss=lambda z, y: functional.cross_entropy(z, y, reduction="none"))(
        cases.tasks()), "loss", "a mean over samples (), got (3,)"),
]  # fmt: skip
BAD_STACKS: list[Case] = [
    (lambda: stack_of(threshold=NAN), "Stack", "expected threshold > 0 and finite, got nan"),
    (lambda: stack_of(threshold=0.0), "Stack", "expected threshold > 0 and finite, got 0.0"),
    (lambda: stack_of(gain=NAN), "Stack", "expected gain that is finite, got nan"),
    (lambda: stack_of(keep=NAN), "Stack", "expected keep in [0, 1), got nan"),
    (lambda: stack_of(keep=1.0), "Stack", "expected keep in [0, 1), got 1.0"),
    (lambda: stack_of(sizes=(5, 0, 3)), "sizes", "a whole number >= 1, got 0"),
    (lambda: stack_of(sizes=(5, 2.5, 3)), "sizes", "a whole number >= 1, got 2.5"),
    (lambda: stack_of(sizes=(5, 3)), "Stack", "expected three sizes or more, got (5, 3)"),
    (lambda: stack_of()(X[0][..., :4]), "Stack", "and 5 neurons, got (6, 3, 4)"),
    (lambda: stack_of()(X[0][:, 0]), "Stack", "expected spikes (time, sample, neuron...)"),
    (lambda: stack_of()(X[0][:0]), "Stack", "one step or more and 5 neurons, got (0, 3, 5)"),
]  # fmt: skip
ALL = BAD_TASKS + BAD_LEARNERS + BAD_USE + BAD_STACKS


@pytest.mark.parametrize(("work", "culprit", "says"), ALL, ids=[f"{c}-{s}" for _, c, s in ALL])
def test_bad_input_is_named(work: Callable[[], Any], culprit: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        work()
    assert caught.value.node == culprit
    assert says in str(caught.value)
    assert "expected" in caught.value.reason
    assert "got" in caught.value.reason


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_taken(kind: torch.dtype) -> None:
    given = made(support_y=Y.to(kind), query_y=QY.to(kind))
    assert given.support_y.dtype == given.query_y.dtype == torch.int64
    maml, (x, y) = learner(), support()
    assert torch.equal(maml(given), maml(cases.tasks()))
    one, two = maml.adapt(x, y.to(kind)), maml.adapt(x, y)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_large_inputs_whose_sum_overflows_are_taken() -> None:
    assert torch.isinf(torch.full_like(X, 60000.0).half().sum())
    large = made(support_x=torch.full_like(X, 60000.0).half(), query_x=Q.half())
    assert large.support_x.max() == 60000.0


def test_tasks_move_to_another_dtype_and_back() -> None:
    low = cases.tasks().to(torch.float32)
    assert low.support_x.dtype == low.query_x.dtype == torch.float32
    assert low.query_y.dtype == torch.int64
    assert torch.equal(learner()(low.to(torch.float64)), learner()(cases.tasks()))


@pytest.mark.parametrize(
    "size", [np.float32(0.25), torch.tensor(0.25), np.array(0.25), np.float64(0.25)]
)
def test_step_sizes_are_any_number(size: Any) -> None:
    wanted = learner(step_size=0.25)(cases.tasks())
    assert torch.equal(learner(step_size=size)(cases.tasks()), wanted)
    names = {name: size for name, _ in cases.model().named_parameters()}
    assert torch.equal(learner(step_size=names, adapt=None)(cases.tasks()), wanted)
    one = learner(step_size=names, adapt=["head.bias"])  # those of others are not used
    assert list(one.step_sizes()) == ["head.bias"]


def test_numbers_of_steps_are_any_whole_number() -> None:
    x, y = support()
    two, numpy = learner(steps=2), learner(steps=np.int64(2))
    assert torch.equal(two(cases.tasks()), numpy(cases.tasks()))
    one, other = two.adapt(x, y, steps=np.int32(1)), two.adapt(x, y, steps=1)
    assert all(torch.equal(one[name], other[name]) for name in one)
    still = two.adapt(x, y, steps=0)
    assert all(still[name] is value for name, value in two.model.named_parameters())


class Normed(nn.Module):
    """A batch norm in front of a readout; its forward is linear in time's mean."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(cases.INPUTS, cases.WAYS).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(x.mean(0)))
        return out


def ways_in(maml: MAML) -> list[Callable[[], Any]]:
    x, y = support()
    return [
        lambda: maml(cases.tasks()),
        lambda: maml.evaluate(cases.tasks()),
        lambda: maml.adapt(x, y),
        lambda: maml.adapt(x, y, order=2),
    ]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_buffer_that_goes_on_is_refused_and_restored(mapped: bool) -> None:
    """BatchNorm in training: by every way in, before anything is changed; in eval() it runs."""
    torch.manual_seed(0)
    model = Normed(nn.BatchNorm1d(cases.INPUTS).double())
    begun = {name: value.clone() for name, value in model.named_buffers()}
    maml = MAML(model, mapped=mapped)
    for work in ways_in(maml):
        with pytest.raises(Refused, match=r"norm\.running_mean: .*Call model\.eval\(\)"):
            work()
        for name, value in model.named_buffers():
            assert torch.equal(value, begun[name])
    model.eval()
    assert torch.isfinite(maml(cases.tasks()))
    model.train()  # looked at again
    with pytest.raises(Refused, match="running_mean"):
        maml(cases.tasks())
    free = Normed(nn.BatchNorm1d(cases.INPUTS, track_running_stats=False).double())
    assert torch.isfinite(MAML(free, mapped=mapped)(cases.tasks()))


class Leaving(nn.Module):
    """Leaves what it saw in a new tensor in place of its buffer, and reads it or not."""

    def __init__(self, saved: bool, reads: bool) -> None:
        super().__init__()
        self.head, self.reads = nn.Linear(cases.INPUTS, cases.WAYS).double(), reads
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64), persistent=saved)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.mean(0) + (self.seen.sum() if self.reads else 0))
        self.seen = x.detach().sum(2)
        return out


def test_a_buffer_that_is_only_left_behind_passes_if_it_is_not_saved() -> None:
    """As snnTorch's `mem`; one that is saved with the module, or read, does not."""
    for work in ways_in(MAML(Leaving(saved=False, reads=False))):
        work()
    for work in ways_in(MAML(Leaving(saved=False, reads=True))):
        with pytest.raises(Refused, match="same output for the same input"):
            work()
    model = Leaving(saved=True, reads=False)
    held = model.seen
    for work in ways_in(MAML(model)):
        with pytest.raises(Refused, match="seen: expected a buffer"):
            work()
        assert model.seen is held
        assert held.tolist() == [0.0]


@pytest.mark.parametrize("mapped", [False, True])
def test_every_way_in_looks_for_state_and_randomness(mapped: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Normed(nn.Identity()), nn.Dropout(0.5))
    for work in ways_in(MAML(model, mapped=mapped)):
        with pytest.raises(Refused, match="a state or a random number is carried over"):
            work()


def test_a_step_through_nan_is_not_called_a_state() -> None:
    """The parameters: after the inputs, which `Tasks` and `adapt` refuse."""
    model = cases.model()
    with torch.no_grad():
        model.head.bias[0] = NAN
    for work in ways_in(MAML(model)):
        with pytest.raises(Invalid, match="logits of Toy: expected finite numbers, got 3"):
            work()


def test_the_trial_is_made_once_for_each_order() -> None:
    """Three calls of the first order (twice the same, once for gradients), one more for order 2."""
    calls, given, (x, y) = [0], cases.tasks(), support()

    def run(model: nn.Module, x: Tensor) -> Tensor:
        calls[0] += 1
        out: Tensor = model(x)
        return out

    maml = MAML(cases.model(), run=run)

    def counted(work: Callable[[], Any]) -> int:
        before = calls[0]
        work()
        return calls[0] - before

    plain = 2 * len(given)  # support and query of each task
    assert counted(lambda: maml(given)) == plain + 4
    assert counted(lambda: maml(given)) == plain
    assert counted(lambda: maml.evaluate(given)) == plain + 3
    assert counted(lambda: maml.evaluate(given)) == plain
    assert counted(lambda: maml.adapt(x, y, order=2)) == 1
    assert counted(lambda: maml.adapt(x, y)) == 1
    assert counted(lambda: maml(cases.tasks(steps=9))) == plain  # another time is no other model


def test_what_is_refused_at_construction_leaves_no_half_made_learner() -> None:
    """Errors of arguments are of the package's own kind, whatever the type that is passed."""
    for wrong in ({"steps": "2"}, {"order": None}, {"learn": 1}, {"outer_grid": "8"}):
        with pytest.raises(GraspError):
            learner(**wrong)
    kept = Gradient(mapped=True)
    assert learner(inner=kept).inner != kept  # filled in a copy
    assert kept.loss is None
