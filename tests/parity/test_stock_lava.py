"""In one process = stock Lava, bit for bit: the same program, compiled by Lava, run both ways.

Every graph is built twice from the same seed and run for the same steps, once in one process and
once on Lava's own multi-process runtime (supervised), in both tags; all recordings and the Vars
named are compared. Learning rules get a seed, since Lava draws one where none is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grasp_plugin import lava_session
from grasp_plugin.runtime.lava_import import have_lava, require_lava

pytestmark = pytest.mark.lava
STEPS = 40
TAGS = ("floating_pt", "fixed_pt")

if have_lava():
    require_lava()
    from lava.magma.core.learning.learning_rule import Loihi3FLearningRule
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import DelayDense, Dense, LearningDense
    from lava.proc.io.sink import Read
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.learning_rules.r_stdp_learning_rule import RewardModulatedSTDP
    from lava.proc.learning_rules.stdp_learning_rule import STDPLoihi
    from lava.proc.lif.process import LIF, LIFReset, TernaryLIF
    from lava.proc.monitor.process import Monitor
    from lava.proc.rf.process import RF
    from lava.proc.sdn.process import Delta, Sigma
    from lava.proc.sparse.process import DelaySparse, Sparse

Program = tuple[Any, dict[str, Any], dict[str, Any]]  # process, sinks and monitors, Vars


def weights(rng: Any, shape: tuple[int, ...], tag: str) -> Any:
    if tag == "fixed_pt":
        return (rng.integers(-60, 60, shape) * 2).astype(np.int32)
    return rng.normal(size=shape) * 0.4


def lif(n: int, tag: str, cls: Any = None, **extra: Any) -> Any:
    options = {"du": 4095, "dv": 400, "vth": 90} if tag == "fixed_pt" else {
        "du": 1.0, "dv": 0.1, "vth": 1.0
    }  # fmt: skip
    return (cls or LIF)(shape=(n,), **{**options, **extra})


def source(rng: Any, n: int, tag: str, p: float = 0.3) -> Any:
    data = rng.random((n, STEPS)) < p
    return Source(data=data.astype(np.int32 if tag == "fixed_pt" else float))


def chain(rng: Any, tag: str) -> Program:
    s, a, n = source(rng, 8, tag), Dense(weights=weights(rng, (12, 8), tag)), lif(12, tag)
    b, m, k = Dense(weights=weights(rng, (5, 12), tag)), lif(5, tag), Sink(shape=(5,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(b.s_in)
    b.a_out.connect(m.a_in), m.s_out.connect(k.a_in)
    return k, {"sink": k}, {"v": m.v, "u": n.u}


def recurrent(rng: Any, tag: str) -> Program:
    s, a, n = source(rng, 8, tag), Dense(weights=weights(rng, (12, 8), tag)), lif(12, tag)
    r, k = Dense(weights=weights(rng, (12, 12), tag)), Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(r.s_in)
    r.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    return n, {"sink": k}, {"v": n.v}


def delays(rng: Any, tag: str) -> Program:
    d = rng.integers(0, 6, (12, 8))
    s, n = source(rng, 8, tag), lif(12, tag)
    a = DelayDense(weights=weights(rng, (12, 8), tag), delays=d)
    k = Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    return n, {"sink": k}, {"v": n.v}


def sparse(rng: Any, tag: str) -> Program:
    import scipy.sparse as sp

    mask = rng.random((12, 8)) < 0.4
    s, n = source(rng, 8, tag), lif(12, tag)
    a = Sparse(weights=sp.csr_matrix(weights(rng, (12, 8), tag) * mask))
    k = Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    return n, {"sink": k}, {"v": n.v, "w": a.weights}


def delay_sparse(rng: Any, tag: str) -> Program:
    import scipy.sparse as sp

    full = weights(rng, (12, 8), tag)
    s, n = source(rng, 8, tag), lif(12, tag)
    delays_ = sp.csr_matrix(rng.integers(1, 4, (12, 8)))
    a = DelaySparse(weights=sp.csr_matrix(full + (full == 0)), delays=delays_, max_delay=4)
    k = Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    return n, {"sink": k}, {"v": n.v}


def convolution(rng: Any, tag: str) -> Program:
    data = (rng.random((6, 6, 2, STEPS)) < 0.3).astype(np.int32 if tag == "fixed_pt" else float)
    s = Source(data=data)
    c = Conv(weight=weights(rng, (3, 3, 3, 2), tag), input_shape=(6, 6, 2), padding=1)
    n = lif(c.output_shape[0], tag)
    n = (LIF)(shape=c.output_shape, **({"du": 4095, "dv": 400, "vth": 90} if tag == "fixed_pt"
                                       else {"du": 1.0, "dv": 0.1, "vth": 1.0}))  # fmt: skip
    k = Sink(shape=c.output_shape, buffer=STEPS)
    s.s_out.connect(c.s_in), c.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    return n, {"sink": k}, {"v": n.v}


def reshaped(rng: Any, tag: str) -> Program:
    """Reshape ports; Lava 0.10 has ConcatPort but cannot compile it."""
    data = (rng.random((2, 4, STEPS)) < 0.3).astype(np.int32 if tag == "fixed_pt" else float)
    s, n = Source(data=data), lif(12, tag)
    a = Dense(weights=weights(rng, (12, 8), tag))
    s.s_out.reshape((8,)).connect(a.s_in)
    a.a_out.connect(n.a_in)
    k = Sink(shape=(3, 4), buffer=STEPS)
    n.s_out.reshape((3, 4)).connect(k.a_in)
    return n, {"sink": k}, {"v": n.v}


def monitors(rng: Any, tag: str) -> Program:
    s, a, n = source(rng, 8, tag), Dense(weights=weights(rng, (12, 8), tag)), lif(12, tag)
    v, spikes = Monitor(), Monitor()
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in)
    v.probe(n.v, STEPS), spikes.probe(n.s_out, STEPS)
    return n, {"v": v, "spikes": spikes}, {"u": n.u}


def ref_ports(rng: Any, tag: str) -> Program:
    """Lava's `Read` process reads a Var of another Process through a RefPort, every third step."""
    s, a, n = source(rng, 8, tag), Dense(weights=weights(rng, (12, 8), tag)), lif(12, tag)
    reader = Read(buffer=STEPS // 3, interval=3, offset=1)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in)
    reader.connect_var(n.v)
    return n, {}, {"v": n.v, "read": reader.data}


def other_neurons(rng: Any, tag: str) -> Program:
    s, a = source(rng, 8, tag), Dense(weights=weights(rng, (12, 8), tag))
    ternary = (
        {"vth_hi": 90, "vth_lo": -90} if tag == "fixed_pt" else {"vth_hi": 1.0, "vth_lo": -1.0}
    )
    decay = {"du": 4095, "dv": 400} if tag == "fixed_pt" else {"du": 1.0, "dv": 0.1}
    n = TernaryLIF(shape=(12,), **ternary, **decay)
    r = lif(12, tag, LIFReset, reset_interval=7)
    k, q = Sink(shape=(12,), buffer=STEPS), Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), a.a_out.connect(r.a_in)
    n.s_out.connect(k.a_in), r.s_out.connect(q.a_in)
    return n, {"ternary": k, "reset": q}, {"v": n.v}


