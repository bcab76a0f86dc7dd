"""Dense weights as kept taps: per output channel {-a, 0, +a} becomes +-1 taps and a scale a."""

import numpy as np
import torch
from torch import Tensor

from mpt_fast.packed.graph import PackError
from mpt_fast.runtime.program import Taps


def taps_from_dense(weight: Tensor, name: str) -> tuple[Taps, Tensor]:
    """float64 weight (O, C/groups, kh, kw) -> kept (nonzero) taps and their scale, float64 [O].

    Where the nonzero entries of every output channel have one magnitude (binary, ternary and
    XNOR-Net style networks, tickets) the taps are int8 signs and the scale is that magnitude (1
    for an empty channel). Otherwise the taps are the entries, float32 where that is exact, and
    the scale is 1. Raises PackError naming the layer where an entry is not finite.
    """
    dense = np.ascontiguousarray(weight.detach().cpu().double().numpy())
    if not np.isfinite(dense).all():
        raise PackError(f"{name}: the weight has NaN or infinite entries")
    outputs = dense.shape[0]
    rows = dense.reshape(outputs, -1)
    channel, index = np.nonzero(rows)
    values = rows[channel, index]
    magnitude = np.abs(values)
    scale = np.abs(rows).max(axis=1, initial=0.0)
    indptr = np.zeros(outputs + 1, np.int32)
    np.cumsum(np.bincount(channel, minlength=outputs), out=indptr[1:])
    value: np.ndarray
    if (magnitude == scale[channel]).all():
        scale[scale == 0] = 1.0
        value = np.sign(values).astype(np.int8)
    else:
        scale = np.ones(outputs)
        narrow = values.astype(np.float32)
        value = narrow if (narrow == values).all() else values
    o, c, h, w = dense.shape
    taps = Taps((o, c, h, w), indptr, index.astype(np.int32), value)
    return taps, torch.from_numpy(scale)
