"""Thousands of streaming runs side by side: one sample after another, an update at every step.

A run is a policy, a share of writes, a learning rate and a seed. One step of one run is the
library's own (`TorchNetwork.step`, `OnlineLearner`, `StepCurvature`), mapped over runs by
`torch.func.vmap`; only scores, budgets and selection are written again, for all runs at once
(`_grasp_policies`, `_grasp_pick`). On CUDA the steps of one sample are captured as one graph.

Axes: R runs, L projections, N_o and N_i, S seeds, T steps, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _grasp_pick import write, write_plain
from _grasp_policies import GRAINS, Choice, Run, Scheduler
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grasp_plugin.backends.learning_torch import OnlineTorch
from grasp_plugin.learning import Learning
from grasp_plugin.learning.network_curvature import StepCurvature
from grasp_plugin.learning.spec import Seen
from grasp_plugin.learning.states import leaves
from grasp_plugin.network.network import Network


class Body:
    """One step of one run, by the library.

    Args:
        network, learning: of any seed; every plan a rule with a rank-1 trace, without transforms.
    """

    def __init__(self, network: Network, learning: Learning, device: str) -> None:
        self.online = OnlineTorch(network, learning, device)
        self.names = list(self.online.plastic)
        self.inputs = next(iter(network.inputs))
        self._step = _Step(self.online.module)
        self._keys = {k.name: f"module.weight_{i}" for i, k in enumerate(network.projections)}

    def rest(self, batch: int) -> Any:
        """The network's state before a sample, with full histories of zeros for delays."""
        network, state = self.online.network, self.online.module.initial_state(batch)
        like = next(self.online.module.parameters())
        for k in network.projections:
            if k.max_delay > len(state["past"].get(k.source, [])):
                zero = like.new_zeros(batch, network.size_of(k.source))
                state["past"][k.source] = [zero] * k.max_delay
        return state

    def forward(self, fixed: Any, weights: Any, x: Tensor, state: Any) -> tuple[Any, Any, Any]:
        """(outputs, state, margins) of one step; x (batch, N_in)."""
        given = {self._keys[name]: w for name, w in weights.items()} | fixed
        return functional_call(self._step, given, ({self.inputs: x}, state))  # type: ignore[no-any-return]

    def learn(
        self, fixed: Any, weights: Any, x: Tensor, target: Tensor, state: Any, traces: Any, sig: Any
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor, Any, Any, Any]:
        """([(d, p, M d) (1, N) by projection], logits, network state, traces, signals)."""
        online, learner = self.online, self.online.learner
        output, new, margin = self.forward(fixed, weights, x, state)
        seen = Seen(online._pre(0, output, state), output, margin, online._active(state))
        mask = torch.ones_like(target[:, :1])
        thirds, after = learner.third_factors(seen, target, mask, sig, weights)
        bent = StepCurvature(
            online.network, learner.learning, seen, target, mask, weights, sig, after
        )
        parts, kept = [], {}
        for name, rule in learner.rules.items():
            factors = learner.factors(name, seen, thirds)
            delta, kept[name] = rule.update(factors, traces[name], weights[name])
            outer = delta["weight"]
            product = bent.of(learner.target_of(name), learner.learning.plans[name], factors)
            parts.append((outer.left, outer.right, product(outer.left)))
        return parts, learner.logits(output, sig), new, kept, after

    def say(self, fixed: Any, weights: Any, x: Tensor, state: Any, sig: Any) -> tuple[Tensor, Any]:
        """(logits (batch, C), state) of one step without learning."""
        output, new, _ = self.forward(fixed, weights, x, state)
        return self.online.learner.logits(output, sig), new


class _Step(nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any, state: Any) -> Any:
        return self.module.step(0, inputs, state)