def sigma_delta(rng: Any, tag: str) -> Program:
    data = rng.integers(0, 20, (6, STEPS))
    s = Source(data=data if tag == "fixed_pt" else data.astype(float))
    d, g, k = Delta(shape=(6,), vth=3), Sigma(shape=(6,)), Sink(shape=(6,), buffer=STEPS)
    s.s_out.connect(d.a_in), d.s_out.connect(g.a_in), g.s_out.connect(k.a_in)
    return d, {"sink": k}, {}


def resonators(rng: Any, tag: str) -> Program:
    s, a = source(rng, 8, tag), Dense(weights=weights(rng, (6, 8), tag))
    n = RF(shape=(6,), period=7, alpha=0.07, vth=2, state_exp=6, decay_bits=12)
    k = Sink(shape=(6,), buffer=STEPS)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_real_in), n.s_out.connect(k.a_in)
    return n, {"sink": k}, {}


def stdp(rng: Any, tag: str) -> Program:
    rule = STDPLoihi(
        learning_rate=1, A_plus=1, A_minus=-2, tau_plus=10, tau_minus=10, t_epoch=4, rng_seed=3
    )  # Lava draws a seed of its own where none is given
    s, a, n = source(rng, 8, tag), Dense(weights=weights(rng, (6, 8), tag)), lif(6, tag)
    m, k = lif(5, tag), Sink(shape=(5,), buffer=STEPS)
    start = np.abs(weights(rng, (5, 6), tag))
    plastic = LearningDense(weights=start, learning_rule=rule)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(plastic.s_in)
    plastic.a_out.connect(m.a_in), m.s_out.connect(plastic.s_in_bap), m.s_out.connect(k.a_in)
    return n, {"sink": k}, {"w": plastic.weights}


