"""Contract of kept_conv2d: a convolution by the kept taps of a weight, with its gradients.

    out[n, o, y, x] = sum over the taps t = (o, c, r, s) of value[t] x[n, c, y', x'],
                      y' = y stride - padding + r dilation, x' likewise       (as sparse_conv2d)
    dL/dvalue[t]    = sum over n, y, x of dL/dout[n, o, y, x] x[n, c, y', x']
    dL/dx           = the usual one, by the same taps

so that forward and backward do the work of the kept entries only. x float32 or float64
[N, C, H, W]; value [T] in its dtype; out contiguous. Backends: "cpu" (C++) and "reference" (the
dense convolution and the dense weight gradient, read at the taps). With a stride above 1 the
gradient to x is PyTorch's dense one in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from mpt_fast.kernels import cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import Geometry, Pair, check_tensor, make_geometry
from mpt_fast.kernels.interop import as_array, run_options, tap_arrays
from mpt_fast.kernels.kept_conv2d import reference
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.taps import Taps

BACKENDS = ("cpu", "reference")


@dataclass(frozen=True)
class KeptWeight:
    """Where the taps of a weight are; their values come with each call.

    index: int64 [T], flat indices into the weight [O, C/groups, kh, kw], ascending. taps: the same
    as CSR, with values 1. turned: the taps of the convolution that gives the gradient to x, and
    turned_order: the number in `index` of each of its taps.
    """

    shape: tuple[int, int, int, int]
    index: Tensor
    taps: Taps
    turned: Taps
    turned_order: Tensor

    @classmethod
    def of(cls, mask: Tensor, groups: int = 1) -> "KeptWeight":
        """From a bool mask [O, C/groups, kh, kw] or [O, I] on the CPU; ValueError for others."""
        check_tensor(mask, "mask", torch.bool)
        if mask.dim() not in (2, 4):
            raise ValueError(f"mask must be [O, I] or [O, C, kh, kw], got {tuple(mask.shape)}")
        outputs, inputs, height, width = (*mask.shape, 1, 1)[:4]
        index = mask.reshape(-1).nonzero().squeeze(1)
        area, per_group = height * width, outputs // groups
        channel, tap = index // area, index % area
        output, within = channel // inputs, channel % inputs
        # dL/dx is the convolution of dL/dout by the kernels transposed and turned by half.
        source = output // per_group * inputs + within
        place = (source * per_group + output % per_group) * area + (area - 1 - tap)
        order = place.argsort()
        return cls(
            shape=(outputs, inputs, height, width),
            index=index,
            taps=_taps(index, (outputs, inputs, height, width)),
            turned=_taps(place[order], (groups * inputs, per_group, height, width)),
            turned_order=order,
        )

    @property
    def kept(self) -> int:
        """Number of taps."""
        return self.index.numel()

    def gather(self, dense: Tensor) -> Tensor:
        """[T]: the entries of a dense tensor of the weight's shape at the taps."""
        return dense.reshape(-1).index_select(0, self.index)

    def scatter(self, values: Tensor) -> Tensor:
        """The dense [O, C/groups, kh, kw] of values [T], 0 elsewhere."""
        dense = values.new_zeros(self.shape)
        dense.view(-1)[self.index] = values
        return dense


def _taps(index: Tensor, shape: tuple[int, int, int, int]) -> Taps:
    """Taps of value 1 at ascending flat indices."""
    per_channel = shape[1] * shape[2] * shape[3]
    starts = index.new_zeros(shape[0] + 1)
    starts[1:] = torch.bincount(index // per_channel, minlength=shape[0]).cumsum(0)
    return Taps(
        indptr=starts.to(torch.int32),
        index=(index % per_channel).to(torch.int32),
        value=torch.ones(index.shape),
        shape=shape,
    )


def kept_conv2d(
    x: Tensor,
    value: Tensor,
    weight: KeptWeight,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Convolve `x` by the kept taps; gradients reach x and value (formulas: see the module).

    x: [N, C, H, W]. value: [weight.kept]. The other arguments are those of
    `torch.nn.functional.conv2d`; backend None for automatic, or "cpu" or "reference".

    Raises ValueError for operands that do not fit each other, BackendError for an explicit backend
    that cannot run.
    """
    check_tensor(value, "value", x.dtype, (weight.kept,), x.device)
    geometry = make_geometry(stride, padding, dilation, groups)
    chosen = choose("kept_conv2d", backend, x.device.type, BACKENDS)
    return KeptConv2dFunction.apply(x, value, weight, geometry, chosen)


class KeptConv2dFunction(torch.autograd.Function):
    """The gradients of kept_conv2d."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, weight: KeptWeight, geometry: Geometry, backend: str
    ) -> Tensor:
        taps = weight.taps._replace(value=value.detach())
        ctx.save_for_backward(x, value)
        ctx.weight, ctx.geometry, ctx.backend = weight, geometry, backend
        return sparse_conv2d(x, taps, None, *geometry, backend=backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        weight, geometry, backend = ctx.weight, ctx.geometry, ctx.backend
        grad_x = grad_value = None
        if ctx.needs_input_grad[0]:
            grad_x = _grad_x(grad, x.shape, value, weight, geometry, backend)
        if ctx.needs_input_grad[1]:
            grad_value = kept_gradient(x, grad, weight, geometry, backend)
        return grad_x, grad_value, None, None, None


def kept_gradient(
    x: Tensor, grad: Tensor, weight: KeptWeight, geometry: Geometry, backend: str | None = None
) -> Tensor:
    """dL/dvalue [T] from the input and the gradient of the output."""
    taps = weight.taps
    return _kept_gradient(x, grad, taps.indptr, taps.index, weight.shape, *geometry, backend)


@torch.library.custom_op("mpt_fast::kept_conv2d_gradient", mutates_args=())
def _kept_gradient(
    x: Tensor,
    grad: Tensor,
    indptr: Tensor,
    index: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    outputs, inputs, height, width = shape
    taps = Taps(indptr, index, x.new_ones(index.shape), (outputs, inputs, height, width))
    geometry = make_geometry(stride, padding, dilation, groups)
    if choose("kept_conv2d", backend, x.device.type, BACKENDS) == "reference":
        return reference.gradient(x, grad, taps, geometry)
    found = cpu.engine().kept_conv2d_gradient(
        as_array(x), as_array(grad), *tap_arrays(taps), *geometry, **run_options()
    )
    return torch.from_numpy(found)


@_kept_gradient.register_fake
def _(
    x: Tensor,
    grad: Tensor,
    indptr: Tensor,
    index: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    return x.new_empty(index.shape)


def _grad_x(
    grad: Tensor,
    shape: Sequence[int],
    value: Tensor,
    weight: KeptWeight,
    geometry: Geometry,
    backend: str,
) -> Tensor:
    stride, padding, dilation, groups = geometry
    kernel = weight.shape[2:]
    turned_padding = tuple(
        d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)
    )
    if tuple(stride) != (1, 1) or min(turned_padding) < 0:
        dense = weight.scatter(value.detach())
        return conv2d_input(shape, dense, grad, stride, padding, dilation, groups)
    taps = weight.turned._replace(value=value.detach().index_select(0, weight.turned_order))
    rows, columns = turned_padding
    return sparse_conv2d(grad, taps, None, 1, (rows, columns), dilation, groups, backend)
