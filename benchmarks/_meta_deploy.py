"""Adaptation as it is deployed: a frozen body, SOEL in the head, GRASP's choice of writes.

Runs on the fused back end, which is Lava's float and integers bit for bit (tests/parity). The
networks are those of ANIL, whose inner step is the head alone, and of ANIL meta-trained sample by
sample, as the head learns here. eta of one sample is the latter's learned step size; of ANIL, that
over the number of samples: shown once, a support set would be one inner step if errors stood still.
Classes take turns: five samples of one class in a row make the head forget the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from _meta_tasks import WAYS
from _meta_train import interval
from tqdm import tqdm

from grasp_plugin import build, quantise
from grasp_plugin.learning import UpdateMeter, soel_for
from grasp_plugin.learning.baselines import magnitude, nonzero
from grasp_plugin.learning.meta import MAML, Tasks
from grasp_plugin.learning.soel import last_steps
from grasp_plugin.network import Network

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02)
KEYS = ("network", "iterations", "seed", "precision", "share", "shots", "tasks")
FIGURES = ("before", "accuracy", "half_width", "writes_per_shot", "changed_per_shot")


def deploy(
    maml: MAML, tasks: Tasks, precision: str, share: float, shots: int, *, one_by_one: bool,
    backend: str = "fused",
) -> dict[str, float]:  # fmt: skip
    """Accuracy before and after adaptation (%), and writes a shot (one sample of each class).

    Args:
        precision: "float" or "loihi". one_by_one: how it was meta-trained.
        share: of the head's synapses, the most written at an update; 1: all with a gradient.
    """
    network = maml.model.network()  # type: ignore[operator]
    eta = float(maml.step_sizes()["weight_2"]) / (1 if one_by_one else WAYS * shots)
    grasp = nonzero() if share == 1 else magnitude(share)
    learning = soel_for(network, WAYS, eta, transforms=(grasp,))
    if precision == "loihi":
        network = quantise(network, plastic=list(learning.plans), growth=4.0)
    found = [
        _one(network, learning, task, backend)
        for task in tqdm(list(tasks), desc=f"{precision}, {share:g}", leave=False)
    ]
    before, after, writes, changed = (np.array(v, float) for v in zip(*found, strict=True))
    return {
        "before": 100 * before.mean(), "accuracy": 100 * after.mean(),
        "half_width": 100 * interval(torch.from_numpy(after)),
        "writes_per_shot": writes.mean() / shots, "changed_per_shot": changed.mean() / shots,
    }  # fmt: skip


def _one(network: Network, learning: Any, task: Any, backend: str) -> tuple[float, ...]:
    x, y, query_x, query_y = (part.numpy() for part in task)
    x, query_x = (v.reshape(*v.shape[:2], -1).astype(float) for v in (x, query_x))
    with build(network, backend, plans=learning) as session:
        before = _right(session, query_x, query_y)
        meter, mask = UpdateMeter(session), last_steps(len(x))
        shots = len(y) // WAYS
        for i in np.arange(len(y)).reshape(WAYS, shots).T.ravel():  # one of each class in turn
            session.learn(x[:, i], int(y[i]), mask=mask)
        total = meter.read().total
        changed = total.issued if total.changed is None else total.changed
        return before, _right(session, query_x, query_y), total.issued, changed


def _right(session: Any, x: Any, y: Any) -> float:
    out = session.run(x).spikes["layer2"][-1]
    return float((out.argmax(1) == y).mean())
