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
from mpt_fast.kernels.geometry import (
    Geometry,
    Pair,
    check_tensor,
    conv2d_output_size,
    make_geometry,
)
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
        """From a bool mask [O, C/groups, kh, kw] or [O, I]; ValueError for others."""
        check_tensor(mask, "mask", torch.bool)
        if mask.dim() not in (2, 4):
            raise ValueError(f"mask must be [O, I] or [O, C, kh, kw], got {tuple(mask.shape)}")
        if groups < 1 or mask.shape[0] % groups or mask.numel() == 0:
            raise ValueError(f"a mask {tuple(mask.shape)} has no {groups} groups of channels")
        outputs, inputs, height, width = shape = (*mask.shape, 1, 1)[:4]
        by_engine = mask.device.type == "cpu" and cpu.available()
        make = _engine_lists if by_engine else reference.lists
        index, *lists, order = make(mask.detach().reshape(shape).contiguous(), groups)
        ones = torch.ones(index.shape, device=mask.device)
        turned = (groups * inputs, outputs // groups, height, width)
        return cls(
            shape=shape,
            index=index,
            taps=Taps(lists[0], lists[1], ones, shape),
            turned=Taps(lists[2], lists[3], ones, turned),
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


def _engine_lists(mask: Tensor, groups: int) -> reference.Lists:
    found = cpu.engine().kept_lists(mask.numpy(), groups)
    return tuple(torch.from_numpy(part) for part in found)  # type: ignore[return-value]  # six


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
        ctx.save_for_backward(x, value)
        ctx.weight, ctx.geometry, ctx.backend = weight, geometry, backend
        taps = weight.taps
        return _kept_conv2d(x, taps.indptr, taps.index, value, weight.shape, *geometry, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        weight, geometry, backend = ctx.weight, ctx.geometry, ctx.backend
        grad_x = grad_value = None
        turned = _turned_padding(weight, geometry)
        if not ctx.needs_input_grad[0]:
            if ctx.needs_input_grad[1]:
                grad_value = kept_gradient(x, grad, weight, geometry, backend)
        elif turned is None:
            dense = weight.scatter(value.detach())
            grad_x = conv2d_input(x.shape, dense, grad, *geometry)
            if ctx.needs_input_grad[1]:
                grad_value = kept_gradient(x, grad, weight, geometry, backend)
        else:
            taps = weight.turned
            lists = (taps.indptr, taps.index, value.index_select(0, weight.turned_order))
            if ctx.needs_input_grad[1]:
                grad_value, grad_x = _gradients(x, grad, weight, geometry, lists, backend)
            else:
                around = make_geometry(1, turned, *geometry[2:])
                grad_x = _kept_conv2d(grad, *lists, taps.shape, *around, backend)
        return grad_x, grad_value, None, None, None


def kept_gradient(
    x: Tensor, grad: Tensor, weight: KeptWeight, geometry: Geometry, backend: str | None = None
) -> Tensor:
    """dL/dvalue [T] from the input and the gradient of the output."""
    return _gradients(x, grad, weight, geometry, None, backend)[0]


def _turned_padding(weight: KeptWeight, geometry: Geometry) -> tuple[int, ...] | None:
    """The padding of the convolution by turned taps that gives the gradient to x, if one does."""
    stride, padding, dilation, _ = geometry
    sides = tuple(
        d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)
    )
    return sides if tuple(stride) == (1, 1) and min(sides) >= 0 else None


def _gradients(
    x: Tensor,
    grad: Tensor,
    weight: KeptWeight,
    geometry: Geometry,
    turned: tuple[Tensor, Tensor, Tensor] | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """dL/dvalue, and dL/dx where the turned taps are given (otherwise empty)."""
    lists = [] if turned is None else list(turned)
    taps = weight.taps
    return _kept_gradients(
        x, grad, taps.indptr, taps.index, lists, weight.shape, *geometry, backend
    )


@torch.library.custom_op("mpt_fast::kept_conv2d", mutates_args=())
def _kept_conv2d(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    taps, geometry = _unpack(indptr, index, value, shape, stride, padding, dilation, groups)
    if choose("kept_conv2d", backend, x.device.type, BACKENDS) == "reference":
        return sparse_conv2d(x, taps, None, *geometry, backend="reference")
    found = cpu.engine().kept_conv2d(as_array(x), *tap_arrays(taps), *geometry, **run_options())
    return torch.from_numpy(found)


@_kept_conv2d.register_fake
def _(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, groups)
    size = conv2d_output_size((x.shape[2], x.shape[3]), (shape[2], shape[3]), geometry)
    return x.new_empty((x.shape[0], shape[0], *size))


@torch.library.custom_op("mpt_fast::kept_conv2d_gradients", mutates_args=())
def _kept_gradients(
    x: Tensor,
    grad: Tensor,
    indptr: Tensor,
    index: Tensor,
    turned: list[Tensor],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    ones = x.new_ones(index.shape)
    taps, geometry = _unpack(indptr, index, ones, shape, stride, padding, dilation, groups)
    if choose("kept_conv2d", backend, x.device.type, BACKENDS) == "reference":
        of_x = x.new_empty(0)
        if turned:
            of_x = reference.input_gradient(grad, turned, taps.shape, geometry)
        return reference.gradient(x, grad, taps, geometry), of_x
    found = cpu.engine().kept_conv2d_gradients(
        as_array(x),
        as_array(grad),
        *tap_arrays(taps),
        *geometry,
        turned=[as_array(part) for part in turned] or None,
        **run_options(),
    )
    of_taps, of_x = found
    return torch.from_numpy(of_taps), x.new_empty(0) if of_x is None else torch.from_numpy(of_x)


@_kept_gradients.register_fake
def _(
    x: Tensor,
    grad: Tensor,
    indptr: Tensor,
    index: Tensor,
    turned: list[Tensor],
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(index.shape), x.new_empty(x.shape if turned else 0)


def _unpack(
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Taps, Geometry]:
    outputs, inputs, height, width = shape
    taps = Taps(indptr, index, value, (outputs, inputs, height, width))
    return taps, make_geometry(stride, padding, dilation, groups)
