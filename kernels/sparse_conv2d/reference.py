"""Sparse float convolution in plain PyTorch: the ground truth of `sparse_conv2d`."""

import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.geometry import Geometry
from mpt_fast.kernels.taps import Taps


def sparse_conv2d(x: Tensor, taps: Taps, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """See `mpt_fast.kernels.sparse_conv2d.op.sparse_conv2d`."""
    stride, padding, dilation, groups = geometry
    weight = taps.to_dense(x.dtype)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).contiguous()
