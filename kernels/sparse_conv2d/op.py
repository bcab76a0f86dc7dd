"""Contract of sparse_conv2d: convolution of a float tensor with kept taps.

    out[n, o, y, x] = bias[o] + sum over the taps (c, r, s) of output channel o that lie inside the
                      image of value * x[n, c, y', x'],
                      y' = y * stride - padding + r * dilation, x' likewise

A tap outside the image contributes nothing (zero padding). int8 taps are +1 or -1 and only add
and subtract; real taps multiply and are rounded to the dtype of x first. Sums are formed in the
dtype of x, in an order that the backend chooses. There is no gradient: the operation runs trained
networks. Where x holds NaN or infinity the result is not specified: some backends multiply it by
the pruned zeros, others never read it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import (
    Geometry,
    Pair,
    check_channels,
    check_tensor,
    conv2d_output_size,
    make_geometry,
)
from mpt_fast.kernels.interop import as_array, optional_array, run_options, tap_arrays
from mpt_fast.kernels.sparse_conv2d import reference
from mpt_fast.kernels.taps import Taps

BACKENDS = ("triton", "cpu", "reference")


def _check_operands(
    x: Tensor, taps: Taps, bias: Tensor | None, geometry: Geometry
) -> tuple[int, int, int, int]:
    check_tensor(x, "x", (torch.float32, torch.float64), (None, None, None, None))
    taps.check(x.device)
    N, C, H, W = x.shape
    out_channels, per_group, kernel_h, kernel_w = taps.shape
    check_channels(C, out_channels, per_group, geometry)
    if bias is not None:
        check_tensor(bias, "bias", x.dtype, (out_channels,), x.device)
    return (N, out_channels, *conv2d_output_size((H, W), (kernel_h, kernel_w), geometry))


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
    taps = Taps(indptr, index, value, (shape[0], shape[1], shape[2], shape[3]))
    return taps, make_geometry(stride, padding, dilation, groups)


@torch.library.custom_op("mpt_fast::sparse_conv2d", mutates_args=())
def _sparse_conv2d(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    taps, geometry = _unpack(indptr, index, value, shape, stride, padding, dilation, groups)
    N, _, height, width = _check_operands(x, taps, bias, geometry)
    columns = N * height * width
    operation = costs.typed("sparse_conv2d", x.dtype)
    case = costs.product(operation, columns, taps.shape, index.shape[0])
    chosen = choose("sparse_conv2d", backend, x.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.sparse_conv2d import triton

        return triton.run(x, triton.prepare(taps, (x.shape[2], x.shape[3]), geometry), bias)
    if chosen == "cpu":
        out = cpu.engine().sparse_conv2d(
            as_array(x), *tap_arrays(taps), optional_array(bias), *geometry, **run_options()
        )
        return torch.from_numpy(out)
    return reference.sparse_conv2d(x, taps, bias, geometry)


@_sparse_conv2d.register_fake
def _(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    taps, geometry = _unpack(indptr, index, value, shape, stride, padding, dilation, groups)
    return x.new_empty(_check_operands(x, taps, bias, geometry))


def sparse_conv2d(
    x: Tensor,
    taps: Taps,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Convolution of `x` with the kept taps only (formula: see the module).

    Args:
        x: float32 or float64 [N, C, H, W], any strides.
        taps: int8 or real taps of shape (O, C/groups, kh, kw).
        bias: [O] in the dtype of x, or None.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`, ints or (h, w).
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        Contiguous [N, O, Ho, Wo] in the dtype of x.

    Raises:
        ValueError: operands that do not fit each other, or a malformed tap list.
        BackendError: an explicit backend that cannot run.
    """
    geometry = make_geometry(stride, padding, dilation, groups)
    return _sparse_conv2d(x, *taps, bias, *geometry, backend)
