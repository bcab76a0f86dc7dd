"""The gradient of kept taps in plain PyTorch: the ground truth of `kept_conv2d`."""

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from mpt_fast.kernels.geometry import Geometry
from mpt_fast.kernels.taps import Taps


def gradient(x: Tensor, grad: Tensor, taps: Taps, geometry: Geometry) -> Tensor:
    """See `mpt_fast.kernels.kept_conv2d.op`: the dense weight gradient, read at the taps."""
    stride, padding, dilation, groups = geometry
    dense = conv2d_weight(x, taps.shape, grad, stride, padding, dilation, groups)
    counts = (taps.indptr[1:] - taps.indptr[:-1]).long()
    channel = torch.repeat_interleave(torch.arange(taps.shape[0], device=x.device), counts)
    return dense.reshape(taps.shape[0], -1)[channel, taps.index.long()]