def rewarded(rng: Any, tag: str) -> Program:
    rule = RewardModulatedSTDP(
        learning_rate=1, A_plus=2, A_minus=-2, pre_trace_decay_tau=10, post_trace_decay_tau=10,
        pre_trace_kernel_magnitude=16, post_trace_kernel_magnitude=16,
        eligibility_trace_decay_tau=0.5,
        t_epoch=2, rng_seed=3,
    )  # fmt: skip
    kind = np.int32 if tag == "fixed_pt" else float
    s, n = source(rng, 8, tag), lif(6, tag)
    traces = [Source(data=rng.integers(0, 8, (6, STEPS)).astype(kind)) for _ in range(3)]
    plastic = LearningDense(weights=weights(rng, (6, 8), tag), learning_rule=rule)
    k = Sink(shape=(6,), buffer=STEPS)
    s.s_out.connect(plastic.s_in), plastic.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    n.s_out.connect(plastic.s_in_bap)
    for trace, port in zip(traces, ("s_in_y1", "s_in_y2", "s_in_y3"), strict=True):
        trace.s_out.connect(getattr(plastic, port))
    return n, {"sink": k}, {"w": plastic.weights}


def three_factor(rng: Any, tag: str) -> Program:
    rule = Loihi3FLearningRule(
        dw="2^-3*u0*x1*y1", x1_impulse=16, x1_tau=10, t_epoch=1, rng_seed=1
    )  # fmt: skip
    s, n = source(rng, 8, tag), lif(6, tag)
    error = Source(
        data=rng.integers(-3, 4, (6, STEPS)).astype(np.int32 if tag == "fixed_pt" else float)
    )
    plastic = LearningDense(weights=weights(rng, (6, 8), tag), learning_rule=rule)
    k = Sink(shape=(6,), buffer=STEPS)
    s.s_out.connect(plastic.s_in), plastic.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    error.s_out.connect(plastic.s_in_y1)
    return n, {"sink": k}, {"w": plastic.weights}


def hierarchical(rng: Any, tag: str) -> Program:
    """Our own hierarchical and leaf Processes, by Lava's discovery."""
    import nir

    from grasp_plugin import Discretisation, discretise, quantise
    from grasp_plugin.adapters import to_lava

    shape = np.array([12])
    nodes = {"i": nir.Input(np.array([8])),
             "a": nir.Affine(rng.normal(size=(12, 8)), rng.normal(size=12) * 0.3),
             "n": nir.LIF(np.full(12, 0.01), np.full(12, 4.0), np.full(12, 0.1), np.ones(12)),
             "w": nir.Linear(rng.normal(size=(12, 12))), "o": nir.Output(shape)}  # fmt: skip
    edges = [("i", "a"), ("a", "n"), ("n", "w"), ("w", "n"), ("n", "o")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    network = discretise(graph, Discretisation(dt_s=1e-3, reset="subtract-delayed"))
    process = to_lava(quantise(network) if tag == "fixed_pt" else network)
    s, k = source(rng, 8, tag), Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(process.input()), process.output().connect(k.a_in)
    return process, {"sink": k}, {}


def fused(rng: Any, tag: str) -> Program:
    """A whole network as one leaf Process of ours."""
    from grasp_plugin.processes.fused.process import FusedNetwork

    process = FusedNetwork(network=hierarchical(rng, tag)[0].network)
    s, k = source(rng, 8, tag), Sink(shape=(12,), buffer=STEPS)
    s.s_out.connect(process.s_in), process.s_out.connect(k.a_in)
    return process, {"sink": k}, {"v": process.v}


def adaptive(rng: Any, tag: str) -> Program:
    """ResetLIF with an adaptive threshold, all its ports."""
    from grasp_plugin.processes.leaky.process import ResetLIF

    raised = {"rho": 400, "theta": 3000} if tag == "fixed_pt" else {"rho": 0.9, "theta": 0.5}
    s, a = source(rng, 8, tag), Dense(weights=weights(rng, (12, 8), tag))
    n = lif(12, tag, ResetLIF, reset="subtract-delayed", n_ref=2, onset=3, **raised)
    sinks = {
        port: Sink(shape=(12,), buffer=STEPS) for port in ("s_out", "margin_out", "active_out")
    }
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in)
    for port, sink in sinks.items():
        getattr(n, port).connect(sink.a_in)
    return n, sinks, {"v": n.v, "adapt": n.adapt, "wait": n.wait}


