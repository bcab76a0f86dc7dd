"""Bit-sliced convolution in plain PyTorch: the ground truth of `bitsliced_conv2d[_sign]`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.geometry import Geometry
from mpt_fast.kernels.pack_bits.reference import WORD_BITS, pack_bits, unpack_bits
from mpt_fast.kernels.taps import Taps


def bitsliced_conv2d(planes: Tensor, taps: Taps, geometry: Geometry) -> Tensor:
    """See `mpt_fast.kernels.bitsliced_conv2d.op.bitsliced_conv2d`."""
    lanes = planes.shape[-1] * WORD_BITS
    signs = unpack_bits(planes, lanes, 0, torch.float64)  # [lanes, C, H, W]
    stride, padding, dilation, groups = geometry
    # Every term is +1, -1 or 0, so float64 is exact; rounding undoes a device's fast transforms.
    sums = F.conv2d(
        signs, taps.to_dense(torch.float64), None, stride, padding, dilation, groups
    ).round()
    return sums.to(torch.int32).movedim(0, -1).contiguous()


def bitsliced_conv2d_sign(
    planes: Tensor,
    taps: Taps,
    threshold: Tensor,
    flip: Tensor,
    geometry: Geometry,
    residual: Tensor | None,
    residual_threshold: Tensor | None,
) -> Tensor:
    """See `mpt_fast.kernels.bitsliced_conv2d.op.bitsliced_conv2d_sign`."""
    sums = bitsliced_conv2d(planes, taps, geometry)
    return compare(sums, threshold, flip, residual, residual_threshold)


def compare(
    sums: Tensor,
    threshold: Tensor,
    flip: Tensor,
    residual: Tensor | None,
    residual_threshold: Tensor | None,
) -> Tensor:
    """Planes [O, ..., words] of the decisions on int32 `sums` [O, ..., lanes]."""
    per_channel = (-1, *[1] * (sums.dim() - 1))
    limit = threshold.view(per_channel)
    if residual is not None and residual_threshold is not None:
        positive = unpack_bits(residual, sums.shape[-1], -1, torch.int8) > 0
        limit = torch.where(positive, residual_threshold.view(per_channel), limit)
    decision = torch.where(flip.view(per_channel), sums <= limit, sums >= limit)
    return pack_bits(2 * decision.to(torch.int8) - 1, -1)
