"""The three versions of arXiv:2410.07547 as presets of one layer.

    preset             paper         weights            spikes   standing
    empf               v1, EM-PF     1 bit              float    reconstructed: abstract and reviews
    hmdf               v2, HM-DF     1 or 1.5 bit       float    as HD-LIF: the body was not found
    hdlif_compressed   v3, HD-LIF    1 or 1.5 bit       4 bit    from the released code

All share the neuron of `neurons.hdlif`; that EM-PF resets as they do is an assumption.

References:
    specs/hmdf.md 1, 7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from grasp_plugin.hdlif.attention import SECA
from grasp_plugin.hdlif.layer import HDLayer
from grasp_plugin.hdlif.neuron import HDLIF
from grasp_plugin.hdlif.quantisers import QuantLinear


def empf(inputs: int, outputs: int, steps: int, **options: Any) -> HDLayer:
    """EM-PF (v1, reconstructed): 1-bit weights, float spikes. Options as `hdlif_compressed`.

    Example:
        >>> empf(3, 2, 4, grad_mode="online").neuron.spikes
        'float'
    """
    return _layer(inputs, outputs, steps, weights="1bit", spikes="float", **options)


def hmdf(
    inputs: int, outputs: int, steps: int, *, weights: str = "1.5bit", **options: Any
) -> HDLayer:
    """HM-DF (v2): 1-bit or 1.5-bit weights, float spikes. Options as `hdlif_compressed`."""
    return _layer(inputs, outputs, steps, weights=weights, spikes="float", **options)


def hdlif_compressed(
    inputs: int, outputs: int, steps: int, *, weights: str = "1.5bit", **options: Any
) -> HDLayer:
    """HD-LIF (v3) in compression mode: 1-bit or 1.5-bit weights, 4-bit spikes.

    Args:
        inputs, outputs, steps: N_i, N_o, T.
        weights: "1bit", "1.5bit" or "fp".
        options: grad_mode, parallel, shared, dtype as in `HDLIF`; mem_bn, seca: bool; norm: bool,
            a BatchNorm on the current, True unless given.

    Raises:
        Invalid, Refused: as `HDLIF`, `HDLayer` and `QuantLinear`.
    """
    return _layer(inputs, outputs, steps, weights=weights, spikes="4bit", **options)


def _layer(
    inputs: int,
    outputs: int,
    steps: int,
    *,
    weights: str,
    spikes: str,
    norm: bool = True,
    mem_bn: bool = False,
    seca: bool = False,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> HDLayer:
    neuron = HDLIF(steps, spikes=spikes, mem_bn=outputs if mem_bn else None, dtype=dtype, **options)
    return HDLayer(
        QuantLinear(inputs, outputs, weights=weights, dtype=dtype), neuron,
        nn.BatchNorm1d(outputs, dtype=dtype) if norm else None,
        SECA(dtype=dtype) if seca else None,
    )  # fmt: skip
