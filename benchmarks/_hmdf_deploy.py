"""Published costs recomputed, folding, and trained networks on Lava, for `benchmarks/hmdf.py`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from _hmdf_nets import Net
from _hmdf_tasks import Task
from torch import nn

from grasp_plugin.backends.hdlif import build_hdlif
from grasp_plugin.hdlif import HDStack, hdlif_compressed
from grasp_plugin.hdlif.cost import neuron_ops, parameter_bytes
from grasp_plugin.hdlif.deploy import deploy
from grasp_plugin.hdlif.resnet import meta_resnet18
from grasp_plugin.network.hdlif import GradedLayer, run_float
from grasp_plugin.network.hdlif_fixed import fold, hdlif_use, run_fixed, to_fixed
from grasp_plugin.neurons import hdlif

PUBLISHED_MB = {"fp": 44.84, "1.5bit": 4.40, "1bit": 3.00}
PUBLISHED_NOPS_M = {"vanilla": 6.59, "50 % parallel": 4.62}


def published() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(parameters, neuron operations) of ResNet-18 for CIFAR-100 at T = 4, from its layers."""
    sizes, ops = [], []
    for weights, claimed in PUBLISHED_MB.items():
        net, _ = meta_resnet18(classes=100, steps=4, weights=weights)
        found = parameter_bytes(net)
        sizes.append({
            "weights": weights, "parameters": found.count, "as published MB": claimed,
            "recomputed MB": round(found.published / 1e6, 2),
            "truly packed MB": round(found.packed / 1e6, 2),
        })  # fmt: skip
    for name, claimed in PUBLISHED_NOPS_M.items():
        net, image = meta_resnet18(classes=100, steps=4, parallel=name != "vanilla")
        found_ops = neuron_ops(net, image, 4)
        ops.append({
            "neurons": name, "as published M": claimed,
            "recomputed M": round(found_ops.total / 1e6, 3),
            "MUL M": round(found_ops.muls / 1e6, 3), "ADD M": round(found_ops.adds / 1e6, 3),
        })  # fmt: skip
    return sizes, ops


def fold_mismatches(seeds: int = 6) -> tuple[int, int, int]:
    """(codes that differ, codes, negative gains) of random layers, torch against the folded form.

    32 inputs of 4-bit codes, 24 neurons, T = 4, 96 samples; BatchNorm gains of both signs.
    """
    differ = total = negative = 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        module = hdlif_compressed(32, 24, 4, dtype=torch.float64).eval()
        with torch.no_grad():
            for p in (module.norm.weight, module.norm.bias, module.norm.running_mean,
                      module.neuron.decay_logit, module.neuron.theta_logit):  # type: ignore[union-attr]  # fmt: skip
                p.copy_(torch.randn(p.shape, dtype=p.dtype))
            module.norm.running_var.copy_(torch.rand(24) + 0.2)  # type: ignore[union-attr]
        x = 0.25 * torch.randint(0, 16, (4, 96, 32)).double() * (torch.rand(4, 96, 32) < 0.3)
        layer = deploy(module).layers[0]
        folded, state, held = fold(layer, 0.25), None, None
        for t, step in enumerate(x):
            with torch.no_grad():
                out, state = module(step, state)
            z = (4 * step.numpy()) @ folded.kernel.T.astype(float)
            held = held or hdlif.init(z)
            s, held, _ = hdlif.step(
                z, held, decay=folded.decay[t], theta=folded.theta[t], offset=folded.offset
            )
            differ += int((hdlif.codes(s * folded.ratio, 1.0) != 4 * out.numpy()).sum())
            total += out.numel()
        negative += int((layer.gain < 0).sum())
    return differ, total, negative


def code_mismatch(layers: list[GradedLayer], task: Task) -> tuple[float, int]:
    """(share of codes that differ, the largest difference) of each layer on the same input."""
    x = task.test.x.double().numpy()
    fixed = to_fixed(layers, input_step=task.input_step, input_top=task.input_top)
    sent = run_float(layers, x)
    differ = total = worst = 0
    for layer, integer in zip(layers, fixed, strict=True):
        found, _ = run_fixed([integer], np.round(x / integer.input_step).astype(np.int64))
        gap = np.abs(found[layer.name] - np.round(sent[layer.name] / integer.code_step))
        differ, total, worst = (
            differ + int((gap > 0).sum()),
            total + gap.size,
            max(worst, gap.max()),
        )
        x = sent[layer.name]
    return differ / total, int(worst)


def on_lava(net: Net, task: Task, most: int) -> list[dict[str, Any]]:
    """Accuracy and differing codes of a trained network on every back end, `most` test samples."""
    double = HDStack(*copy.deepcopy(net).double()).eval()
    test = task.test.take(torch.arange(len(task.test))[:most])
    state, logits, wanted = None, 0.0, []
    hook = double[1].register_forward_hook(lambda m, i, o: wanted.append(o[0]))
    with torch.no_grad():
        for step in test.x.double():
            out, state = double(step, state)
            logits = logits + out
    hook.remove()
    labels = test.y.numpy()
    sent = torch.stack(wanted).numpy()
    made = deploy(double)
    rows = [{"run": "torch, float64", "accuracy %": _percent(logits.numpy(), labels),
             "differing codes": "", "of": sent.size}]  # fmt: skip
    fixed = to_fixed(made.layers, input_step=task.input_step, input_top=task.input_top)
    for name, layers, backend in (
        ("fused, float", made.layers, "fused"), ("Lava, float", made.layers, "lava"),
        ("fused, Loihi integers", fixed, "fused"), ("Lava, Loihi integers", fixed, "lava"),
    ):  # fmt: skip
        with build_hdlif(layers, backend) as session:
            found = session.run(test.x.double().numpy())[made.layers[-1].name]
        rows.append({
            "run": name, "accuracy %": _percent(made.logits(found), labels),
            "differing codes": int((found != sent).sum()), "of": sent.size,
        })  # fmt: skip
    return rows


def utilisation(net: Net) -> list[dict[str, Any]]:
    """The report of packed weights."""
    return [
        {"layer": u.name, "neurons": u.neurons, "synapses": u.synapses,
         "synapse bytes": u.synapse_bytes, "cores": u.cores,
         "memory used %": round(100 * u.utilisation, 1)}
        for u in hdlif_use(deploy(nn.Sequential(*net)).layers)
    ]  # fmt: skip


def _percent(logits: Any, labels: Any) -> float:
    return round(100 * float((logits.argmax(1) == labels).mean()), 2)
