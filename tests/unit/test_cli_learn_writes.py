"""`grasp learn --writes`: fewer synaptic writes, counted in the report, named in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cli_cases import CHOICES, CLASSES, STEPS, call, lif, write, write_convolution

from grasp_plugin import Discretisation, discretise
from grasp_plugin.adapters.nir_file import read_nir
from grasp_plugin.network.hints import read_hints

INPUTS, HIDDEN = 16, 20
RATES = {"decolle": 0.2, "etlp": 1e-3, "ottt": 3e-3, "sltt": 3e-3}
lava = pytest.mark.lava


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two dense layers, the first with a bias."""
    return write(tmp_path / "net.nir", {
        "in": nir.Input(np.array([INPUTS])),
        "w1": nir.Affine(0.5 * rng.normal(size=(HIDDEN, INPUTS)), 0.1 * rng.normal(size=HIDDEN)),
        "h": lif(HIDDEN),
        "w2": nir.Linear(0.3 * rng.normal(size=(CLASSES, HIDDEN))),
        "o": lif(CLASSES),
        "out": nir.Output(np.array([CLASSES])),
    })  # fmt: skip


@pytest.fixture
def convolution(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_convolution(tmp_path / "conv.nir", rng)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class c spikes in the c-th group of four inputs."""
    return save(tmp_path / "data.npz", (INPUTS,))


def save(path: Path, shape: tuple[int, ...], count: int = 60) -> Path:
    labels = np.arange(count) % CLASSES
    rates = np.where(np.arange(INPUTS) // 4 == labels[:, None], 0.6, 0.05)
    spikes = np.random.default_rng(3).random((STEPS, count, INPUTS)) < rates
    np.savez(path, spikes=spikes.reshape(STEPS, count, *shape), labels=labels)
    return path


def learn(capsys: Any, model: Path, data: Path, *more: Any) -> dict[str, Any]:
    backend = () if "--backend" in more else ("--backend", "fused")
    status, out, err = call(
        capsys, "learn", model, "--data", data, "--json", *CHOICES, *backend, *more
    )
    assert (status, err) == (0, "")
    facts: dict[str, Any] = json.loads(out)
    return facts


def weights(path: Path) -> dict[str, Any]:
    policy = Discretisation(dt_s=1e-3, reset="subtract-delayed")
    return discretise(read_nir(path), policy).weights()


@pytest.mark.parametrize("precision", ["float", "fixed"])
@pytest.mark.parametrize("rule", RATES)
@pytest.mark.parametrize("backend", ["fused", pytest.param("lava", marks=lava)])
def test_a_share_is_written_and_said(
    model: Path, data: Path, capsys: Any, backend: str, rule: str, precision: str
) -> None:
    target = model.with_name("learned.nir")
    facts = learn(capsys, model, data, "--rule", rule, "--lr", RATES[rule], "--backend", backend,
                  "--precision", precision, "--writes", 0.1, "--output", target)  # fmt: skip
    found = facts["writes"]
    assert (found["asked"], found["score"], found["uncounted"]) == (0.1, "magnitude", ["bias->h"])
    assert found["dense"] == 48 * STEPS * (INPUTS * HIDDEN + HIDDEN * CLASSES)
    assert 0 < found["writes"] <= 0.1 * found["dense"] + 1
    assert found["share"] == found["writes"] / found["dense"]
    assert found["share_of_nonzero"] == found["writes"] / found["dense_nonzero"]
    assert (found["changed"] is None) == (precision == "float")
    assert facts["learned"] == ["bias->h", "h->o", "in->h"]
    hints = read_hints(read_nir(target))
    assert (hints["learning_writes"], hints["learning_score"]) == ("0.1", "magnitude")
    before, after = weights(model), weights(target)
    assert all(not np.allclose(after[name], before[name]) for name in before)


def test_without_it_nothing_is_scheduled_or_said(model: Path, data: Path, capsys: Any) -> None:
    target = model.with_name("learned.nir")
    argv = ("learn", model, "--data", data, "--rule", "ottt", "--backend", "fused", *CHOICES,
            "--output", target)  # fmt: skip
    assert json.loads(call(capsys, *argv, "--json")[1])["writes"] is None
    assert "writes" not in call(capsys, *argv)[1]
    assert not {"learning_writes", "learning_score"} & set(read_hints(read_nir(target)))


def test_all_of_them_is_the_rule_itself(model: Path, data: Path, capsys: Any) -> None:
    targets = [model.with_name(f"{name}.nir") for name in ("all", "some", "none")]
    argv = ("--rule", "decolle", "--lr", 0.2)
    plain = learn(capsys, model, data, *argv, "--output", targets[0])
    whole = learn(capsys, model, data, *argv, "--output", targets[1], "--writes", 1)
    learn(capsys, model, data, *argv, "--output", targets[2], "--writes", 0.02)
    assert whole["accuracy"] == plain["accuracy"]
    assert whole["writes"]["share_of_nonzero"] == 1
    want, same, other = (weights(target) for target in targets)
    assert all(np.allclose(same[name], want[name], rtol=1e-9) for name in want)
    assert any(not np.allclose(other[name], want[name]) for name in want)


@pytest.mark.parametrize("backend", ["fused", "torch", pytest.param("lava", marks=lava)])
@pytest.mark.parametrize("score", ["pred_decrease", "abs_gHg", "random"])
def test_scores(model: Path, data: Path, capsys: Any, score: str, backend: str) -> None:
    facts = learn(capsys, model, data, "--rule", "decolle", "--lr", 0.2, "--backend", backend,
                  "--writes", 0.05, "--score", score)  # fmt: skip
    assert facts["writes"]["score"] == score
    assert 0 < facts["writes"]["share"] <= 0.0501


def test_the_seed_draws_the_random_ones(model: Path, data: Path, capsys: Any) -> None:
    argv = ("--test", data, "--rule", "ottt", "--lr", 3e-3, "--writes", 0.02, "--score", "random")
    targets = [model.with_name(f"{n}.nir") for n in range(3)]
    for target, seed in zip(targets, (1, 1, 2), strict=True):
        learn(capsys, model, data, *argv, "--seed", seed, "--output", target)
    one, same, other = (weights(target)["in->h"] for target in targets)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("backend", ["fused", pytest.param("lava", marks=lava)])
def test_biases_are_left_to_the_rule(
    convolution: Path, data: Path, capsys: Any, backend: str
) -> None:
    images = save(data.with_name("image.npz"), (1, 4, 4))
    argv = ("learn", convolution, "--data", images, "--rule", "ottt", "--backend", backend,
            *CHOICES, "--writes", 0.1)  # fmt: skip
    status, out, _ = call(capsys, *argv)
    assert status == 0
    (line,) = [one for one in out.splitlines() if one.startswith("writes")]
    assert line.startswith("writes, chosen by magnitude: ")
    assert line.endswith("; written in full, not counted: bias->c")
    status, out, _ = call(capsys, *argv, "--frozen", "bias->c")
    assert status == 0
    assert "not counted" not in out


def test_a_checkpoint_brings_its_counts_and_another_share_is_refused(
    model: Path, data: Path, capsys: Any
) -> None:
    argv = ("--rule", "etlp", "--lr", 1e-3, "--checkpoint", model.with_name("state"))
    first, second = (learn(capsys, model, data, *argv, "--writes", 0.1) for _ in range(2))
    assert second["writes"]["dense"] == 2 * first["writes"]["dense"]
    for more in ([], ["--writes", 0.2]):
        status, _, err = call(capsys, "learn", model, "--data", data, "--backend", "fused",
                              *argv, *more, *CHOICES)  # fmt: skip
        assert status == 2
        assert "expected a checkpoint of" in err


BAD = [
    (["--writes", "0"], "--writes: expected a share in (0, 1], got 0.0"),
    (["--writes", "1.01"], "--writes: expected a share in (0, 1], got 1.01"),
    (["--writes", "-0.5"], "--writes: expected a share in (0, 1], got -0.5"),
    (["--writes", "nan"], "--writes: expected a share in (0, 1], got nan"),
    (["--score", "random"], "--score: expected --writes with it, got none"),
    (["--writes", "0.1", "--frozen", "in->h", "h->o"], "--writes: expected a projection left"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_calls(model: Path, data: Path, capsys: Any, options: list[str], said: str) -> None:
    before = set(model.parent.iterdir())
    status, out, err = call(
        capsys, "learn", model, "--data", data, "--rule", "ottt", "--backend", "fused", *CHOICES,
        "--output", model.with_name("out.nir"), *options,
    )  # fmt: skip
    assert (status, out) == (2, "")
    assert err.startswith(f"grasp: {said}")
    assert len(err.strip().splitlines()) == 1
    assert set(model.parent.iterdir()) == before


@lava
def test_a_curvature_that_lava_cannot_send_is_refused(model: Path, data: Path, capsys: Any) -> None:
    argv = ["learn", model, "--data", data, "--rule", "ottt", "--writes", 0.1, *CHOICES]
    status, _, err = call(capsys, *argv, "--score", "pred_decrease")
    assert status == 2
    assert "in->h: expected a signal that closes its own loss" in err
    assert "score='magnitude'" in err
    assert call(capsys, *argv, "--score", "pred_decrease", "--backend", "fused")[0] == 0


def test_an_unknown_score_is_refused(model: Path, data: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(capsys, "learn", model, "--data", data, "--rule", "ottt", "--score", "best")
    assert "pred_decrease" in capsys.readouterr().err
