"""The gradients of kept taps in plain PyTorch: the ground truth of `kept_conv2d`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from mpt_fast.kernels.geometry import Geometry
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.taps import Taps

Lists = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gradient(x: Tensor, grad: Tensor, taps: Taps, geometry: Geometry) -> Tensor:
    """See `mpt_fast.kernels.kept_conv2d.op`: the dense weight gradient, read at the taps."""
    stride, padding, dilation, groups = geometry
    dense = conv2d_weight(x, taps.shape, grad, stride, padding, dilation, groups)
    counts = (taps.indptr[1:] - taps.indptr[:-1]).long()
    channel = torch.repeat_interleave(torch.arange(taps.shape[0], device=x.device), counts)
    return dense.reshape(taps.shape[0], -1)[channel, taps.index.long()]


def input_gradient(
    grad: Tensor, turned: Sequence[Tensor], shape: tuple[int, int, int, int], geometry: Geometry
) -> Tensor:
    """dL/dx with stride 1, by the turned taps (indptr, index, value) of a weight of this shape."""
    outputs, inputs, height, width = shape
    _, padding, dilation, groups = geometry
    around = tuple(
        d * (k - 1) - p for d, k, p in zip(dilation, (height, width), padding, strict=True)
    )
    indptr, index, value = turned
    taps = Taps(indptr, index, value, (inputs * groups, outputs // groups, height, width))
    rows, columns = around
    return sparse_conv2d(grad, taps, None, 1, (rows, columns), dilation, groups, "reference")


def lists(mask: Tensor, groups: int) -> Lists:
    """The lists of `KeptWeight` of a bool mask [O, C/groups, kh, kw].

    Returns (index, indptr, index within the row, turned indptr, turned index, turned_order).
    """
    outputs, inputs, height, width = mask.shape
    area, per_group = height * width, outputs // groups
    index = mask.reshape(-1).nonzero().squeeze(1)
    channel, tap = index // area, index % area
    output, within = channel // inputs, channel % inputs
    # dL/dx is the convolution of dL/dout by the kernels transposed and turned by half.
    source = output // per_group * inputs + within
    place = (source * per_group + output % per_group) * area + (area - 1 - tap)
    order = place.argsort()
    rows = _csr(index, outputs, inputs * area)
    return index, *rows, *_csr(place[order], groups * inputs, per_group * area), order


def _csr(index: Tensor, rows: int, size: int) -> tuple[Tensor, Tensor]:
    """int32 row starts and indices within the row of ascending flat indices."""
    starts = index.new_zeros(rows + 1)
    starts[1:] = torch.bincount(index // size, minlength=rows).cumsum(0)
    return starts.to(torch.int32), (index % size).to(torch.int32)
