"""Pooling in plain PyTorch: the ground truth of `pool2d`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.pack_bits.reference import WORD_BITS, pack_bits, unpack_bits

Pair = tuple[int, int]


def out_size(
    image: Pair, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> tuple[int, int]:
    """(Ho, Wo) as PyTorch counts windows; ValueError where it refuses them."""
    x = torch.empty((1, 1, *image), device="meta")
    try:
        shape = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode).shape
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"window {kernel} on {image}: {reason}") from None
    return shape[2], shape[3]


def pool2d(
    x: Tensor,
    mode: str,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    flip: Tensor | None,
    count_include_pad: bool,
    divisor: int,
) -> Tensor:
    """See `mpt_fast.kernels.pool2d.op.pool2d`."""
    planes = x.dtype == torch.int64
    if not x.numel():
        size = out_size((x.shape[1], x.shape[2]), kernel, stride, padding, ceil_mode)
        return x.new_empty((x.shape[0], *size, x.shape[3]))
    value = unpack_bits(x, x.shape[-1] * WORD_BITS, -1, torch.float32) if planes else x
    images = value.movedim(-1, 0)
    if x.dtype == torch.int32:
        images = images.double()  # exact
    if mode == "mean":
        out = F.avg_pool2d(
            images, kernel, stride, padding, ceil_mode, count_include_pad, divisor or None
        )
    else:
        out = F.max_pool2d(images, kernel, stride, padding, 1, ceil_mode)
        if flip is not None:
            least = -F.max_pool2d(-images, kernel, stride, padding, 1, ceil_mode)
            out = torch.where(flip.view(1, -1, 1, 1), least, out)
    out = out.movedim(0, -1)
    return pack_bits(out, -1) if planes else out.to(x.dtype)
