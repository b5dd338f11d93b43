"""GRASP over convolutions: the curvature of a shared kernel, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from plastic_cases import convolution

from grasp_plugin import build
from grasp_plugin.errors import Refused
from grasp_plugin.learning import GRASP, decolle, decolle_for, scheduled
from grasp_plugin.learning.budget import Fixed
from grasp_plugin.learning.convolved import Convolved, patches
from grasp_plugin.learning.deltas import Outer
from grasp_plugin.learning.worth import gradient_of
from grasp_plugin.network.weights import Conv

CLASSES = 3


@pytest.mark.parametrize("batch", [1, 3])
def test_curvature_of_a_shared_kernel_is_that_of_all_its_synapses(batch: int) -> None:
    """H of the kernel = sum_b J_b^T M_b J_b, J the derivative of every membrane, formed here."""
    rng = np.random.default_rng(21)
    conv = Conv(rng.normal(size=(2, 1, 2, 2)), (1, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
    rule = replace(decolle(0.3), bias=None)
    own, places = Convolved(rule, conv), patches(conv)
    roots = rng.normal(size=(batch, 8, 8))
    m = roots @ roots.transpose(0, 2, 1)
    outer = own.shared(Outer(rng.normal(size=(batch, 8)), rng.random((batch, 9)), -0.3))
    x = outer.right.reshape(batch, len(places), 4)
    jacobian = np.zeros((batch, 2, 4, 2, 4))  # channel, position; channel, offset
    for channel in range(2):
        jacobian[:, channel, :, channel] = x
    flat = jacobian.reshape(batch, 8, 8)
    hessian = np.einsum("bou,bop,bpv->uv", flat, m, flat)
    g = (outer.dense() / -0.3).ravel()
    bend = own.curvature(lambda u, kind: np.einsum("bop,bp->bo", m, u))
    scores = GRASP(score="abs_gHg").scores(gradient_of(outer), bend)
    assert np.allclose(scores.r.ravel(), np.abs(g * (hessian @ g)), rtol=1e-10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_kernels_are_scheduled_and_shared_biases_are_not(backend: str) -> None:
    net = convolution(np.random.default_rng(0))
    learning = decolle_for(net, CLASSES, 0.05)
    kernels = [n for n in learning.plans if n in {k.name for k in net.projections}]
    grasp = GRASP(Fixed(0.25), "pred_decrease", series=4)
    shape = next(iter(net.inputs.values()))
    x = (np.random.default_rng(0).random((30, *shape)) < 0.4) * 1.0
    with build(net, backend, plans=scheduled(learning, grasp, only=kernels)) as session:
        session.learn(x, 1)
        state = session.transforms()[kernels[0]]["0"]
    assert 0 < state["issued"][0] <= 0.25 * state["dense"][0]
    assert np.all(np.isfinite(state["sharpness"]))
    assert len(kernels) < len(learning.plans)
    with pytest.raises(Refused, match="same bias"):
        build(net, backend, plans=scheduled(learning, grasp))
