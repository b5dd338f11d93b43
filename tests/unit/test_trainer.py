"""The training loop of online rules: equal to a session, resumable, flat in time, and back."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grasp_plugin import build, discretise, to_nir
from grasp_plugin.errors import Invalid, Refused
from grasp_plugin.learning import decolle_for, etlp_for, ottt_for, sltt_for
from grasp_plugin.network.discretise import Discretisation
from grasp_plugin.network.network import Network
from grasp_plugin.training.trainer import OnlineTrainer, TensorBoard

SIZES, STEPS, BATCH = (7, 6, 3), 9, 4
RULES: dict[str, Callable[..., Any]] = {
    "decolle": lambda n, lr=0.1: decolle_for(n, 3, lr, amplitude=2.0, dropout=0.3),
    "etlp": lambda n, lr=0.05: etlp_for(n, 3, lr, probability=0.5),
    "ottt": lambda n, lr=0.1: ottt_for(n, 3, lr),
    "sltt": lambda n, lr=0.1: sltt_for(n, 3, lr),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def network(sizes: tuple[int, ...] = SIZES, reset: str = "subtract-delayed") -> Network:
    rng = np.random.default_rng(1)
    nodes: dict[str, Any] = {"in": nir.Input(np.array([sizes[0]]))}
    for k, (n_i, n_o) in enumerate(pairwise(sizes)):
        nodes[f"w{k}"] = nir.Affine(
            rng.normal(0.2, 1.0 / np.sqrt(n_i), (n_o, n_i)), rng.normal(0.02, 0.01, n_o)
        )
        nodes[f"n{k}"] = nir.LIF(*(np.full(n_o, v) for v in (1e-2, 10.0, 0.0, 0.8, 0.0)))
    nodes["out"] = nir.Output(np.array([sizes[-1]]))
    names = list(nodes)
    edges = list(pairwise(names))
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    return discretise(graph, Discretisation(dt_s=1e-3, reset=reset))


def batches(count: int = 3, steps: int = STEPS, batch: int = BATCH) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(2)
    return [
        (torch.from_numpy((rng.random((steps, batch, SIZES[0])) < 0.3).astype(np.uint8)),
         torch.from_numpy(rng.integers(0, 3, batch)))
        for _ in range(count)
    ]  # fmt: skip


def double(rule: Any, **options: Any) -> OnlineTrainer:
    return OnlineTrainer(network(), rule, dtype=torch.float64, **options)


def weights(trainer: OnlineTrainer) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in trainer.online.parameters.items()}


def same(a: OnlineTrainer, b: OnlineTrainer, tolerance: float = 0.0) -> None:
    for name, value in weights(a).items():
        torch.testing.assert_close(weights(b)[name], value, rtol=0, atol=tolerance)


# --- what an epoch does ---------------------------------------------------------------------------


@every_rule
def test_equals_a_session(rule: Any) -> None:
    trainer, data = double(rule), batches()
    trainer.fit(data, 2)
    with build(network(), backend="torch", plans=rule(network())) as session:
        for spikes, labels in data * 2:
            session.learn(spikes.numpy(), labels.numpy())
        for name, weight in session.weights().items():
            np.testing.assert_allclose(trainer.online.plastic[name], weight, rtol=0, atol=1e-12)
        assert any(
            np.abs(w - network().with_weights({}).weights().get(n, w)).max() > 1e-3
            for n, w in session.weights().items()
        )


@every_rule
@pytest.mark.parametrize("update", ["step", "sequence"])
def test_sgd_with_the_rules_learning_rate_is_the_plain_rule(rule: Any, update: str) -> None:
    plain = double(lambda n: rule(n, 0.003), update=update)
    sgd = double(
        lambda n: rule(n, 1.0), update=update, optimizer=lambda p: torch.optim.SGD(p, lr=0.003)
    )
    assert plain.fit(batches(), 2)[-1]["updates"] == sgd.fit(batches(), 2)[-1]["updates"]
    same(plain, sgd, 1e-12)


def test_sequence_updates_once_with_the_sum() -> None:
    trainer = double(RULES["ottt"], update="sequence")
    start, data = weights(trainer), batches(1)
    total: dict[str, Any] = {}

    def apply(deltas: dict[str, Any]) -> None:
        for name, delta in deltas.items():
            value = delta["weight"].dense().reshape(start[name].shape)
            total[name] = total.get(name, 0) + value

    other = double(RULES["ottt"])
    x = {"in": data[0][0].double()}
    rows = nn.functional.one_hot(data[0][1], 3).double().expand(STEPS, BATCH, 3)
    for _ in other.online.sequence(x, rows, torch.ones(STEPS, BATCH, 1), apply):
        pass
    assert trainer.fit(data, 1)[0]["updates"] == 1
    for name, value in total.items():
        torch.testing.assert_close(weights(trainer)[name], start[name] + value, rtol=0, atol=1e-14)


def test_a_step_without_a_teaching_event_does_not_step_the_optimizer() -> None:
    def moved(probability: float) -> tuple[int, bool]:
        trainer = double(
            lambda n: etlp_for(n, 3, 1.0, probability=probability),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5),
        )
        start = weights(trainer)
        updates = trainer.fit(batches(), 1)[0]["updates"]
        return updates, not all(torch.equal(v, start[n]) for n, v in weights(trainer).items())

    assert moved(0.0) == (0, False)  # nor does its weight decay
    events, changed = moved(0.3)
    assert 0 < events < 3 * STEPS
    assert changed


def test_burn_in_makes_no_update() -> None:
    trainer = double(
        lambda n: decolle_for(n, 3, 1.0, burn_in=5),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
    )
    assert trainer.fit(batches(2), 1)[0]["updates"] == 2 * (STEPS - 5)


def test_learns_a_task_and_says_so() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 60)
    rate = np.full((3, 7), 0.05)
    rate[0, :2] = rate[1, 2:4] = rate[2, 4:6] = 0.6
    spikes = torch.from_numpy((rng.random((20, 60, 7)) < rate[labels]).astype(np.uint8))
    data = [(spikes[:, k : k + 20], torch.from_numpy(labels[k : k + 20])) for k in (0, 20, 40)]
    trainer = OnlineTrainer(
        network(), lambda n: ottt_for(n, 3, 1.0), optimizer=lambda p: torch.optim.Adam(p, lr=5e-3)
    )
    before = trainer.evaluate(data)
    history = trainer.fit(data, 12)
    assert [r["epoch"] for r in history] == list(range(1, 13))
    assert history[-1]["loss"] < history[0]["loss"]
    assert trainer.evaluate(data) > 0.9 > before
    assert np.mean(trainer.predict(spikes) == labels) == pytest.approx(trainer.evaluate(data))


def test_loss_is_the_mean_of_the_signals_own() -> None:
    trainer = double(lambda n: ottt_for(n, 3, 0.0))
    spikes, labels = batches(1)[0]
    with build(network(), backend="torch") as session:
        out = torch.from_numpy(session.run(spikes.numpy())["n1"])
    want = torch.stack([nn.functional.cross_entropy(o, labels) for o in out]).mean()
    assert trainer.fit([(spikes, labels)], 1)[0]["loss"] == pytest.approx(float(want), abs=1e-12)


def test_evaluate_and_predict_change_nothing() -> None:
    trainer = double(RULES["decolle"])
    trainer.fit(batches(), 1)
    before = (
        {n: v.clone() for n, v in trainer.online.state["signals"]["n0"].items()},
        weights(trainer),
    )
    trainer.evaluate(batches())
    trainer.predict(batches()[0][0])
    assert all(torch.equal(v, before[1][n]) for n, v in weights(trainer).items())
    after = trainer.online.state["signals"]["n0"]
    assert all(torch.equal(v, before[0][n]) for n, v in after.items())


def test_progress_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    double(RULES["sltt"]).fit(batches(), 1, progress=True)
    assert "epoch 1" in capsys.readouterr().err
    double(RULES["sltt"]).fit(batches(), 1)
    assert capsys.readouterr().err == ""


# --- memory ---------------------------------------------------------------------------------------


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages made in this mode that live, and their peak; `given` do not count."""

    def __init__(self, *given: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.known:
            size = storage.nbytes()
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("rule", "update"), [*((name, "step") for name in RULES), ("ottt", "sequence")]
)
def test_memory_is_flat_in_time(rule: str, update: str) -> None:
    def peak(steps: int) -> Any:
        trainer, data = OnlineTrainer(network(), RULES[rule], update=update), batches(1, steps)
        with LiveTensors(*data[0]) as live:
            trainer.fit(data, 1)
        return live.peak

    short, long = peak(50), peak(1000)
    assert 0 < short < 20_000
    assert long <= 1.02 * short


