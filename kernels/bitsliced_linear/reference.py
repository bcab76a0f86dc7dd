"""Bit-sliced linear layer in plain PyTorch: the ground truth of `bitsliced_linear[_sign]`."""

import torch
from torch import Tensor

from mpt_fast.kernels.bitsliced_conv2d.reference import compare
from mpt_fast.kernels.pack_bits.reference import WORD_BITS, unpack_bits
from mpt_fast.kernels.taps import Taps


def bitsliced_linear(planes: Tensor, taps: Taps) -> Tensor:
    """See `mpt_fast.kernels.bitsliced_linear.op.bitsliced_linear`."""
    signs = unpack_bits(planes, planes.shape[-1] * WORD_BITS, -1, torch.float64)  # [I, lanes]
    # Every term is +1, -1 or 0, so float64 is exact.
    return (taps.to_dense(torch.float64).flatten(1) @ signs).to(torch.int32)


def bitsliced_linear_sign(
    planes: Tensor,
    taps: Taps,
    threshold: Tensor,
    flip: Tensor,
    residual: Tensor | None,
    residual_threshold: Tensor | None,
) -> Tensor:
    """See `mpt_fast.kernels.bitsliced_linear.op.bitsliced_linear_sign`."""
    return compare(bitsliced_linear(planes, taps), threshold, flip, residual, residual_threshold)
