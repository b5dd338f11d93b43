"""What `benchmarks/meta.py` prints first: exact to the tolerances of its specification."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import _meta_checks as checks
from _meta_tasks import METHODS, PRECISIONS, Method, learner_of, model_of

from grasp_plugin.learning.meta import Tasks


def test_identity_twin_and_lava() -> None:
    assert checks.identity_error() < 1e-10
    assert checks.smooth_error() < 1e-5
    lava = checks.lava_error()
    assert lava is None or lava < 1e-12


def test_the_plain_loop_is_the_same_step() -> None:
    """Loss and gradient of the mapped learner and of the loops it is timed against."""
    net, tasks = checks.small()
    maml = checks.MAML(net, step_size=checks.A, mapped=True)
    theta = list(net.parameters())
    one = torch.autograd.grad(maml(tasks), theta)
    two = torch.autograd.grad(checks.plain_step(net, tasks, maml.step_sizes()), theta)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("method", [*METHODS, *PRECISIONS], ids=lambda m: m.name)
def test_every_method_makes_a_learner(method: Method) -> None:
    torch.manual_seed(0)
    maml = learner_of(method, model_of(method), step_size=0.1)
    made = [(torch.rand(1, 20, n, 2, 8, 16) < 0.1).float() for n in (5, 5)]
    labels = torch.arange(5)[None]
    loss = maml(Tasks(made[0], labels, made[1], labels))
    assert torch.isfinite(loss)
    if method.bits < 32:
        phi = maml.adapt(made[0][0], labels[0])
        for name, grid in maml.outer_grid.items():  # type: ignore[union-attr]
            assert len(torch.unique(phi[name])) <= 2**method.bits
            assert torch.equal(phi[name] / grid.step, torch.round(phi[name] / grid.step))