def exact_learner(rng: Any, tag: str) -> Program:
    """Weights, delays and thresholds written through RefPorts at the end of two samples."""
    from grasp_plugin import quantise
    from grasp_plugin.adapters.from_exact import to_network
    from grasp_plugin.learning.exact import Parameters
    from grasp_plugin.learning.exact.deployed import Deployed
    from grasp_plugin.processes.exact.process import ExactLearner
    from grasp_plugin.processes.network.models import neuron_process

    stack = [Parameters(rng.normal(3, 0.5, (2, 3)), rng.uniform(0, 3, (2, 3)))]
    network = to_network(stack, 1.0)
    network = quantise(network, plastic=["input->layer1"]) if tag == "fixed_pt" else network
    learner = Deployed(
        stack, network, t_end_ms=20.0, train=("weight", "delay", "theta"), most_steps=6
    )
    (held,), fixed = learner.written(), tag == "fixed_pt"
    kind = np.int32 if fixed else float
    a = DelayDense(
        weights=held.weight.astype(kind), delays=held.delay, max_delay=6,
        **({"weight_exp": network.projections[0].weight_exp} if fixed else {}),
    )  # fmt: skip
    n = neuron_process(network["layer1"], network.precision, 1, frozenset(["layer1"]))
    s, k, teach = source(rng, 3, tag), Sink(shape=(2,), buffer=STEPS), np.zeros((2, STEPS))
    teach[0, 20:], teach[1, [14, 34]] = 1, 1
    t, process = Source(data=teach), ExactLearner(learner=learner)
    s.s_out.connect(a.s_in), a.a_out.connect(n.a_in), n.s_out.connect(k.a_in)
    s.s_out.connect(process.s_in_0), n.s_out.connect(process.s_in_1)
    t.s_out.connect(process.teach_in)
    process.weights_1.connect_var(a.weights), process.delays_1.connect_var(a.delays)
    process.theta_1.connect_var(n.vth)
    variables = {"w": a.weights, "d": a.delays, "vth": n.vth, "loss": process.loss}
    return process, {"sink": k}, variables


GRAPHS: dict[str, Callable[[Any, str], Program]] = {
    f.__name__: f
    for f in (chain, recurrent, delays, sparse, delay_sparse, convolution, reshaped, monitors,
              ref_ports, other_neurons, sigma_delta, resonators, stdp, rewarded, three_factor,
              hierarchical,
              fused, adaptive, exact_learner)
}  # fmt: skip


def outcome(graph: Callable[[Any, str], Program], tag: str, runtime: str) -> dict[str, Any]:
    process, recorders, variables = graph(np.random.default_rng(5), tag)
    config = Loihi2SimCfg(select_tag=tag)
    with lava_session(process, config, runtime=runtime, stall_s=60) as session:
        session.run(STEPS // 2)
        session.run(STEPS - STEPS // 2)
        found: dict[str, Any] = {}
        for name, recorder in recorders.items():
            if isinstance(recorder, Sink):
                found[name] = recorder.data.get()
            else:
                (values,) = next(iter(recorder.get_data().values())).values()
                found[name] = values
        for name, var in variables.items():
            value = var.get()
            found[name] = value.toarray() if hasattr(value, "toarray") else value
    return found


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("name", GRAPHS)
def test_in_one_process_equals_stock(name: str, tag: str) -> None:
    ours, stock = (outcome(GRAPHS[name], tag, runtime) for runtime in ("inprocess", "supervised"))
    assert set(ours) == set(stock)
    for key, value in ours.items():
        assert value.shape == stock[key].shape, key
        assert np.array_equal(value, stock[key]), key
    assert any(np.any(value != 0) for value in ours.values())