def test_the_counter_sees_a_graph_that_grows() -> None:
    def peak(steps: int) -> Any:
        weight = torch.ones(8, 8, requires_grad=True)
        with LiveTensors() as live:
            x = torch.ones(8)
            for _ in range(steps):
                x = torch.tanh(weight @ x)
        return live.peak

    assert peak(100) > 5 * peak(10)


# --- save and resume ------------------------------------------------------------------------------


def optimizers() -> dict[str, Any]:
    return {
        "plain": None,
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
        "adamax": lambda p: torch.optim.Adamax(p, lr=1e-3, betas=(0.0, 0.95)),
        "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    }


def shuffled(trainer: OnlineTrainer, epochs: int) -> list[Any]:
    """Epochs with batches in an order drawn from the trainer's generator."""
    data, history = batches(), []
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=trainer.generator)
        history += trainer.fit([data[k] for k in order], 1)
    return history


@every_rule
@pytest.mark.parametrize("optimizer", optimizers().values(), ids=optimizers())
def test_resumed_is_uninterrupted_bit_for_bit(rule: Any, optimizer: Any, tmp_path: Path) -> None:
    whole, first, rest = (double(rule, optimizer=optimizer, seed=k) for k in (5, 5, 6))
    history = shuffled(whole, 3)
    shuffled(first, 1)
    first.save(tmp_path / "t.pt")
    rest.load(tmp_path / "t.pt")
    assert shuffled(rest, 2) == history[1:]
    same(whole, rest)
    assert [p.name for p in tmp_path.iterdir()] == ["t.pt"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    trainer, path = double(RULES["ottt"]), tmp_path / "t.pt"
    trainer.save(path)
    old = path.read_bytes()

    def no_space(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer.fit(batches(), 1)
    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(Invalid, match="No space left"):
        trainer.save(path)
    assert path.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    adam = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-3)}
    double(RULES["ottt"], **adam).save(tmp_path / "other.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:-200])
    torch.save({"a": 1}, tmp_path / "dict.pt")
    trainer = double(RULES["decolle"], **adam)
    start = weights(trainer)
    for name, message in {
        "none.pt": "got none", "torn.pt": "expected a checkpoint", "dict.pt": "the format",
        "other.pt": "expected a checkpoint of",
    }.items():  # fmt: skip
        with pytest.raises(Invalid, match=message):
            trainer.load(tmp_path / name)
    assert all(torch.equal(v, start[n]) for n, v in weights(trainer).items())
    with pytest.raises(Invalid, match="Adam"):
        double(RULES["ottt"]).load(tmp_path / "other.pt")


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_see_every_epoch() -> None:
    seen = []

    class Spy:
        def epoch(self, trainer: OnlineTrainer, record: Any) -> None:
            seen.append((trainer.epochs, record))

    history = double(RULES["ottt"], callbacks=(Spy(),)).fit(batches(), 2)
    assert seen == [(1, history[0]), (2, history[1])]


def test_tensorboard_gets_scalars(monkeypatch: Any, tmp_path: Path) -> None:
    written: list[Any] = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            written.append(log_dir)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append("flush")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    (record,) = double(RULES["ottt"], callbacks=(TensorBoard(tmp_path),)).fit(batches(), 1)
    scalars = [(name, record[name], 1) for name in ("loss", "accuracy", "updates")]
    assert written == [str(tmp_path), *scalars, "flush"]


def test_tensorboard_missing_is_refused_with_a_remedy(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Refused, match="pip install tensorboard"):
        TensorBoard(tmp_path)


# --- from and into modules ------------------------------------------------------------------------


def snntorch_net(bias: bool = True) -> Any:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(3)
    kind = {"beta": 0.8, "threshold": 0.5, "init_hidden": True}
    return nn.Sequential(
        nn.Linear(7, 6, bias=bias), snn.Leaky(**kind), nn.Linear(6, 3, bias=bias), snn.Leaky(**kind)
    )


def run_snntorch(net: Any, spikes: Any) -> Any:
    from snntorch.utils import reset

    reset(net)
    with torch.no_grad():
        return torch.stack([net(step) for step in spikes.to(next(net.parameters()).dtype)])


def norse_net() -> Any:
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(4)
    p = norse.LIFBoxParameters(
        tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.3), reset_method=norse.reset_subtract
    )
    return norse.SequentialState(
        nn.Linear(7, 6), norse.LIFBoxCell(p), nn.Linear(6, 3), norse.LIFBoxCell(p)
    )


