"""What a scheduler remembers: read, saved and resumed, the same on every back end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plastic_cases as cases
import pytest

from grasp_plugin import build, quantise
from grasp_plugin.errors import Invalid
from grasp_plugin.learning import GRASP, decolle_for, etlp_for, ottt_for, scheduled
from grasp_plugin.learning.budget import Fixed, Marginal, RandomSteps, Sharpness
from grasp_plugin.learning.optimise import Adam, Momentum
from grasp_plugin.learning.spec import Learning
from grasp_plugin.learning.states import leaves
from grasp_plugin.runtime.learning import LearningSession

NET = cases.two_layers(np.random.default_rng(0))
SPIKES = (np.random.default_rng(1).random((20, cases.IN)) < 0.4).astype(float)
MORE = SPIKES[::-1].copy()
INTEGERS = quantise(NET, plastic=["in->h", "h->o", "bh", "bo"])
BACKENDS = ("torch", "fused", pytest.param("lava", marks=pytest.mark.lava))
POLICIES: dict[str, Any] = {
    "owed": lambda: scheduled(decolle_for(NET, 3, 0.2), GRASP(Fixed(0.013), "magnitude")),
    "price": lambda: scheduled(
        decolle_for(NET, 3, 0.2, dropout=0.3), GRASP(Marginal(0.1), "magnitude", series=7)
    ),
    "mean": lambda: scheduled(
        etlp_for(NET, cases.OUT, 0.05, probability=0.5),
        GRASP(Sharpness(0.1, follows="gradient"), "random", seed=3),
    ),
    "step": lambda: scheduled(
        ottt_for(NET, cases.OUT, 0.02, pipelined=True), GRASP(RandomSteps(0.3), "magnitude")
    ),
    "moments": lambda: scheduled(
        decolle_for(NET, 3, 1.0), GRASP(Fixed(0.1), "magnitude"), Momentum(0.1)
    ),
    "catch up": lambda: scheduled(
        decolle_for(NET, 3, 1.0), GRASP(Fixed(0.1), "magnitude"), Adam(0.02, catch_up=True)
    ),
}


def same(one: LearningSession, two: LearningSession) -> bool:
    """True if weights and lasting states are the same, bit for bit."""
    pairs = [(one.weights(), two.weights()), (one.transforms(), two.transforms())]
    flat = [(dict(leaves(a)), dict(leaves(b))) for a, b in pairs]
    return all(
        list(a) == list(b) and all(np.array_equal(a[n], b[n], equal_nan=True) for n in a)
        for a, b in flat
    )


CASES = [
    *((policy, backend, "float") for policy in POLICIES for backend in ("torch", "fused")),
    *((policy, "fused", "loihi") for policy in ("owed", "price", "mean", "step")),
    *(
        pytest.param(p, "lava", "float", marks=pytest.mark.lava)
        for p in ("owed", "mean", "moments")
    ),
    *(pytest.param(p, "lava", "loihi", marks=pytest.mark.lava) for p in ("owed", "mean")),
]


@pytest.mark.parametrize(("policy", "backend", "precision"), CASES)
def test_g10_a_resumed_session_is_the_uninterrupted_one(
    policy: str, backend: str, precision: str, tmp_path: Path
) -> None:
    """save, load into a new session, go on, also with sequences of another length."""
    net, learning = (NET if precision == "float" else INTEGERS), POLICIES[policy]()
    lessons = ((MORE, 2), (SPIKES[:9], 0), (SPIKES, 1))
    with build(net, backend, plans=learning) as kept, build(net, backend, plans=learning) as other:
        start = kept.weights()
        kept.learn(SPIKES, 1)
        kept.save(tmp_path / "kept")
        other.learn(MORE[:7], 0)  # to be forgotten
        other.load(tmp_path / "kept")
        assert same(kept, other)
        for spikes, label in lessons:
            kept.learn(spikes, label)
            other.learn(spikes, label)
            assert same(kept, other)
        assert cases.gap([kept.weights()], [start]) > 1e-3


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_learned_depends_on_what_is_remembered(policy: str, tmp_path: Path) -> None:
    """The same weights with the states of before step 0 learn something else."""
    learning = POLICIES[policy]()
    with build(NET, "fused", plans=learning) as one, build(NET, "fused", plans=learning) as two:
        fresh = one.transforms()
        one.learn(SPIKES, 1)
        one.save(tmp_path / "kept")
        two.load(tmp_path / "kept")
        two._set_lasting(fresh)
        one.learn(MORE, 2)
        two.learn(MORE, 2)
        assert cases.gap([one.weights()], [two.weights()]) > 0


@pytest.mark.parametrize("policy", ["price", "mean", "catch up"])
@pytest.mark.lava
def test_lava_remembers_what_the_others_do(policy: str) -> None:
    """From before step 0, over sequences of two lengths; the same choices, so the same counts."""
    learning = POLICIES[policy]()
    kept = []
    for backend in ("fused", "torch", "lava"):
        with build(NET, backend, plans=learning) as session:
            states = [dict(leaves(session.transforms()))]
            for spikes, label in ((SPIKES, 1), (MORE[:9], 2)):
                session.learn(spikes, label)
                states.append(dict(leaves(session.transforms())))
            kept.append(states)
    for others in kept[1:]:
        for mine, theirs in zip(kept[0], others, strict=True):
            assert list(mine) == list(theirs)
            for name, value in mine.items():
                assert value.dtype == theirs[name].dtype
                if np.isnan(theirs[name]).all():
                    continue  # a sharpness that is not known on Lava
                close = 0.02 if name.endswith("overhead") else 1e-9  # its bisections: by rounding
                assert np.allclose(value, theirs[name], rtol=close, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_copies_in_numpy(backend: str) -> None:
    learning = POLICIES["moments"]()
    with build(NET, backend, plans=learning) as session:
        before = session.transforms()
        assert set(before) == set(learning.plans)
        assert set(before["in->h"]) == {"0", "1"}
        session.learn(SPIKES, 1)
        after = session.transforms()
        for _, value in leaves(before):
            assert isinstance(value, np.ndarray)
            assert not value.any()
        assert after["in->h"]["0"]["steps"][0] == 20
        assert after["in->h"]["1"]["buffer"].shape == (cases.HIDDEN, cases.IN)
        after["in->h"]["1"]["buffer"][:] = 7
        assert not np.any(session.transforms()["in->h"]["1"]["buffer"] == 7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_remembered_too(backend: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    net = cases.convolution(rng)
    kernels = [k.name for k in net.projections]  # a bias that a channel shares is not scheduled
    grasp = GRASP(Fixed(0.03), "magnitude")
    learning = scheduled(decolle_for(net, 3, 0.1), grasp, only=kernels)
    spikes = (rng.random((10, *next(iter(net.inputs.values())))) < 0.4).astype(float)
    with build(net, backend, plans=learning) as one, build(net, backend, plans=learning) as two:
        one.learn(spikes, 1)
        one.save(tmp_path / "kept")
        two.load(tmp_path / "kept")
        one.learn(spikes, 2)
        two.learn(spikes, 2)
        assert same(one, two)


def test_plans_without_a_lasting_transform_are_left_out() -> None:
    learning = scheduled(
        decolle_for(NET, 3, 0.2, burn_in=2), GRASP(Fixed(0.1), "magnitude"), only=["h->o"]
    )
    with build(NET, "fused", plans=learning) as session:
        assert set(session.transforms()) == {"h->o"}
        assert set(session.transforms()["h->o"]) == {"1"}  # behind BurnIn
    with build(NET, "fused", plans=decolle_for(NET, 3, 0.2)) as session:
        assert session.transforms() == {}


def test_a_checkpoint_without_states_is_refused_whole(tmp_path: Path) -> None:
    from grasp_plugin.runtime.checkpoint import load_arrays, save_arrays

    learning: Learning = POLICIES["owed"]()
    with build(NET, "fused", plans=learning) as session:
        session.learn(SPIKES, 1)
        session.save(tmp_path / "kept")
        arrays, facts = load_arrays(tmp_path / "kept")
        cut = {n: a for n, a in arrays.items() if not n.endswith("budget.owed")}
        assert len(cut) < len(arrays)
        del facts["format"]
        save_arrays(tmp_path / "cut", cut, facts)
    with build(NET, "fused", plans=learning) as session:
        before = session.weights()
        with pytest.raises(Invalid, match="expected this array in the state"):
            session.load(tmp_path / "cut")
        assert cases.gap([session.weights()], [before]) == 0
