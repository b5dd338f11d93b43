"""Meta-training, its controls, and accuracy on held-out classes."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _meta_tasks import HIDDEN, METHODS, QUERIES, WAYS, Method, learner_of, model_of, tasks_of
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from grasp_plugin.data.episodes import FewShot
from grasp_plugin.learning.meta import MAML, Tasks

TASKS, TRAIN_RATE, SIZE_RATE, CLIP = 8, 2e-3, 5e-3, 5.0
SIZES = {"weight_1": 0.03, "weight_2": 0.7}
GRID = tuple(product(("all", "head"), (0.001, 0.01, 0.1, 1.0), (1, 5, 20)))
FIGURES = ("accuracy", "half_width", "before", "tasks")


def meta_train(
    method: Method, source: FewShot, shots: int, iterations: int, seed: int,
    start: MAML | None = None,
) -> MAML:  # fmt: skip
    """MAML of a method: Adam, cosine to zero over all iterations, batches of 8 tasks.

    start: its weights are gone on from, on other tasks; step sizes begin anew.
    """
    torch.manual_seed(seed)
    model = model_of(method)
    if start is not None:
        model.load_state_dict(start.model.state_dict())
    sizes: Any = SIZES if method.adapt == "all" else SIZES["weight_2"]
    if method.one_by_one:
        sizes /= WAYS * shots
    maml = learner_of(method, model, step_size=sizes)
    groups = [
        {"params": list(maml.model.parameters()), "lr": TRAIN_RATE},
        {"params": list(maml.step_sizes().values()), "lr": SIZE_RATE},
    ]
    adam = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    rng = np.random.default_rng([seed, shots, int(start is not None)])
    for _ in tqdm(range(iterations), desc=f"{method.name}, {shots} shot"):
        drawn = source.batch("train", rng, TASKS, ways=WAYS, shots=shots, queries=QUERIES)
        adam.zero_grad()
        maml(Tasks.of(drawn)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(maml.parameters(), CLIP)
        adam.step()
        schedule.step()
    return maml


def pretrained(method: Method, source: FewShot, iterations: int, seed: int) -> Any:
    """A model whose body classified all training classes; its head is fresh.

    As many samples as meta-training at one shot sees: 240 a batch.
    """
    torch.manual_seed(seed)
    part, rng = source.parts["train"], np.random.default_rng([seed, 99])
    names = list(part.slots)
    net = model_of(method, outputs=len(names))
    adam = torch.optim.Adam(net.parameters(), TRAIN_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in tqdm(range(iterations), desc="pre-training"):
        labels = rng.integers(len(names), size=240)
        rows = [[rng.choice(part.pools[p]) for p in part.slots[names[i]]] for i in labels]
        x = torch.from_numpy(source.samples(np.array(rows))).float()
        adam.zero_grad()
        functional.cross_entropy(net(x), torch.from_numpy(labels)).backward()
        adam.step()
        schedule.step()
    fresh = model_of(method)
    with torch.no_grad():
        fresh.weight_1.copy_(net.weight_1)
    return fresh


def tuned(
    method: Method, model: Any, source: FewShot, shots: int, seed: int, queries: int
) -> tuple[MAML, int]:
    """The learner and number of steps that are best on 60 validation tasks; first order.

    What adapts, the step size, the number of steps, and a head that is random or begins at zero.
    """
    valid = tasks_of(source, "valid", seed, 60, shots, queries)
    best: tuple[float, MAML | None, int] = (-1.0, None, 0)
    without = deepcopy(model)
    with torch.no_grad():
        grid_parts = learner_of(method, model)  # grids of the weights as they were drawn
        without.weight_2.zero_()
    kept = {"outer_grid": grid_parts.outer_grid, "inner_grid": grid_parts.inner_grid}
    for start, (adapt, size, steps) in tqdm(list(product((model, without), GRID)),
                                            desc=f"{method.name}: steps"):  # fmt: skip
        maml = learner_of(
            replace(method, adapt=adapt, order=1, bits=32), start, step_size=size, **kept
        )
        score = float(maml.evaluate(valid, steps).mean())
        if score > best[0]:
            best = score, maml, steps
    assert best[1] is not None
    return best[1], best[2]


def measured(maml: MAML, test: Tasks, steps: int) -> dict[str, float]:
    """Mean over tasks with its 95 % interval, and before adaptation."""
    parts = [test.part(i, i + 50) for i in range(0, len(test), 50)]
    after = torch.cat([maml.evaluate(part, steps) for part in parts])
    before = torch.cat([maml.evaluate(part, 0) for part in parts])
    return {
        "accuracy": 100 * float(after.mean()), "half_width": 100 * interval(after),
        "before": 100 * float(before.mean()), "tasks": float(len(after)),
    }  # fmt: skip


def interval(values: Tensor) -> float:
    """Half of the 95 % interval of the mean, normal."""
    return 1.96 * float(values.std()) / math.sqrt(len(values))


def run(
    method: Method, source: FewShot, shots: int, iterations: int, seed: int, nets: Path,
    count: int = 300, queries: int = QUERIES,
) -> dict[str, float]:  # fmt: skip
    """Train as the method says, and measure on `count` held-out tasks; the network is kept.

    What goes on from the float network does so for the last third of `iterations`.
    """
    steps = 1
    if method.meta == "maml" and method.onward:
        own = iterations // 3
        start = _kept(METHODS[0], source, shots, iterations - own, seed, nets)
        maml = meta_train(method, source, shots, own, seed, start)
    elif method.meta == "maml":
        maml = _kept(method, source, shots, iterations, seed, nets)
    else:
        torch.manual_seed(seed)
        pre = method.meta == "pretrain"
        model = pretrained(method, source, iterations, seed) if pre else model_of(method)
        maml, steps = tuned(method, model, source, shots, seed, queries)
    test = tasks_of(source, "test", seed, count, shots, queries)
    return measured(maml, test, steps)


def _kept(
    method: Method, source: FewShot, shots: int, iterations: int, seed: int, nets: Path
) -> MAML:
    """The learner as it was meta-trained before, or now."""
    maml = loaded(nets, method, shots, iterations, seed)
    if maml is None:
        maml = meta_train(method, source, shots, iterations, seed)
        nets.mkdir(parents=True, exist_ok=True)
        torch.save(maml.state_dict(), net_file(nets, method, shots, iterations, seed))
    return maml


def net_file(nets: Path, method: Method, shots: int, iterations: int, seed: int) -> Path:
    """Where a meta-trained network is kept."""
    plain = method.name.replace(" ", "_").replace(",", "")
    return nets / f"{plain}_{shots}_{HIDDEN}_{iterations}_{seed}.pt"


def loaded(nets: Path, method: Method, shots: int, iterations: int, seed: int) -> MAML | None:
    """The learner as it was meta-trained; None: it was not."""
    path = net_file(nets, method, shots, iterations, seed)
    if not path.is_file():
        return None
    maml = learner_of(method, model_of(method))
    maml.load_state_dict(torch.load(path, weights_only=True))
    return maml