def run_norse(net: Any, spikes: Any) -> Any:
    out, state = [], None
    with torch.no_grad():
        for step in spikes.to(next(net.parameters()).dtype):
            spike, state = net(step, state)
            out.append(spike)
    return torch.stack(out)


MODULES = {"snntorch": (snntorch_net, run_snntorch), "norse": (norse_net, run_norse)}


@pytest.mark.parametrize(("make", "run"), MODULES.values(), ids=MODULES)
def test_trained_weights_go_back_into_the_module(make: Any, run: Any) -> None:
    module, data = make(), batches()
    trainer = OnlineTrainer(module, RULES["ottt"], sample=torch.zeros(1, 7))
    spikes = data[0][0]
    with build(trainer.network(), backend="torch") as session:
        start = next(iter(session.run(spikes.numpy()).spikes.values()))
    trainer.fit(data, 10)
    trainer.into(module)
    with build(trainer.network(), backend="torch") as session:
        recording = session.run(spikes.numpy())
    want = recording["output"]
    assert not np.array_equal(start, next(iter(recording.spikes.values())))
    assert want.sum() > 0
    np.testing.assert_array_equal(run(module, spikes).numpy(), want)


def test_gains_are_undone() -> None:
    trainer = OnlineTrainer(norse_net(), RULES["ottt"], sample=torch.zeros(1, 7))
    assert trainer.network().populations[0].gain[0] == pytest.approx(0.3)
    module = norse_net()
    weight = module[0].weight.detach().clone()
    trainer.into(module)
    torch.testing.assert_close(module[0].weight, weight, rtol=0, atol=1e-6)


