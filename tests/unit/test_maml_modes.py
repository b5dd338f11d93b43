"""MAML's modes: what adapts, what stays, grids, memory, frameworks, processes (M7 to M9, M11)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import meta_cases as cases
import pytest
import torch
from torch import Tensor, multiprocessing, nn

from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning.meta import MAML, Grid, Tasks, anil, boil
from grasp_plugin.learning.meta.grids import grid_of


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_m7_adaptation_does_not_touch_theta_and_starts_from_rest() -> None:
    model, given = cases.model(), cases.tasks()
    maml = MAML(model, steps=3, step_size=0.4)
    before = copied(model)
    phi = maml.adapt(given.support_x[0], given.support_y[0])
    assert any(not torch.equal(phi[name], before[name]) for name in before)
    one, other = given.part(0, 1), given.part(1, 2)
    first = maml(one).detach()
    maml(other), maml.evaluate(given)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(value.grad is None for value in model.parameters())
    assert torch.equal(maml(one).detach(), first)  # nothing goes on from another task
    assert torch.equal(maml(given).detach(), (first + maml(other).detach()) / 2)


def test_m7_a_model_that_keeps_its_state_is_refused() -> None:
    snn = pytest.importorskip("snntorch")
    leaky = snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def run(net: Any, x: Tensor) -> Tensor:
        out = torch.zeros(())
        for now in x:
            out = net(now)[1]
        return out

    net = nn.Sequential(nn.Linear(cases.INPUTS, cases.WAYS), leaky)
    given = cases.tasks()
    with pytest.raises(Refused, match="same output for the same input"):
        MAML(net, run=run)(Tasks(given.support_x.float(), given.support_y, given.query_x.float(),
                                 given.query_y))  # fmt: skip


def test_snntorch_and_norse_models_take_second_order() -> None:
    """The same identity as M3, on framework neurons with explicit state: dL/da = -g . g_inner."""
    snn, norse = pytest.importorskip("snntorch"), pytest.importorskip("norse.torch")
    threshold = pytest.importorskip("norse.torch.functional.threshold")

    class Snn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(cases.INPUTS, 6), nn.Linear(6, cases.WAYS)
            grad = snn.surrogate.fast_sigmoid(10)
            self.lif = snn.Leaky(beta=0.9, threshold=0.3, spike_grad=grad)

        def forward(self, x: Tensor) -> Tensor:
            mem, u = self.lif.init_leaky(), torch.zeros(())
            for now in x:
                spikes, mem = self.lif(self.fc(now), mem)
                u = 0.9 * u + self.out(spikes.to(x))
            return u

    class Norse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(cases.INPUTS, 6), nn.Linear(6, cases.WAYS)
            p = norse.LIFBoxParameters(v_th=torch.tensor(0.1), method="super", alpha=10.0)
            self.lif = norse.LIFBoxCell(p)

        def forward(self, x: Tensor) -> Tensor:
            state, u = None, torch.zeros(())
            for now in x:
                spikes, state = self.lif(self.fc(now), state)
                u = 0.9 * u + self.out(spikes)
            return u

    tested = [lambda x: threshold.threshold(x, "super", 10.0)]
    given = cases.tasks()
    for made, surrogates in ((Snn, []), (Norse, tested)):
        torch.manual_seed(0)
        maml = MAML(made().double(), step_size=0.3, learn="parameter", surrogates=surrogates)
        maml(given).backward()
        assert maml.model.fc.weight.grad.abs().max() > 1e-6
        one = MAML(maml.model, step_size=0.3, order=1)
        second = torch.cat([p.grad.reshape(-1) for p in maml.model.parameters()])
        assert (second - cases.meta_gradient(one, given)).abs().max() > 1e-6
        with pytest.raises(Refused, match="mapped=False"):
            MAML(maml.model, mapped=True, surrogates=surrogates)(given)
        snn.Leaky.reset_hidden()  # of all that there are: none holds a tensor that vmap has ended
    with pytest.raises(Refused, match="twice differentiable"):
        MAML(maml.model)(given)  # Norse's function is not held by the module: say which it is


def test_m8_grids() -> None:
    model, given = cases.model(), cases.tasks()
    grid = Grid(4, 3, scale=2.0)
    maml = MAML(model, steps=2, step_size=0.4, outer_grid=grid, inner_grid=grid)
    phi = maml.adapt(given.support_x[0], given.support_y[0])
    for value in phi.values():
        assert torch.equal(value / grid.step, torch.round(value / grid.step))
        assert grid.limits[0] <= value.min() <= value.max() <= grid.limits[1]
    still = MAML(model, steps=2, step_size=0.0, outer_grid=grid, inner_grid=grid)
    begun, after = still.initial(), still.adapt(given.support_x[0], given.support_y[0])
    assert all(torch.equal(begun[name], after[name]) for name in begun)
    maml(given).backward()
    assert model.body.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("word", [16, 8, 4, 2])
def test_m8_stochastic_rounding_is_unbiased_and_grids_hold_2_to_the_w_values(word: int) -> None:
    torch.manual_seed(word)
    grid = Grid(word, word - 1, rounding="stochastic")
    low, high = grid.limits
    x = torch.tensor([0.3, -0.7, 0.123, high - 0.25 * grid.step], dtype=torch.float64)
    inside = x[(x > low) & (x < high)]
    draws = torch.stack([grid(inside) for _ in range(4000)])
    error = (draws.mean(0) - inside).abs() / (draws.std(0) / 4000**0.5 + 1e-15)
    assert error.max() < 4.5  # standard errors
    assert round((high - low) / grid.step) + 1 == 2**word
    x = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    near = Grid(word, word - 1)
    (slope,) = torch.autograd.grad(near(x).sum(), x)
    beyond = (x < low - grid.step / 2) | (x > high + grid.step / 2)
    assert torch.equal(slope, (~beyond).double())


LOW = [(torch.float32, 16), (torch.float16, 8), (torch.bfloat16, 8)]


@pytest.mark.parametrize(("dtype", "word"), LOW)
def test_m8_rounding_leaves_what_is_on_the_grid_and_is_unbiased_in_low_precision(
    dtype: torch.dtype, word: int
) -> None:
    """All 2^w values stay in any draw; the mean is x, between the last two and close above 0."""
    torch.manual_seed(0)
    for rounding in ("nearest", "stochastic"):
        grid = Grid(word, word - 1, rounding=rounding)
        values = torch.arange(-(2 ** (word - 1)), 2 ** (word - 1), dtype=torch.float64) * grid.step
        on = values.to(dtype)
        assert torch.equal(on.double(), values)
        assert all(torch.equal(grid(on), on) for _ in range(20))
    for low, share in ((float(values[-2]), 0.5), (0.0, 2.0**-10)):
        x = torch.full((100_000,), low + share * grid.step, dtype=dtype)
        assert float(x[0]) == low + share * grid.step
        up = (grid(x).double() - low) / grid.step
        assert set(up.tolist()) == {0.0, 1.0}
        assert abs(float(up.mean()) - share) < 4.5 * (share * (1 - share) / len(x)) ** 0.5


def test_m8_the_outer_grid_is_of_all_and_the_inner_one_of_what_adapts() -> None:
    """One grid for all parameters, or by name; frozen ones are rounded once, at the start."""
    model, given = cases.model(), cases.tasks()
    x, y, *_ = next(iter(given))
    theta, head = copied(model), anil(model, ["head"])
    coarse, fine = Grid(4, 3, scale=2.0), Grid(8, 7, scale=2.0)

    def on(value: Tensor, grid: Grid) -> bool:
        return torch.equal(value, grid(value))

    assert not any(on(value, fine) for value in theta.values())
    options: Any = {"adapt": head, "step_size": 0.4, "steps": 2}
    maml = MAML(model, outer_grid=coarse, inner_grid=fine, **options)
    begun, after = maml.initial(), maml.adapt(x, y)
    for name in theta:
        assert torch.equal(begun[name], coarse(theta[name]))
        assert on(after[name], fine)
        assert torch.equal(after[name], begun[name]) == (name not in head)
    named = {"body.weight": coarse, "head.weight": coarse}
    by_name = MAML(model, outer_grid=named, inner_grid=named, **options)
    begun, after = by_name.initial(), by_name.adapt(x, y)
    for name in theta:
        wanted = coarse(theta[name]) if name in named else theta[name]
        assert torch.equal(begun[name], wanted)
        assert on(after[name], coarse) == (name in named)
    inner = MAML(model, inner_grid=coarse, **options).adapt(x, y)
    assert all(torch.equal(inner[name], theta[name]) == (name not in head) for name in theta)
    gradient = cases.meta_gradient(maml, given)
    mapped = MAML(model, outer_grid=coarse, inner_grid=fine, mapped=True, **options)
    assert (gradient - cases.meta_gradient(mapped, given)).abs().max() < 1e-12
    assert gradient[: model.body.weight.numel()].abs().max() > 1e-6  # straight through


def test_stochastic_rounding_draws_for_every_task_when_mapped() -> None:
    model, given = cases.model(), cases.tasks()
    grid = Grid(3, 2, scale=2.0, rounding="stochastic")
    torch.manual_seed(0)
    both = Tasks(*(v[:1].expand(64, *v.shape[1:]) for v in
                   (given.support_x, given.support_y, given.query_x, given.query_y)))  # fmt: skip
    maml = MAML(model, outer_grid=grid, mapped=True, order=1)
    assert len(torch.unique(maml.evaluate(both, 0))) > 1  # the same task, other parameters


def test_grid_of_and_what_grids_refuse() -> None:
    weight = torch.tensor([0.1, -0.1, 0.1])
    assert grid_of(8, weight) == Grid(8, 7, 0.5)
    for wrong in (lambda: Grid(1, 1), lambda: Grid(8, 7, 0.0), lambda: Grid(8, 7, 1.0, "up"),
                  lambda: Grid(2.5, 1), lambda: Grid(4, 1.5),  # type: ignore[arg-type]
                  lambda: Grid(8, 7, float("nan")), lambda: grid_of(8, weight * 0)):  # fmt: skip
        with pytest.raises(Invalid):
            wrong()


@pytest.mark.parametrize("order", [1, 2])
def test_m9_anil_and_boil_leave_the_rest_alone(order: int) -> None:
    model, given = cases.model(), cases.tasks()
    head, body = anil(model, ["head"]), boil(model, ["head"])
    assert set(head) | set(body) == set(dict(model.named_parameters()))
    assert head == ("head.weight", "head.bias")
    for names in (head, body):
        maml = MAML(model, adapt=names, order=order, step_size=0.4, learn="entry")
        phi = maml.adapt(given.support_x[0], given.support_y[0], order=order)
        for name, value in model.named_parameters():
            assert torch.equal(phi[name], value) == (name not in names)
        assert torch.isfinite(cases.meta_gradient(maml, given)).all()
    with pytest.raises(Invalid, match="expected a path"):
        anil(model, ["heads"])


def test_mapped_tasks_are_tasks_one_by_one() -> None:
    model, given = cases.model(), cases.tasks(count=4)
    for order in (1, 2):
        both = [MAML(model, steps=2, step_size=0.3, order=order, mapped=m) for m in (False, True)]
        loop, mapped = (cases.meta_gradient(m, given) for m in both)
        assert (loop - mapped).abs().max() < 1e-13
        assert torch.equal(both[0].evaluate(given), both[1].evaluate(given))


def test_learned_step_sizes_are_parameters_that_train() -> None:
    model, given = cases.model(), cases.tasks()
    maml = MAML(model, learn="entry", step_size={n: 0.1 for n, _ in model.named_parameters()})
    adam = torch.optim.Adam(maml.parameters(), 0.01)
    first = float(maml(given).detach())
    for _ in range(15):
        adam.zero_grad()
        maml(given).backward()
        adam.step()
    assert float(maml(given).detach()) < 0.8 * first
    assert all((a != 0.1).any() for a in maml.step_sizes().values())
    again = MAML(cases.model(1), learn="entry")
    again.load_state_dict(maml.state_dict())
    assert torch.equal(again(given), maml(given))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"order": 3}, {"learn": "all"}, {"adapt": ["nothing"]}, {"adapt": []}]
)
def test_what_maml_refuses(wrong: Any) -> None:
    with pytest.raises(Invalid):
        MAML(cases.model(), **wrong)
    given = cases.tasks()
    with pytest.raises(Invalid, match="Time is axis 1"):
        Tasks(given.support_x[0], given.support_y, given.query_x, given.query_y)


def held(work: Callable[[], Tensor]) -> int:
    """The most bytes that autograd keeps for its backward at any moment, work's own included."""
    live = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal live, peak
            self.tensor, size = tensor, tensor.numel() * tensor.element_size()
            live += size
            peak = max(peak, live)
            weakref.finalize(self, free, size)

    def free(size: int) -> None:
        nonlocal live
        live -= size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work().backward()
    return peak