class Engine:
    """All runs of one rule on one task.

    Args:
        runs: in any order; kept in the order of `self.runs`.
        make: seed -> (network, learning); a run's rate is times that of each plan.
        first: steps of a sample before the first write; traces advance.
        device: torch's.
        recorded: which policies' k, sharpness and loss are kept for each step.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        make: Callable[[int], tuple[Network, Learning]],
        *,
        first: int = 0,
        device: str = "cpu",
        recorded: Sequence[str] = (),
    ) -> None:
        self.runs = sorted(runs, key=lambda r: GRAINS.index(r.policy.grain))
        self.first, self.device = first, device
        self.seeds = sorted({r.seed for r in runs})
        made = {s: make(s) for s in self.seeds}
        bodies = {s: Body(*made[s], device) for s in self.seeds}
        self.body = bodies[self.seeds[0]]
        self._load(bodies)
        plans: Any = self.body.online.learner.learning.plans
        names = self.body.names
        self.scheduler = Scheduler(
            self.runs, [(self.weights[n].shape[1], self.weights[n].shape[2]) for n in names],
            [plans[n].learning_rate for n in names], device,
        )  # fmt: skip
        self.recorded = self.scheduler.index(lambda r: r.policy.name in recorded)
        self.n = self._tensor([0], torch.int64)  # of the next sample
        self.log: dict[str, Tensor] = {}
        self._graph: Any = None

    def _tensor(self, values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=self.device)

    def _load(self, bodies: dict[int, Body]) -> None:
        """Weights, what else differs between seeds, and states at rest, by run."""
        self.seed = self._tensor([self.seeds.index(r.seed) for r in self.runs], torch.int64)
        each = [bodies[s] for s in self.seeds]

        def stacked(values: list[Tensor]) -> Tensor:
            return torch.stack(values)[self.seed].contiguous()

        names = self.body.names
        self.weights = {n: stacked([b.online.plastic[n].detach() for b in each]) for n in names}
        buffers = [dict(b.online.module.named_buffers()) for b in each]
        self.fixed = {
            f"module.{key}": stacked([b[key] for b in buffers])
            for key, value in buffers[0].items()
            if any(not torch.equal(b[key], value) for b in buffers)
        }
        flat = [dict(leaves(b.online.state["signals"])) for b in each]
        self.signals = _unflat({key: stacked([f[key] for f in flat]) for key in flat[0]},
                               self.body.online.state["signals"])  # fmt: skip
        self.traces = _mapped(lambda x: x.expand(len(self.runs), *x.shape),
                              self.body.online.learner.rest(
                                  self.body.online.state, self.body.online.plastic, 1)["plans"]
                              )  # fmt: skip

    # --- learning ---------------------------------------------------------------------------------

    def load(self, x: Any, labels: Any, classes: int) -> None:
        """The stream to learn: x (S, n, T, N_in) uint8 and labels (S, n), in the order of seeds."""
        self.x = self._tensor(x, torch.uint8).transpose(0, 1).contiguous()  # (n, S, T, N)
        labels = self._tensor(labels, torch.int64).T
        self.target = nn.functional.one_hot(labels, classes).to(torch.float64)  # (n, S, C)
        self.n.zero_()
        self.scheduler.step.zero_()
        steps = len(self.x) * (self.x.shape[2] - self.first)
        shape = (steps, len(self.recorded), len(self.body.names))
        if len(self.recorded):
            self.log = {
                "k": torch.zeros(shape, dtype=torch.int32, device=self.device),
                "sharpness": torch.zeros(shape, dtype=torch.float32, device=self.device),
                "loss": torch.zeros(shape[:2], dtype=torch.float32, device=self.device),
            }
        self._graph = None

    @torch.no_grad()
    def learn(self, samples: int, tick: Callable[[], Any] = lambda: None) -> None:
        """Learn the next samples of the stream; tick is called after each."""
        if self.device.startswith("cuda") and self._graph is None:
            self._capture()
        for _ in range(samples):
            if self._graph is None:
                self.sample()
            else:
                self._graph.replay()
            tick()

    def _capture(self) -> None:
        """One sample as a CUDA graph, after a trial run that is undone."""
        held = [*self.weights.values(), *self.scheduler.held(), self.n, *self.log.values(),
                *(v for _, v in leaves(self.signals))]  # fmt: skip
        kept = [v.clone() for v in held]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.sample()
        torch.cuda.current_stream().wait_stream(stream)
        for v, old in zip(held, kept, strict=True):
            v.copy_(old)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.sample()

    @torch.no_grad()
    def sample(self) -> None:
        """Sample n of the stream from rest, in place; n moves on."""
        x = self.x.index_select(0, self.n)[0].to(torch.float64)
        target = self.target.index_select(0, self.n)[0][self.seed][:, None]
        rest = _mapped(lambda v: v.expand(len(self.runs), *v.shape), self.body.rest(1))
        state, traces = rest, self.traces
        for t in range(x.shape[1]):
            now = x[:, t][self.seed][:, None]
            parts, logits, state, traces, signals = vmap(self.body.learn)(
                self.fixed, self.weights, now, target, state, traces, self.signals
            )
            _keep_counters(self.signals, signals)
            if t >= self.first:
                self._write(parts, logits, target)
        self.n += 1

    def _write(self, parts: Any, logits: Tensor, target: Tensor) -> None:
        d, p, bent = (self._stacked([part[i] for part in parts], i) for i in range(3))
        if len(self.recorded):
            step = self.scheduler.step.clone()
        choice = self.scheduler.choose(d, p, bent)
        self._apply(d, p, choice)
        if len(self.recorded):
            self._record(step, choice, logits, target)

    def _stacked(self, parts: list[Tensor], which: int) -> Tensor:
        """(R, 1, N) of each projection as (R, L, N padded)."""
        n = self.scheduler.n_i if which == 1 else self.scheduler.n_o
        padded = [nn.functional.pad(v[:, 0], (0, n - v.shape[2])) for v in parts]
        return torch.stack(padded, 1)

    def _apply(self, d: Tensor, p: Tensor, choice: Choice) -> None:
        left, r = -self.scheduler.lr * d, self.scheduler.random
        for i, name in enumerate(self.body.names):
            w = self.weights[name]
            n_o, n_i = w.shape[1:]
            counts, rank = choice.counts[:, i, :n_o], choice.rank[:, i, :n_i]
            write(w, left[:, i, :n_o], p[:, i, :n_i], counts, rank)
            if r.stop:
                mask = torch.rand_like(w[r]) < choice.chance[r, i, None, None]
                mask &= (d[r, i, :n_o, None] != 0) & (p[r, i, None, :n_i] != 0)
                self.scheduler.counts["issued"][r, i] += mask.sum((1, 2))
                write_plain(w[r], left[r, i, :n_o], p[r, i, :n_i], mask)

    def _record(self, step: Tensor, choice: Choice, logits: Tensor, target: Tensor) -> None:
        """k, sharpness, and the cross-entropy of this step's logits, of the recorded runs."""
        here = self.recorded
        loss = -(torch.log_softmax(logits[here, 0], 1) * target[here, 0]).sum(1)
        found = {"k": choice.k[here], "sharpness": choice.sharpness[here], "loss": loss}
        for name, log in self.log.items():
            log.index_copy_(0, step, found[name][None].to(log.dtype))

    # --- measuring --------------------------------------------------------------------------------

    @torch.no_grad()
    def accuracy(self, x: Any, labels: Any, batch: int = 64) -> np.ndarray[Any, Any]:
        """Share of samples that each run gets right (R,); x (S, n, T, N_in), labels (S, n)."""
        inputs, wanted = self._tensor(x, torch.uint8), self._tensor(labels, torch.int64)
        right = torch.zeros(len(self.runs), dtype=torch.int64, device=self.device)
        for start in range(0, inputs.shape[1], batch):
            part = inputs[:, start : start + batch]
            rest = self.body.rest(part.shape[1])
            state = _mapped(lambda v: v.expand(len(self.runs), *v.shape), rest)
            total: Any = 0.0
            for t in range(part.shape[2]):
                now = part[:, :, t].to(torch.float64)[self.seed]
                logits, state = vmap(self.body.say)(
                    self.fixed, self.weights, now, state, self.signals
                )
                total = total + logits
            right += (total.argmax(2) == wanted[self.seed, start : start + batch]).sum(1)
        return (right / inputs.shape[1]).cpu().numpy()  # type: ignore[no-any-return]


def _mapped(call: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nested dicts and lists with call(leaf) at the leaves."""
    if isinstance(tree, dict):
        return {k: _mapped(call, v) for k, v in tree.items()}
    return [_mapped(call, v) for v in tree] if isinstance(tree, list) else call(tree)


def _unflat(arrays: dict[str, Tensor], like: Any, prefix: str = "") -> Any:
    """The nested dict `like` with the arrays that `leaves` names; keys may hold dots."""
    return {
        key: _unflat(arrays, value, f"{prefix}{key}.")
        if isinstance(value, dict)
        else arrays[f"{prefix}{key}"]
        for key, value in like.items()
    }


def _keep_counters(held: Any, new: Any) -> None:
    """Counters and events of the signals, in place; their fixed matrices never change."""
    for key, value in held.items():
        if isinstance(value, dict):
            _keep_counters(value, new[key])
        elif key in ("step", "event"):
            value.copy_(new[key])


def at_rate(learning: Learning, lr: float) -> Learning:
    """The same learning, every rule lr times as fast (for comparison with a session)."""
    plans: Any = learning.plans
    faster = {n: replace(p, learning_rate=lr * p.learning_rate) for n, p in plans.items()}
    return replace(learning, plans=faster)