def test_recurrent_weights_go_back(tmp_path: Path) -> None:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(5)
    kind = {"beta": 0.8, "threshold": 0.4, "init_hidden": True}
    net: Any = nn.Sequential(
        nn.Linear(7, 6), snn.RLeaky(all_to_all=True, linear_features=6, **kind),
        nn.Linear(6, 3), snn.Leaky(**kind),
    )  # fmt: skip
    trainer = OnlineTrainer(net, RULES["decolle"], sample=torch.zeros(1, 7))
    old = net[1].recurrent.weight.detach().clone()
    trainer.fit(batches(), 5)
    trainer.into(net)
    assert not torch.equal(net[1].recurrent.weight, old)
    spikes = batches()[0][0]
    with build(trainer.network(), backend="torch") as session:
        want = session.run(spikes.numpy())["output"]
    np.testing.assert_array_equal(run_snntorch(net, spikes).numpy(), want)


def test_convolutions_go_back() -> None:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(6)
    kind = {"beta": 0.8, "threshold": 0.3, "init_hidden": True}
    net: Any = nn.Sequential(
        nn.Conv2d(1, 2, 2), snn.Leaky(**kind), nn.Flatten(), nn.Linear(8, 3), snn.Leaky(**kind)
    )
    spikes = torch.rand(STEPS, BATCH, 1, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    trainer = OnlineTrainer(net, RULES["ottt"], sample=torch.zeros(1, 1, 3, 3))
    old = net[0].bias.detach().clone()
    trainer.fit([(spikes, torch.tensor([0, 1, 2, 0]))], 5)
    trainer.into(net)
    assert not torch.equal(net[0].bias, old)
    with build(trainer.network(), backend="torch") as session:
        want = session.run(spikes.numpy())["output"]
    np.testing.assert_array_equal(run_snntorch(net, spikes).numpy(), want)


def test_folded_layers_are_refused_and_nothing_is_written() -> None:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(7)
    kind = {"beta": 0.8, "threshold": 0.3, "init_hidden": True}
    net: Any = nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 6), snn.Leaky(**kind),
        nn.Linear(6, 3), snn.Leaky(**kind),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"input->3: expected a layer of free weights.*0, 1, 2"):
        trainer = OnlineTrainer(net, RULES["ottt"], sample=torch.zeros(1, 1, 4, 4))
    spikes = torch.ones(STEPS, BATCH, 1, 4, 4)
    trainer.fit([(spikes, torch.tensor([0, 1, 2, 0]))], 1)
    old = {n: v.clone() for n, v in net.state_dict().items()}
    with pytest.raises(Refused, match=r"input->3: .*one layer.*got 0, 1, 2"):
        trainer.into(net)
    assert all(torch.equal(v, old[n]) for n, v in net.state_dict().items())


