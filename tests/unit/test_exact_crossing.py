"""Threshold crossings: closed forms, Newton's method and the cascade agree with a dense scan."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grasp_plugin.errors import Invalid
from grasp_plugin.learning.exact import (
    Parameters,
    critical_weight,
    layer_gradients,
    roots_expsum,
    run_layer,
)
from grasp_plugin.learning.exact.crossing import (
    first_crossing,
    first_crossing_adaptive,
    lambert_w0,
    peak_time,
)
from grasp_plugin.learning.exact.flow import decays, second_order, voltage_integral

TAUS = [
    (20, 5),
    (20, 10),
    (10, 10),
    (10, 10 * (1 + 1e-9)),
    (10, 10.001),
    (5, 20),
    (13, 4.7),
    (1, 9),
]


@pytest.mark.parametrize(("tau_m", "tau_s"), TAUS)
def test_crossing_of_a_fixed_threshold_is_the_cascades(tau_m: float, tau_s: float) -> None:
    rng, spikes = np.random.default_rng(0), 0
    for _ in range(1000):
        x, i, d = rng.uniform(-2, 0.99), rng.uniform(-2, 12), rng.exponential(10)
        em, es, ka = decays(d, tau_m, tau_s)
        found = first_crossing(x, i, 1.0, d, x * em + i * ka, i * es, tau_m, tau_s)
        wanted = first_crossing_adaptive(x, i, 0.0, 1.0, d, tau_m, tau_s, 30.0)
        assert (found >= 0) == (wanted >= 0)
        assert found == pytest.approx(wanted, abs=1e-12)
        spikes += found >= 0
    assert spikes > 100


@pytest.mark.parametrize("terms", [3, 4, 5])
def test_roots_are_those_of_a_dense_scan(terms: int) -> None:
    rng, found_some, falling = np.random.default_rng(terms), 0, 0
    for _ in range(60):
        c, r, d = rng.normal(size=terms), rng.uniform(0, 0.5, terms), rng.uniform(1, 60)
        grid = np.linspace(0, d, 50_001)
        g = np.exp(-np.outer(grid, r)) @ c
        change = np.flatnonzero((g[1:] > 0) != (g[:-1] > 0))
        roots = roots_expsum(c, r, d)
        assert len(roots) == len(change)
        assert np.all(np.abs(np.array(roots) - grid[change]) <= d / 40_000)
        residual = [abs(float(np.exp(-r * u) @ c)) for u in roots]
        assert max(residual, default=0.0) < 1e-12
        found_some += len(roots) > 0
        falling += bool(change.size and g[change[0]] > 0)
    assert found_some > 10
    assert falling > 3


def test_roots_of_a_polynomial_factor_and_of_a_long_interval() -> None:
    assert roots_expsum([1.0, -2.0], [0.1, 0.1], 5.0) == []
    assert roots_expsum([-1.0], [0.1], 50.0, slope=[0.5]) == pytest.approx([2.0], abs=1e-14)
    assert roots_expsum([1.0, -1.5], [0.0, 1e-3], 1e4) == pytest.approx(
        [1e3 * math.log(1.5)], rel=1e-14
    )
    assert roots_expsum([-1.0, 2.0, -1.0], [0.0, 0.1, 0.2], 100.0) == []  # -(1 - e^{-u/10})^2
    assert roots_expsum([0.0], [1.0], 3.0) == []


def test_roots_refuse() -> None:
    with pytest.raises(Invalid, match="expected c, r and slope of one length"):
        roots_expsum([1.0, 2.0], [1.0], 1.0)
    with pytest.raises(Invalid, match="expected finite terms"):
        roots_expsum([math.nan], [1.0], 1.0)


def test_an_adaptive_threshold_is_crossed_while_the_membrane_falls() -> None:
    x, a, d = 1.2, 0.6, 30.0  # V(0) = 1.2 < 1.6, both fall, the threshold faster
    u = first_crossing_adaptive(x, 0.0, a, 1.0, d, 200.0, 5.0, 5.0)
    assert x * math.exp(-u / 200) == pytest.approx(1.0 + a * math.exp(-u / 5), abs=1e-14)
    assert 0 < u < d


def test_lambert() -> None:
    for z in (-1 / math.e, -1 / math.e + 1e-12, -0.3, -0.1, -1e-3, -1e-9):
        w = lambert_w0(z)
        assert w * math.exp(w) == pytest.approx(z, rel=1e-14)
        assert -1 <= w < 0


@pytest.mark.parametrize(("tau_m", "tau_s"), TAUS)
def test_critical_weight_separates_spike_from_none(tau_m: float, tau_s: float) -> None:
    critical = critical_weight(tau_m, tau_s)
    if abs(tau_m - tau_s) > 1e-3:
        rho = tau_m / tau_s
        assert critical == pytest.approx((rho - 1) ** -1 * rho ** (rho / (rho - 1)) * (rho - 1))
    for factor, spikes in ((1 - 1e-8, 0), (1 + 1e-8, 1)):
        taus = {"tau_mem_ms": tau_m, "tau_syn_ms": tau_s}
        layer = Parameters(np.array([[critical * factor]]), v_reset=-9.0, **taus)
        run = run_layer(np.full((1, 1, 1), 1.0), layer, 200.0)
        assert run.counts[0, 0] == spikes


def test_square_root_law_near_a_tangency() -> None:
    """|dt/dw| -> 1.113 gap^-1/2 at 20/5 ms, gap = w / w_c - 1 (the constant is ours, measured)."""
    for gap in (1e-4, 1e-6, 1e-8):
        layer = Parameters(np.array([[critical_weight(20, 5) * (1 + gap)]]), v_reset=-9.0)
        run = run_layer(np.zeros((1, 1, 1)), layer, 100.0)
        out = layer_gradients(run, np.ones((1, 1, 1)))
        assert out.weight[0, 0] * gap**0.5 == pytest.approx(-1.113, rel=0.05)
        assert out.traffic.clamped == 0
        kept = layer_gradients(run, np.ones((1, 1, 1)), gdot_min_per_ms=1e-3)
        assert kept.traffic.clamped == (gap < 1e-4)
        assert np.isfinite(kept.weight).all()


@pytest.mark.parametrize(("tau_m", "tau_s"), TAUS)
def test_integrals_of_the_flow(tau_m: float, tau_s: float) -> None:
    """Against Gauss-Legendre quadrature; no overflow over long intervals."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for u in (0.3, 7.0, 40.0):
        s, w = (nodes + 1) * u / 2, weights * u / 2
        ka = np.array([decays(v, tau_m, tau_s)[2] for v in s])
        em, es, kappa = decays(u, tau_m, tau_s)
        k_m, k_s = second_order(u, tau_m, tau_s, em, es)
        assert k_m == pytest.approx(w @ (np.exp(-(u - s) / tau_m) * ka), rel=1e-10)
        assert k_s == pytest.approx(w @ (np.exp(-(u - s) / tau_s) * ka), rel=1e-10)
        v = 0.2 + 0.7 * np.exp(-s / tau_m) + 1.3 * ka
        found = voltage_integral(u, 0.7, 1.3, 0.2, tau_m, tau_s, em, es, kappa)
        assert found == pytest.approx(w @ v, rel=1e-10)
    em, es, _ = decays(1e4, tau_m, tau_s)
    assert np.isfinite(second_order(1e4, tau_m, tau_s, em, es)).all()
    assert math.isinf(peak_time(-1.0, 0.0, tau_m, tau_s))
