"""`grasp learn` as a stranger meets it: learning, files, JSON, bad calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cli_cases import CHOICES, CLASSES, SIDE, STEPS, call, lif, write, write_convolution

from grasp_plugin import discretise
from grasp_plugin.adapters.nir_file import read_nir
from grasp_plugin.network.hints import read_hints

lava = pytest.mark.lava


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two dense layers on 4 x 4 pixels."""
    return write(tmp_path / "net.nir", {
        "in": nir.Input(np.array([SIDE, SIDE])),
        "flat": nir.Flatten({"input": np.array([SIDE, SIDE])}, 0, -1),
        "w1": nir.Affine(0.5 * rng.normal(size=(20, SIDE**2)), 0.1 * rng.normal(size=20)),
        "h": lif(20),
        "w2": nir.Linear(0.3 * rng.normal(size=(CLASSES, 20))),
        "o": lif(CLASSES),
        "out": nir.Output(np.array([CLASSES])),
    })  # fmt: skip


@pytest.fixture
def convolution(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_convolution(tmp_path / "conv.nir", rng)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class c spikes in row c."""
    return save(tmp_path / "data.npz", (SIDE, SIDE))


def save(path: Path, shape: tuple[int, ...], count: int = 60) -> Path:
    rng = np.random.default_rng(3)
    labels = np.arange(count) % CLASSES
    rates = np.where(np.arange(SIDE)[None, :] == labels[:, None], 0.6, 0.05)[:, :, None]
    spikes = rng.random((STEPS, count, SIDE, SIDE)) < rates
    np.savez(path, spikes=spikes.reshape(STEPS, count, *shape), labels=labels)
    return path


RULES = {"decolle": 0.2, "etlp": 1e-3, "ottt": 3e-3, "sltt": 3e-3}


@pytest.mark.parametrize("precision", ["float", "fixed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", ["fused", pytest.param("lava", marks=lava)])
def test_learns_and_writes_back(
    model: Path, data: Path, capsys: Any, backend: str, rule: str, precision: str
) -> None:
    target = model.with_name("learned.nir")
    status, out, err = call(
        capsys, "learn", model, "--rule", rule, "--data", data, "--backend", backend,
        "--precision", precision, "--lr", RULES[rule], "--output", target, "--json", *CHOICES,
    )  # fmt: skip
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert set(facts["learned"]) == {"in->h", "h->o", "bias->h"}
    assert [p["after_samples"] for p in facts["accuracy"]] == [0, 20, 40]
    assert sum(p["of"] for p in facts["accuracy"]) == facts["samples"] == 48
    assert facts["held_out_samples"] == 12
    assert bool(facts["clipped"]) == (precision == "fixed")
    graph = read_nir(target)
    hints = read_hints(graph)
    assert hints["learning_rule"] == rule
    assert hints["learning_rate"] == f"{RULES[rule]:g}"
    assert hints["learning_precision"] == precision
    assert int(hints["learning_steps"]) % 48 == 0 < int(hints["learning_steps"])
    before, after = discretise_with(model), discretise(graph)
    for name, weight in before.weights().items():
        assert not np.allclose(after.weights()[name], weight)
    assert call(capsys, "info", target)[0] == 0


def discretise_with(path: Path) -> Any:
    from grasp_plugin import Discretisation

    return discretise(read_nir(path), Discretisation(dt_s=1e-3, reset="subtract-delayed"))


def learn(capsys: Any, model: Path, data: Path, *more: Any) -> dict[str, Any]:
    status, out, err = call(
        capsys, "learn", model, "--data", data, "--json", *CHOICES,
        *(("--backend", "fused") if "--backend" not in more else ()), *more,
    )  # fmt: skip
    assert (status, err) == (0, "")
    facts: dict[str, Any] = json.loads(out)
    return facts


def test_accuracy_rises_and_the_picture_shows_it(model: Path, data: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    picture = model.with_name("accuracy.png")
    facts = learn(capsys, model, data, "--rule", "ottt", "--lr", 3e-3, "--epochs", 8,
                  "--plot", picture)  # fmt: skip
    assert facts["held_out"]["after"] > 0.6 > facts["held_out"]["before"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("backend", ["torch", pytest.param("lava", marks=lava)])
def test_back_ends_agree(model: Path, data: Path, capsys: Any, backend: str) -> None:
    argv = ("--rule", "decolle", "--lr", 0.2)
    ours = learn(capsys, model, data, *argv, "--backend", backend)
    assert ours["accuracy"] == learn(capsys, model, data, *argv)["accuracy"]


def test_frozen_is_left_alone(model: Path, data: Path, capsys: Any) -> None:
    target = model.with_name("learned.nir")
    argv = ("--rule", "ottt", "--lr", 3e-3, "--output", target)
    facts = learn(capsys, model, data, *argv, "--frozen", "h")
    assert facts["frozen"] == ["in->h", "bias->h"]
    assert facts["learned"] == ["h->o"]
    before, after = discretise_with(model), discretise(read_nir(target))
    assert np.allclose(after.weights()["in->h"], before.weights()["in->h"], rtol=1e-12)
    assert not np.allclose(after.weights()["h->o"], before.weights()["h->o"])
    assert read_hints(read_nir(target))["learning_frozen"] == "in->h, bias->h"


def test_a_checkpoint_is_taken_up(model: Path, data: Path, capsys: Any) -> None:
    file = model.with_name("state")
    targets = [model.with_name(f"{n}.nir") for n in ("once", "twice")]
    argv = ("--rule", "etlp", "--lr", 1e-3)
    whole = learn(capsys, model, data, *argv, "--epochs", 2, "--output", targets[0])
    first = learn(capsys, model, data, *argv, "--checkpoint", file)
    second = learn(capsys, model, data, *argv, "--checkpoint", file, "--output", targets[1])
    shares = [[p["accuracy"] for p in facts["accuracy"]] for facts in (whole, first, second)]
    assert shares[0] == shares[1] + shares[2]
    one, two = (discretise(read_nir(t)).weights() for t in targets)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    status, _, err = call(capsys, "learn", model, "--data", data, "--rule", "ottt", "--backend",
                          "fused", "--checkpoint", file, *CHOICES)  # fmt: skip
    assert status == 2
    assert "expected a checkpoint of" in err


def test_fixed_refuses_what_the_engine_has_not(
    model: Path, convolution: Path, data: Path, capsys: Any
) -> None:
    flat = save(data.with_name("image.npz"), (1, SIDE, SIDE))
    argv = ["--rule", "ottt", "--backend", "fused", "--precision", "fixed", "--dt", "1e-3"]
    status, _, err = call(capsys, "learn", convolution, "--data", flat, *argv, "--reset",
                          "subtract-delayed")  # fmt: skip
    assert status == 2
    assert "--frozen bias->c" in err
    status, out, _ = call(capsys, "learn", convolution, "--data", flat, *argv, "--reset",
                          "subtract-delayed", "--frozen", "bias->c")  # fmt: skip
    assert status == 0
    assert "learned: c->o, in->c; frozen: bias->c" in out
    status, _, err = call(capsys, "learn", model, "--data", data, *argv, "--reset", "value")
    assert status == 2
    assert "subtractive reset" in err


def test_a_hard_reset_learns_in_float_and_says_so(
    model: Path, data: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        status, out, _ = call(capsys, "learn", model, "--data", data, "--rule", "ottt",
                              "--backend", "fused", "--dt", "1e-3", "--reset", "value")  # fmt: skip
    assert status == 0
    assert "per-synapse trace" in caplog.text
    assert "per-synapse trace" in out


def test_decolle_says_that_it_reads_its_own_readout(model: Path, data: Path, capsys: Any) -> None:
    argv = ["learn", model, "--data", data, "--backend", "fused", *CHOICES]
    assert "random readout of o" in call(capsys, *argv, "--rule", "decolle")[1]
    assert "random readout" not in call(capsys, *argv, "--rule", "ottt")[1]


def bad_files(folder: Path) -> None:
    spikes, labels = np.ones((STEPS, 20, SIDE, SIDE)), np.arange(20) % CLASSES
    np.savez(folder / "swapped.npz", spikes=spikes.swapaxes(0, 1), labels=labels)
    np.savez(folder / "shape.npz", spikes=spikes[:, :, :2], labels=labels)
    np.savez(folder / "few.npz", spikes=spikes, labels=labels[:7])
    np.savez(folder / "class.npz", spikes=spikes, labels=labels + 1)
    np.savez(folder / "nan.npz", spikes=spikes * np.nan, labels=labels)
    np.savez(folder / "float.npz", spikes=spikes, labels=labels * 1.0)
    np.savez(folder / "names.npz", x=spikes, y=labels)
    np.savez(folder / "none.npz", spikes=spikes[:, :0], labels=labels[:0])
    np.savez(folder / "steps.npz", spikes=spikes[:0], labels=labels)
    (folder / "text.npz").write_text("hello")
    (folder / "text.zip").write_text("hello")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"--data": "missing.npz"}, "expected a file"), ({"--data": "text.npz"}, "numpy.save"),
        ({"--data": "text.zip"}, "N-MNIST"), ({"--data": "missing"}, "N-MNIST"),
        ({"--data": "swapped.npz"}, "swapaxes"), ({"--data": "shape.npz"}, "Check the axes"),
        ({"--data": "few.npz"}, "a label for each"), ({"--data": "class.npz"}, "0..2, got 3"),
        ({"--data": "nan.npz"}, "finite"), ({"--data": "float.npz"}, "integer labels"),
        ({"--data": "names.npz"}, "spikes and labels, got x, y"),
        ({"--data": "none.npz"}, "a label for each"), ({"--data": "steps.npz"}, "one step"),
        ({"--test": "shape.npz"}, "Check the axes"), ({"--held-out": "1"}, "[0, 1)"),
        ({"--held-out": "0.001"}, "both sides"), ({"--held-out": "nan"}, "[0, 1)"),
        ({"--lr": "-1"}, "> 0"), ({"--lr": "nan"}, "> 0"), ({"--epochs": "0"}, "1 or more"),
        ({"--block": "0"}, "1 or more"), ({"--seed": "-1"}, "0 or more"),
        ({"--classes": "1"}, "2 or more"), ({"--classes": "5"}, "5 neurons"),
        ({"--frozen": "nobody"}, "in->h"), ({"--output": "no/folder.nir"}, "folder"),
        ({"--plot": "no/a.png"}, "folder"), ({"--checkpoint": "no/a"}, "folder"),
        ({"--checkpoint": "text.zip"}, "text.zip"), ({"--reset": "sideways"}, "sideways"),
        ({"--backend": "torch", "--precision": "fixed"}, "lava"), ({"--lr": "1e308"}, "finite"),
    ],
)  # fmt: skip
def test_bad_calls_end_in_status_2_and_leave_nothing(
    model: Path, data: Path, capsys: Any, change: dict[str, str], word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(model.parent)
    bad_files(model.parent)
    options = {"--data": data.name, "--rule": "ottt", "--backend": "fused", "--dt": "1e-3",
               "--reset": "subtract-delayed", "--output": "out.nir"} | change  # fmt: skip
    before = set(Path().iterdir())
    with np.errstate(all="ignore"):
        status, out, err = call(capsys, "learn", model, *(a for p in options.items() for a in p))
    assert (status, out) == (2, "")
    assert err.startswith("grasp: ")
    assert len(err.strip().splitlines()) == 1
    assert word in err
    assert set(Path().iterdir()) == before


def test_everything_frozen_is_refused(model: Path, data: Path, capsys: Any) -> None:
    status, _, err = call(capsys, "learn", model, "--data", data, "--rule", "ottt", "--backend",
                          "fused", "--frozen", "h", "o", *CHOICES)  # fmt: skip
    assert status == 2
    assert "left to learn" in err


def test_nmnist_is_framed_as_the_network_needs(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "digits"
    for number in range(20):
        t = np.sort(rng.integers(0, 300_000, 60))
        words = [bytes([int(x), int(y)]) + (int(p) << 23 | int(at)).to_bytes(3, "big")
                 for x, y, p, at in zip(rng.integers(0, 34, 60), rng.integers(0, 34, 60),
                                        rng.integers(0, 2, 60), t, strict=True)]  # fmt: skip
        path = source / "Train" / str(number % 3) / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(words))
    shape = np.array([2, 2, 2])
    model = write(tmp_path / "n.nir", {
        "in": nir.Input(shape), "flat": nir.Flatten({"input": shape}, 0, -1),
        "w": nir.Linear(rng.normal(size=(CLASSES, 8))), "o": lif(CLASSES),
        "out": nir.Output(np.array([CLASSES])),
    })  # fmt: skip
    argv = ["learn", model, "--data", source, "--rule", "sltt", "--backend", "fused", "--json"]
    status, out, _ = call(capsys, *argv, "--dt", "5e-3", "--reset", "subtract-delayed")
    assert status == 0
    assert json.loads(out)["samples"] == 16
    other = write(tmp_path / "m.nir", {
        "in": nir.Input(np.array([9])), "w": nir.Linear(rng.normal(size=(CLASSES, 9))),
        "o": lif(CLASSES), "out": nir.Output(np.array([CLASSES])),
    })  # fmt: skip
    argv[1] = other
    status, _, err = call(capsys, *argv, "--dt", "5e-3", "--reset", "subtract-delayed")
    assert status == 2
    assert "to_frames" in err