def test_frozen_layers_are_not_trained_and_not_written() -> None:
    net, sample = snntorch_net(), torch.zeros(1, 7)
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    old = {n: v.clone() for n, v in net.state_dict().items()}
    trainer = OnlineTrainer(net, RULES["ottt"], sample=sample)
    assert set(trainer.learning.plans) == {"1->3"}
    trainer.fit(batches(1), 1)
    trainer.into(net)
    changed = {n for n, v in net.state_dict().items() if not torch.equal(v, old[n])}
    assert changed == {"2.weight"}
    net.requires_grad_(False)
    with pytest.raises(Invalid, match=r"model: expected a layer that learns.*requires_grad"):
        OnlineTrainer(net, RULES["ottt"], sample=sample)


def test_what_is_no_model_learning_or_optimizer() -> None:
    adam = torch.optim.Adam(torch.nn.Linear(2, 2).parameters(), lr=1e-3)
    wrong: Any = "ottt"
    with pytest.raises(Invalid, match=r"model: expected a Network or a torch module, got str"):
        OnlineTrainer(wrong, RULES["ottt"])
    with pytest.raises(Invalid, match=r"learning: expected a Learning.*got str"):
        OnlineTrainer(network(), wrong)
    for wrong in (adam, "adam"):
        with pytest.raises(Invalid, match=r"optimizer: expected a function .*got (Adam|str)"):
            double(RULES["ottt"], optimizer=wrong)


def test_a_mismatch_names_only_what_differs(tmp_path: Path) -> None:
    double(RULES["ottt"], update="sequence").save(tmp_path / "a.pt")
    with pytest.raises(Invalid, match=r"update step, got one of .*update sequence") as caught:
        double(RULES["ottt"]).load(tmp_path / "a.pt")
    assert "ThreeFactor" not in str(caught.value)


def test_another_module_is_refused_and_restored() -> None:
    net, sample = snntorch_net(), torch.zeros(1, 7)
    trainer = OnlineTrainer(
        net, lambda n: ottt_for(n, 3, 0.1, frozen=("1->3",)), sample=sample
    )  # fmt: skip
    other = snntorch_net()
    with torch.no_grad():
        other[2].weight += 1  # frozen, so not written
    old = {n: v.clone() for n, v in other.state_dict().items()}
    with pytest.raises(Refused, match=r"1->3: .*It is not trained"):
        trainer.into(other)
    assert all(torch.equal(v, old[n]) for n, v in other.state_dict().items())
    with pytest.raises(Refused, match="expected a module with"):
        trainer.into(snntorch_net(bias=False))


def test_norse_cells_with_weights_of_their_own() -> None:
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(8)
    p = norse.LIFParameters(v_th=torch.tensor(0.2))
    net: Any = norse.SequentialState(
        norse.LIFRecurrentCell(7, 6, p=p), nn.Linear(6, 3), norse.LIFCell(p)
    )
    trainer = OnlineTrainer(net, RULES["decolle"], sample=torch.zeros(1, 7))
    old = net[0].input_weights.detach().clone(), net[0].recurrent_weights.detach().clone()
    trainer.fit(batches(), 10)
    trainer.into(net)
    assert not torch.equal(net[0].input_weights, old[0])
    assert not torch.equal(net[0].recurrent_weights, old[1])
    spikes = batches()[0][0]
    with build(trainer.network(), backend="torch") as session:
        want = session.run(spikes.numpy())["output"]
    np.testing.assert_array_equal(run_norse(net, spikes).detach().numpy(), want)


