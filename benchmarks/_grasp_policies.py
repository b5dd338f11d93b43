"""Policies: how many synapses each of many runs writes at a step, and which, all runs at once.

    choice = scheduler.choose(d, p, M d)        synapse (o, i) is written where rank_i < count_o

The scores and budgets are those of `learning.grasp` and `learning.budget`, on tensors; nothing here
waits for the device. All projections of a network are stacked and padded with zeros, which no
policy ever picks.

Axes: R runs, L projections, N_o and N_i padded to multiples of 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _grasp_pick import pick
from torch import Tensor, nn

SCORES = ("pred_decrease", "abs_gHg", "magnitude", "error")
GRAINS = ("weight", "row", "column", "block", "all", "random")
BLOCK = 8  # rows and columns of a block
RHO, MEMORY, GAIN = 0.05, 0.99, 0.05  # the defaults of GRASP, Sharpness and Marginal


@dataclass(frozen=True)
class Policy:
    """How many synapses are written at a step, and which.

    Args:
        name: in tables.
        score: one of SCORES; "error" is |d_o|, the same for all synapses of a row.
        grain: what is written together; "all": every synapse with a gradient, or none at this step;
            "random": each synapse with a gradient with the same probability.
        control: "fixed" (k = share N_o N_i, fractions owed), "marginal" (a price), "more", "fewer"
            (k with the sharpness, or against it), "gradient" (k with |g|), "coverage" (share: of
            the summed score), "given" (a k for each step); for grain "all": "fixed" (always),
            "every" (each 1/share-th step) or "sometimes" (with probability share).
    """

    name: str
    score: str = "magnitude"
    grain: str = "weight"
    control: str = "fixed"


@dataclass(frozen=True)
class Run:
    """One policy at a share of writes, a learning rate and a seed."""

    policy: Policy
    share: float
    lr: float
    seed: int


@dataclass(frozen=True, eq=False)
class Choice:
    """What is written at a step, and what was asked for.

    Args:
        counts: (R, L, N_o); rank: (R, L, N_i).
        chance: (R, L), of each synapse with a gradient, for grain "random".
        k: (R, L), asked for; sharpness: (R, L).
    """

    counts: Tensor
    rank: Tensor
    chance: Tensor
    k: Tensor
    sharpness: Tensor


class Scheduler:
    """The policies of all runs, with the states of their budgets and their counters.

    Args:
        runs: sorted by grain.
        shapes: (N_o, N_i) of each projection.
        rates: learning rate of each plan, times which a run's is.
        device: torch's.

    Attributes:
        counts: "issued" and "dense_nz" (R, L) int64: synapses written, synapses with a gradient.
        step: (1,) int64, steps so far.
        lr: (R, L, 1).
    """

    def __init__(
        self,
        runs: Sequence[Run],
        shapes: Sequence[tuple[int, int]],
        rates: Sequence[float],
        device: str,
    ) -> None:
        self.runs, self.shapes, self.device = runs, shapes, device
        self.n_o, self.n_i = (max(-(-s[k] // BLOCK) * BLOCK for s in shapes) for k in (0, 1))
        self.rows, self.columns = (self._tensor([s[k] for s in shapes]) for k in (0, 1))
        self._real = (self._tensor(range(self.n_i)) < self.columns[:, None]).to(torch.float64)
        units = {
            "row": self.rows, "column": self.columns,
            "block": torch.ceil(self.rows / BLOCK) * torch.ceil(self.columns / BLOCK),
        }  # fmt: skip
        whole = self.rows * self.columns
        self.size = torch.stack([units.get(r.policy.grain, whole) for r in runs])
        self.share = self._tensor([[r.share] for r in runs])
        self.lr = self._tensor([[[r.lr]] for r in runs]) * self._tensor(rates)[:, None]
        self._which: dict[str, Tensor] = {}
        for kind in ("score", "grain", "control"):
            for value in {getattr(r.policy, kind) for r in runs}:
                chosen = [[getattr(r.policy, kind) == value] for r in runs]
                self._which[f"{kind}={value}"] = self._tensor(chosen, torch.bool)
        self.random, self._blocks = (self._slice(g) for g in ("random", "block"))
        self._places = self.index(lambda r: r.policy.control == "given")
        self._covering = self.index(lambda r: r.policy.control == "coverage")
        self._given = torch.zeros(0)
        self._begin()

    def _begin(self) -> None:
        zero = torch.zeros_like(self.size)
        self.budget = {
            "owed": zero.clone(), "log_price": torch.full_like(zero, -math.inf),
            "mean": zero.clone(), "weight": zero.clone(),
        }  # fmt: skip
        count = torch.zeros_like(self.size, dtype=torch.int64)
        self.counts = {"issued": count.clone(), "dense_nz": count.clone()}
        self.step = self._tensor([0], torch.int64)

    def held(self) -> list[Tensor]:
        """All that changes in place."""
        return [*self.budget.values(), *self.counts.values(), self.step]

    def give(self, k: Any) -> None:
        """The k of control "given": (step, run of that control in order, L)."""
        self._given = self._tensor(k, torch.int64)

    def index(self, wanted: Callable[[Run], bool]) -> Tensor:
        """Places of the runs that are wanted, int64."""
        return self._tensor([i for i, r in enumerate(self.runs) if wanted(r)], torch.int64)

    def _tensor(self, values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=self.device)

    def _slice(self, grain: str) -> slice:
        places = [i for i, r in enumerate(self.runs) if r.policy.grain == grain]
        return slice(places[0], places[-1] + 1) if places else slice(0, 0)

    def choose(self, d: Tensor, p: Tensor, bent: Tensor) -> Choice:
        """What to write at this step, counted.

        Args:
            d, bent: errors and M d (R, L, N_o); p: traces (R, L, N_i); 0 where padded.
        """
        q = p * p
        norm = q.sum(2, keepdim=True)
        h = norm * bent
        size = torch.sqrt((d * d).sum(2) * norm[..., 0])
        bend = (d * h).sum(2) * norm[..., 0] / (2 * size * size)
        sharpness = RHO * size + RHO**2 * torch.where(size > 0, bend, 0)
        a, q = self._grained(*self._scored(d, h, q))
        alive = (d != 0).sum(2) * (p != 0).sum(2)
        k, price = self._how_many(a, q, sharpness, size)
        flat = [v.flatten(0, 1) for v in (a, q, k, price)]
        found = pick(flat[0], flat[1], flat[2], flat[3])
        counts, rank, least = (v.reshape(*k.shape, *v.shape[1:]) for v in found)
        self._move_price(counts, least, a, q)
        counts, rank, issued = self._spread(counts, rank, alive)
        self.counts["issued"] += issued
        self.counts["dense_nz"] += alive
        self.step += 1
        return Choice(counts, rank, self.share * self.size / alive, k, sharpness)

    def _is(self, kind: str, value: str) -> Tensor | None:
        """(R, 1) of booleans, or None where no run is so."""
        return self._which.get(f"{kind}={value}")

    def _scored(self, d: Tensor, h: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """(R, L, N_o), (R, L, N_i) of the score a_o q_i, as `learning.grasp` has it."""
        a, eta = d * d, self.lr
        options = {
            "pred_decrease": lambda: eta * d * d - 0.5 * eta * eta * d * h,
            "abs_gHg": lambda: (d * h).abs(),
            "error": lambda: d.abs(),
        }
        for name, value in options.items():
            chosen = self._is("score", name)
            if chosen is not None:
                a = torch.where(chosen[..., None], value(), a)
                q = torch.where(chosen[..., None], self._real, q) if name == "error" else q
        return a, q

    def _grained(self, a: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of whatever is written together, still separable: a row has q = (1, 0, ...)."""
        one_a, one_q = torch.zeros_like(a), torch.zeros_like(q)
        one_a[..., 0], one_q[..., 0] = 1, 1
        lines = {
            "row": lambda: (a * q.sum(2, keepdim=True), one_q),
            "column": lambda: (one_a, q * a.sum(2, keepdim=True).clamp(min=0)),
            "block": lambda: (_blocks(a), _blocks(q)),
        }
        out_a, out_q = a, q
        for name, value in lines.items():
            chosen = self._is("grain", name)
            if chosen is not None:
                new_a, new_q = value()
                out_a = torch.where(chosen[..., None], new_a, out_a)
                out_q = torch.where(chosen[..., None], new_q, out_q)
        return out_a, out_q

    def _how_many(
        self, a: Tensor, q: Tensor, sharpness: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(k, price) (R, L): k of the largest scores, or all above a price that is not NaN."""
        owed = self.budget["owed"] + self.share * self.size
        k = torch.floor(owed + 1e-9)
        self.budget["owed"].copy_(owed - k)
        k = self._varied(k, sharpness, size)
        k = k.to(torch.int64)
        if len(self._places):
            k[self._places] = self._given.index_select(0, self.step)[0]
        if len(self._covering):
            k[self._covering] = self._covered(a[self._covering], q[self._covering])
        price = torch.full_like(size, math.nan)
        marginal = self._is("control", "marginal")
        if marginal is not None:
            log_price, wanted = self.budget["log_price"], (self.share * self.size).round()
            known = log_price > -math.inf
            price = torch.where(marginal & known, torch.exp(log_price), price)
            k = torch.where(marginal, wanted.to(torch.int64), k)
        return k, price

    def _varied(self, k: Tensor, sharpness: Tensor, size: Tensor) -> Tensor:
        """k with the sharpness, or |g|, about its running mean, where a policy says so."""
        varying = [self._is("control", c) for c in ("more", "fewer", "gradient")]
        _, fewer, gradient = varying
        if all(v is None for v in varying):
            return k
        s = sharpness if gradient is None else torch.where(gradient, size, sharpness)
        mean, weight = (self.budget[n] for n in ("mean", "weight"))
        mean.mul_(MEMORY).add_((1 - MEMORY) * s)
        weight.mul_(MEMORY).add_(1 - MEMORY)
        ratio = torch.where(mean > 0, s * weight / mean, 1.0)
        if fewer is not None:
            ratio = torch.where(fewer, 1 / ratio.clamp(min=1e-12), ratio)
        moved = (self.share * self.size * ratio.clamp(0.1, 10.0)).minimum(self.size).round()
        for chosen in varying:
            k = k if chosen is None else torch.where(chosen, moved, k)
        return k

    def _covered(self, a: Tensor, q: Tensor) -> Tensor:
        """The least k whose scores hold the share of the sum of positive ones; ties together."""
        scores = (a[..., :, None] * q[..., None, :]).flatten(2).clamp(min=0)
        falling = scores.sort(dim=2, descending=True).values
        sums = falling.cumsum(2)
        enough = (sums < self.share[self._covering][..., None] * sums[..., -1:]).sum(2)
        last = falling.gather(2, enough.clamp(max=falling.shape[2] - 1)[..., None])
        return ((scores >= last) & (scores > 0)).sum(2)

    def _move_price(self, counts: Tensor, least: Tensor, a: Tensor, q: Tensor) -> None:
        """log c <- log c + gain (k / wanted - 1), from the first step with an error on."""
        if self._is("control", "marginal") is None:
            return
        log_price = self.budget["log_price"]
        best = a.amax(2) * q.amax(2)
        begun = torch.where(best > 0, torch.where(least < math.inf, least, best).log(), -math.inf)
        moved = log_price + GAIN * (counts.sum(2) / (self.share * self.size) - 1)
        log_price.copy_(torch.where(log_price > -math.inf, moved, begun))

    def _spread(self, counts: Tensor, rank: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts and ranks of synapses from those of rows, columns and blocks; synapses written."""
        columns, rows = self.columns.to(torch.int64)[:, None], self.rows.to(torch.int64)
        issued = counts.sum(2)
        for grain in ("row", "column", "all", "random"):
            chosen = self._is("grain", grain)
            if chosen is None:
                continue
            if grain == "row":
                new, number = columns * (counts > 0), issued * columns[:, 0]
            elif grain == "column":
                new, number = counts[..., :1].expand_as(counts), counts[..., 0] * rows
            elif grain == "all":
                gate = self._gate()
                new, number = (columns * gate[..., None]).expand_as(counts), gate * alive
                always = self._is("control", "fixed")
                if always is not None:
                    number = torch.where(always, rows * columns[:, 0], number)
            else:
                new, number = torch.zeros_like(counts), torch.zeros_like(issued)
            counts = torch.where(chosen[..., None], new, counts)
            issued = torch.where(chosen, number, issued)
        b = self._blocks
        if b.stop:
            counts[b] = counts[b].repeat_interleave(BLOCK, 2)[..., : self.n_o]
            rank[b] = rank[b].repeat_interleave(BLOCK, 2)[..., : self.n_i]
            for i, (n_o, n_i) in enumerate(self.shapes):
                mask = rank[b, i, None, :n_i] < counts[b, i, :n_o, None]
                issued[b, i] = mask.sum((1, 2))
        return counts, rank, issued

    def _gate(self) -> Tensor:
        """1 where a policy of grain "all" writes at this step, (R, 1) int64."""
        gate = torch.ones_like(self.share, dtype=torch.bool)
        every, sometimes = (self._is("control", c) for c in ("every", "sometimes"))
        if every is not None:
            due = torch.remainder(self.step, torch.round(1 / self.share)) == 0
            gate = torch.where(every, due, gate)
        if sometimes is not None:
            gate = torch.where(sometimes, torch.rand_like(self.share) < self.share, gate)
        return gate.to(torch.int64)


def _blocks(v: Tensor) -> Tensor:
    """Sums over blocks of the last axis, padded with zeros to its length."""
    sums = v.reshape(*v.shape[:-1], -1, BLOCK).sum(-1)
    return nn.functional.pad(sums, (0, v.shape[-1] - sums.shape[-1]))
