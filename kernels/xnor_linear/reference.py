"""Popcount linear layer in plain PyTorch: the ground truth of `xnor_linear`."""

import torch
from torch import Tensor

from mpt_fast.kernels.pack_bits.reference import popcount


def xnor_linear(x: Tensor, sign: Tensor, mask: Tensor) -> Tensor:
    """See `mpt_fast.kernels.xnor_linear.op.xnor_linear`."""
    out = torch.zeros(x.shape[0], sign.shape[0], dtype=torch.int32, device=x.device)
    for o in range(sign.shape[0]):
        agreements = popcount(~(x ^ sign[o]) & mask[o]).sum(1)
        out[:, o] = 2 * agreements - popcount(mask[o]).sum()
    return out