def test_a_folded_batch_norm_is_refused_and_the_module_restored() -> None:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(9)
    kind = {"beta": 0.8, "threshold": 0.3, "init_hidden": True}
    norm = nn.BatchNorm1d(3)
    nn.init.constant_(norm.weight, 2.0)
    net = nn.Sequential(nn.Linear(7, 3), norm, snn.Leaky(**kind)).eval()
    trainer = OnlineTrainer(net, RULES["ottt"], sample=torch.zeros(1, 7))
    trainer.fit(batches(), 1)
    old = {n: v.clone() for n, v in net.state_dict().items()}
    with pytest.raises(Refused, match=r"input->2: .*batch norm"):
        trainer.into(net)
    assert all(torch.equal(v, old[n]) for n, v in net.state_dict().items())


def test_a_module_needs_a_sample_and_neurons() -> None:
    with pytest.raises(Refused, match="sample="):
        OnlineTrainer(snntorch_net(), RULES["ottt"])
    with pytest.raises(Refused, match="snnTorch or Norse neurons"):
        OnlineTrainer(nn.Linear(7, 3), RULES["ottt"], sample=torch.zeros(1, 7))


def test_the_trained_network_is_written_as_nir() -> None:
    trainer = double(RULES["decolle"])
    trainer.fit(batches(), 1)
    again = discretise(to_nir(trainer.network(), {"rule": "decolle"}))
    for name, value in trainer.network().weights().items():
        np.testing.assert_allclose(again.weights()[name], value, rtol=1e-12)


# --- what is refused ------------------------------------------------------------------------------

SPIKES, LABELS = batches(1)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one batch, got none"),
        (iter([(SPIKES, LABELS)]), "got an iterator"),
        ([(SPIKES[:, 0], LABELS)], r"\(time, batch, neuron\.\.\.\) with neurons \(7,\), got"),
        ([(SPIKES[..., :5], LABELS)], r"neurons \(7,\), got \(9, 4, 5\)"),
        ([(SPIKES[:0], LABELS)], "at least one step"),
        ([({"other": SPIKES}, LABELS)], "expected inputs in, got other"),
        ([(SPIKES, LABELS[:2])], r"each of 4 samples, got \(2,\)"),
        ([(SPIKES, torch.tensor([0, 1, 3, 0]))], r"labels in 0\.\.2, got 3 at position 2"),
        ([(SPIKES, LABELS.double())], "integer labels"),
        ([(SPIKES * float("nan"), LABELS)], r"that are NaN or infinite, the first nan at"),
        ([("text", LABELS)], "expected numbers"),
        ([SPIKES], "expected pairs of spikes and labels"),
    ],
)
def test_wrong_batches_are_refused(given: Any, message: str) -> None:
    trainer = double(RULES["ottt"])
    start = weights(trainer)
    with pytest.raises(Invalid, match=message):
        trainer.fit(given, 1)
    assert all(torch.equal(v, start[n]) for n, v in weights(trainer).items())


@pytest.mark.parametrize("update", ["step", "sequence"])
def test_nan_names_plan_and_step_and_keeps_the_last_good_weights(
    update: str, monkeypatch: Any
) -> None:
    trainer = double(RULES["ottt"], update=update)
    trainer.fit(batches(), 1)
    good = weights(trainer)
    step, calls = trainer.online.learner.step, []

    def poisoned(*args: Any) -> Any:
        deltas, state = step(*args)
        calls.append(weights(trainer))
        if len(calls) == 4:
            outer = deltas["n0->n1"]["weight"]
            deltas["n0->n1"]["weight"] = replace(outer, left=outer.left * float("nan"))
        return deltas, state

    monkeypatch.setattr(trainer.online.learner, "step", poisoned)
    with pytest.raises(Invalid, match=r"n0->n1: .*step 3"):
        trainer.fit(batches(), 1)
    kept = calls[3] if update == "step" else good
    assert all(torch.equal(v, kept[n]) for n, v in weights(trainer).items())


def test_an_optimizer_that_blows_up_is_found_in_the_next_step() -> None:
    trainer = double(RULES["ottt"], optimizer=lambda p: torch.optim.SGD(p, lr=float("inf")))
    with pytest.raises(Invalid, match="step"):
        trainer.fit(batches(), 1)


def test_unknown_update_and_no_optimizer_are_refused() -> None:
    with pytest.raises(Invalid, match="expected one of step, sequence, got 'epoch'"):
        double(RULES["ottt"], update="epoch")
    with pytest.raises(Invalid, match="a torch optimizer, got one that makes list"):
        double(RULES["ottt"], optimizer=lambda p: p)