def test_m11_memory_of_second_order_grows_with_steps_and_time_and_first_order_does_not() -> None:
    def bytes_of(order: int, inner: int, time: int) -> int:
        maml = MAML(cases.model(), steps=inner, order=order)
        given = cases.tasks(count=1, steps=time)
        maml(cases.tasks(count=1, steps=1))  # the checks of the first call
        return held(lambda: maml(given))

    second = {(n, t): bytes_of(2, n, t) for n, t in ((1, 8), (2, 8), (4, 8), (2, 16))}
    per_step = second[2, 8] - second[1, 8]
    assert second[4, 8] - second[2, 8] == pytest.approx(2 * per_step, rel=0.1)
    assert second[2, 16] / second[2, 8] == pytest.approx(2, rel=0.15)
    first = {n: bytes_of(1, n, 8) for n in (1, 2, 4)}
    assert first[4] <= 1.1 * first[1]
    assert second[1, 8] > 1.5 * first[1]


def test_two_processes_are_one_with_the_joined_batch(tmp_path: Any) -> None:
    """Each has half of the tasks; this one is the first of them."""
    context = multiprocessing.get_context("spawn")
    out, store = context.Queue(), str(tmp_path / "store")
    other = context.Process(target=cases.half_of_the_tasks, args=(1, store, out))
    other.start()
    cases.half_of_the_tasks(0, store, out)
    found = dict(out.get(timeout=120) for _ in range(2))
    other.join(60)
    maml = cases.two_steps()
    maml(cases.tasks(count=4)).backward()
    for rank in (0, 1):
        for p, got in zip(maml.parameters(), found[rank], strict=True):
            assert (p.grad - torch.from_numpy(got)).abs().max() < 1e-6
