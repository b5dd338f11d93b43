"""What the command line says of files and options that are none: one line, status 2, no traceback.

Status 1 would say that `verify` found a difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from cli_cases import CHOICES, CLASSES, SIDE, call, lif, write

from grasp_plugin import cli_files
from grasp_plugin.errors import Invalid, MissingChoice, Refused


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    np.save(tmp_path / "x.npy", (rng.random((6, SIDE)) < 0.4).astype(float))
    return write(tmp_path / "net.nir", {
        "in": nir.Input(np.array([SIDE])),
        "w": nir.Linear(rng.normal(size=(CLASSES, SIDE))),
        "o": lif(CLASSES),
        "out": nir.Output(np.array([CLASSES])),
    })  # fmt: skip


def refused(capsys: Any, *argv: Any) -> str:
    """The one line of an error."""
    status, out, err = call(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("grasp: ")
    assert err.count("\n") == 1
    return err


def run(capsys: Any, model: Path, output: Any, *more: Any) -> str:
    return refused(capsys, "run", model, "--input", model.with_name("x.npy"), "--output", output,
                   "--backend", "torch", *(more or CHOICES))  # fmt: skip


def test_outputs_that_cannot_be_written(model: Path, capsys: Any) -> None:
    missing = model.with_name("nodir") / "o.npz"
    assert f"{missing}: expected a folder that exists, got none. Make" in run(
        capsys, model, missing
    )
    assert "expected a file to write, got a folder. Add a file name." in run(
        capsys, model, model.parent
    )
    assert ".: expected a file to write, got a folder." in run(capsys, model, ".")
    assert sorted(p.name for p in model.parent.iterdir()) == ["net.nir", "x.npy"]


@pytest.mark.parametrize("verb", ["verify", "learn"])
@pytest.mark.parametrize("name", ["v.docx", "v", "nodir/v.png", "."])
def test_pictures_are_checked_before_the_work(
    model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("grasp_plugin.verify.verify", late)
    monkeypatch.setattr("grasp_plugin.cli_learn.read_samples", late)
    given = ["--input", model.with_name("x.npy")] if verb == "verify" else [
        "--rule", "ottt", "--data", "d.npz"]  # fmt: skip
    err = refused(capsys, verb, model, *given, "--plot", model.parent / name, *CHOICES)
    wanted = "Name it .png" if name in ("v.docx", "v") else "expected a f"
    assert wanted in err


def test_errors_of_libraries_end_in_status_2(
    model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("grasp_plugin.__main__.write_arrays", broken)
    assert run(capsys, model, model.with_name("o.npz")) == "grasp: first second\n"


def test_a_full_disk_names_the_output(
    model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli_files.os, "replace", full)
    target = model.with_name("o.npz")
    assert f"{target}: cannot be written: No space left" in run(capsys, model, target)


def test_remedies_name_options(model: Path, capsys: Any) -> None:
    err = run(capsys, model, model.with_name("o.npz"), "--dt", "0.5", "--reset", "value")
    assert "--scheme exponential" in err
    assert "scheme=" not in err
    status, out, _ = call(capsys, "info", model, "--json", "--dt", "1e-3")
    line = json.loads(out)
    assert status == 2
    assert line["remedy"].startswith("Pass --reset ... with one of 'value'") or (
        "--reset ..." in line["remedy"]
    )


def test_remedies_in_options() -> None:
    class Given:
        dt = reset = time_unit = None

    cases = {
        "Pass dt_s=... or time_unit='ms'": "Pass --dt ... or --time-unit ms",
        "Pass dt_s": "Pass --dt",
        "or use backend='torch'": "or use backend='torch'",  # the verb has no such option
        "Pass time_unit='s' or 'ms'": "Pass --time-unit s or 'ms'",
    }
    for given, wanted in cases.items():
        error = cli_files.in_options(Refused("n", "r", given), Given())
        assert (type(error), error.remedy) == (Refused, wanted)
        assert type(cli_files.in_options(Invalid("n", "r", given), Given())) is Invalid
    choice = MissingChoice("n", "reset", {"value": "to 0"})
    said = str(cli_files.in_options(choice, Given()))
    assert said.endswith("Pass --reset ... with one of 'value': to 0.")


INPUTS: dict[str, tuple[bytes, str]] = {
    "x.csv": (b"0,1,0,1\n", "x.csv: expected a .npy or .npz file, got a text file. Save the"),
    "x.dat": (b"0 1 0 1\n", "got another file, or one of objects. Save it with numpy.save"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_another_kind(model: Path, capsys: Any, name: str) -> None:
    data, message = INPUTS[name]
    model.with_name(name).write_bytes(data)
    err = refused(capsys, "run", model, "--input", model.with_name(name), "--output",
                  model.with_name("o.npz"), "--backend", "torch", *CHOICES)  # fmt: skip
    assert message in err
    assert "pickle" not in err


def test_data_of_another_kind_and_labels(model: Path, capsys: Any) -> None:
    def learn(data: Path) -> str:
        return refused(capsys, "learn", model, "--rule", "ottt", "--data", data, "--backend",
                       "torch", *CHOICES)  # fmt: skip

    assert "expected an .npz with spikes and labels, or a folder" in learn(model.with_name("x.npy"))
    data = model.with_name("d.npz")
    for label, wanted in ((-1, "Mend the labels: they count from 0"), (3, "Pass --classes")):
        labels = np.array([0, 1, label, 2])
        np.savez(data, spikes=np.ones((5, 4, SIDE)), labels=labels)
        err = learn(data)
        assert f"expected labels in 0..2, got {label} of sample 2. {wanted}" in err
