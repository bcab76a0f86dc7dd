"""masked_conv2d in plain PyTorch: form the effective weight, convolve."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels.masked_weight.reference import effective_weight


def masked_conv2d(
    x: Tensor,
    code: Tensor,
    gain: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """(convolution of x with gain * code, the effective weight gain * code)."""
    effective = effective_weight(code, gain, x.dtype)
    out = torch.nn.functional.conv2d(
        x, effective, None, list(stride), list(padding), list(dilation), groups
    )
    return out, effective
