"""NeuroBench's figures, computed by hand; `neurobench` 2.3.0 gave the same on snnTorch networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plastic_cases as cases
import pytest
import scipy.sparse as sp

from grasp_plugin import build
from grasp_plugin.errors import Invalid
from grasp_plugin.network.network import Bias, Network, Projection
from grasp_plugin.network.weights import Conv
from grasp_plugin.neurobench import neurobench_figures
from grasp_plugin.runtime.session import Recording

# in (2) -> h (3) -> o (2), o does not spike; h -> h a step later
NET = cases.network(
    [cases.population("h", 3), cases.population("o", 2, reset=None, node="LI")],
    [
        Projection("in->h", "in", "h", np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 0.0]])),
        Projection("h->h", "h", "h", np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]), 1),
        Projection("h->o", "h", "o", sp.csr_matrix([[0.0, 0, 5], [0, 4, 0]])),
    ],
    [Bias("bh", "h", np.zeros(3))], inputs={"in": (2,)},
)  # fmt: skip
INPUT = np.array([[1.0, 0], [1, 1], [0, 0.5], [0, 0]])
HIDDEN = np.array([[1.0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]])
OUT = np.array([[0.1, 0], [0.2, 0], [0.3, 0], [0.3, 0]])
MEMBRANE = {"h": np.array([[0.0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 1, 2]]), "o": OUT}


def recording(**more: dict[str, np.ndarray]) -> Recording:
    return Recording({"h": HIDDEN, "o": OUT}, {"out": "o"}, **more)


def test_figures_by_hand() -> None:
    found = neurobench_figures(NET, INPUT, recording(membrane=MEMBRANE))
    assert found.parameters == 6 + 9 + 2 + 3
    assert found.connection_sparsity == (3 + 3 + 4) / (6 + 9 + 6)
    assert found.activation_sparsity == 1 - 7 / 12
    # in->h: columns hold 2 and 1 weights; (1, 0), (1, 1) are spikes, (0, 0.5) is not
    # h->h: 2 weights a column, of the spikes of steps 0 to 2; h->o: columns hold 0, 1, 1
    assert found.effective_macs == 1
    assert found.effective_acs == (2 + 3) + 2 * (1 + 2 + 1) + (0 + 2 + 1 + 2)
    assert found.dense_operations == 4 * (6 + 9 + 2)
    # h: 3 neurons, then 2 changes, 1, 0; o: 2 neurons, then 1, 1, 0
    assert found.membrane_updates == 3 + 2 + 1 + 2 + 1 + 1
    # parameters, 6 a neuron, one step of h kept; a sparse matrix's 2 columns and 3 row ends
    assert found.footprint_bytes == 4 * (20 + 6 * 5 + 3) + 4 * (2 + 3)
    assert neurobench_figures(NET, INPUT, recording()).membrane_updates is None
    small = neurobench_figures(NET, INPUT, recording(), number_bytes=1)
    assert small.footprint_bytes == (20 + 6 * 5 + 3) + 4 * (2 + 3)


def test_samples_are_averaged() -> None:
    both = Recording(
        {"h": np.stack([HIDDEN, 0 * HIDDEN], axis=1), "o": np.stack([OUT, OUT], axis=1)}, {}
    )
    found = neurobench_figures(NET, np.stack([INPUT, 0 * INPUT], axis=1), both)
    one = neurobench_figures(NET, INPUT, recording())
    assert found.effective_acs == one.effective_acs / 2
    assert found.effective_macs == one.effective_macs / 2
    assert found.dense_operations == one.dense_operations
    assert found.activation_sparsity == 1 - 7 / 24


def test_delays_of_each_synapse() -> None:
    """Synapses with a delay of 2 see the first two steps only, of four."""
    delays = np.array([[1, 2, 2], [1, 1, 1], [1, 1, 1]])
    projections = tuple(
        replace(k, delay_steps=delays) if k.name == "h->h" else k for k in NET.projections
    )
    found = neurobench_figures(replace(NET, projections=projections), INPUT, recording())
    plain = neurobench_figures(NET, INPUT, recording())
    # row 0 of h->h, from columns 1 and 2, misses step 2: (0, 0, 1), one operation
    assert found.effective_acs == plain.effective_acs - 1
    assert found.dense_operations == plain.dense_operations
    assert found.footprint_bytes == plain.footprint_bytes + 4 * (3 + 9)  # a step more, and delays


def test_a_kernel_by_hand() -> None:
    """One channel of 3, kernel (1, 0, 2) padded by 1: 7 synapses of 9, 2 of 3 weights not zero."""
    kernel = np.array([[[1.0, 0.0, 2.0]]])
    conv = Conv(kernel, (1, 3), (1,), ((1, 1),), (1,))
    net = cases.network(
        [cases.population("h", (1, 3))], [Projection("in->h", "in", "h", conv)],
        inputs={"in": (1, 3)},
    )  # fmt: skip
    x = np.array([[[1.0, 1, 0]], [[0, 1, 0]]])
    found = neurobench_figures(net, x, Recording({"h": np.zeros((2, 1, 3))}, {}))
    assert found.parameters == 3
    assert found.connection_sparsity == pytest.approx(1 / 3)
    assert found.dense_operations == 2 * 7
    assert found.effective_acs == (1 + 2) + 2  # the outer inputs reach one output, the middle two
    assert found.activation_sparsity == 1


def test_a_run() -> None:
    rng = np.random.default_rng(0)
    net: Network = cases.two_layers(rng)
    x = (rng.random((20, 3, cases.IN)) < 0.4).astype(float)
    with build(net, "fused") as session:
        found = neurobench_figures(net, x, session.run(x, record=("membrane",)))
    assert found.effective_macs == 0
    assert 0 < found.effective_acs < found.dense_operations == 20 * (72 + 32)
    assert 0 < found.activation_sparsity < 1
    assert found.membrane_updates is not None
    assert 12 <= found.membrane_updates <= 20 * 12


def test_another_run_is_refused() -> None:
    with pytest.raises(Invalid, match="expected a record of"):
        neurobench_figures(NET, INPUT[:3], recording())
    with pytest.raises(Invalid, match="expected populations h, o"):
        neurobench_figures(NET, INPUT, Recording({"h": HIDDEN}, {}))
