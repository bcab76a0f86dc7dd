"""Contract of bitsliced_conv2d and bitsliced_conv2d_sign: convolution of bit planes.

    S[o, y, x, lane] = sum over the taps (c, r, s) of output channel o that lie inside the image of
                       value * (2 * bit - 1),   bit = planes[c, y', x'] of the lane,
                       y' = y * stride - padding + r * dilation, x' likewise

Bits follow `pack_bits`: 1 stands for +1, 0 for -1. A tap outside the image contributes nothing
(the float convolution's zero padding). Lanes are independent: those past the batch hold bit 0 and
get the result that belongs to an input of -1 everywhere.

The sign form compares S with an integer per channel and packs the decision:

    bit = S <= t if flip else S >= t,   t = threshold, or residual_threshold where the residual's
                                            bit is 1

which is batch norm, an optional +1/-1 shortcut and binary_activation in one step; a negative
batch-norm slope sets `flip`. Both forms are exact and have no gradient.

The triton backend has two routes with equal results: "adders", whose cost is that of the kept taps,
and "int8", tensor-core products of the unpacked planes, whose cost does not depend on the density
and which takes a byte of memory for each input entry. The measured cost table chooses; "adders"
runs where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.bitsliced_conv2d import reference
from mpt_fast.kernels.geometry import (
    Geometry,
    Pair,
    check_channels,
    check_tensor,
    conv2d_output_size,
    make_geometry,
)
from mpt_fast.kernels.interop import as_array, optional_array, run_options, tap_arrays
from mpt_fast.kernels.pack_bits.reference import WORD_BITS
from mpt_fast.kernels.taps import Taps

BACKENDS = ("triton", "cpu", "reference")


def check_operands(planes: Tensor, taps: Taps, geometry: Geometry) -> tuple[int, int]:
    """(Ho, Wo) of the convolution; ValueError names an operand that does not fit."""
    check_tensor(planes, "planes", torch.int64, (None, None, None, None))
    taps.check(planes.device)
    if taps.value.dtype != torch.int8:
        raise ValueError("bit-sliced operations take int8 taps (+1 or -1); use sparse_conv2d")
    out_channels, per_group, kernel_h, kernel_w = taps.shape
    check_channels(planes.shape[0], out_channels, per_group, geometry)
    image = (planes.shape[1], planes.shape[2])
    return conv2d_output_size(image, (kernel_h, kernel_w), geometry)


def cost_case(operation: str, planes: Tensor, taps: Taps, size: tuple[int, int]) -> costs.Case:
    """What a convolution with an output of `size` pixels is called in the cost table."""
    columns = planes.shape[-1] * WORD_BITS * size[0] * size[1]
    return costs.product(operation, columns, taps.shape, taps.index.shape[0])


def check_thresholds(
    out_shape: tuple[int, ...],
    threshold: Tensor,
    flip: Tensor,
    residual: Tensor | None,
    residual_threshold: Tensor | None,
    device: torch.device,
) -> None:
    """ValueError unless the sign form's operands fit an output of `out_shape` (O, ..., words)."""
    channels = (out_shape[0],)
    check_tensor(threshold, "threshold", torch.int32, channels, device)
    check_tensor(flip, "flip", torch.bool, channels, device)
    if (residual is None) != (residual_threshold is None):
        raise ValueError("residual and residual_threshold are given together or not at all")
    if residual is not None and residual_threshold is not None:
        check_tensor(residual, "residual", torch.int64, out_shape, device)
        check_tensor(residual_threshold, "residual_threshold", torch.int32, channels, device)


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


@torch.library.custom_op("mpt_fast::bitsliced_conv2d", mutates_args=())
def _bitsliced_conv2d(
    planes: Tensor,
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
    size = check_operands(planes, taps, geometry)
    case = cost_case("bitsliced_conv2d", planes, taps, size)
    chosen = choose("bitsliced_conv2d", backend, planes.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.bitsliced_conv2d import triton

        return triton.convolve(case, planes, taps, geometry)
    if chosen == "cpu":
        sums = cpu.engine().bitsliced_conv2d(
            as_array(planes), *tap_arrays(taps), *geometry, **run_options()
        )
        return torch.from_numpy(sums)
    return reference.bitsliced_conv2d(planes, taps, geometry)


@_bitsliced_conv2d.register_fake
def _(
    planes: Tensor,
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
    height, width = check_operands(planes, taps, geometry)
    lanes = planes.shape[-1] * WORD_BITS
    return planes.new_empty((shape[0], height, width, lanes), dtype=torch.int32)


@torch.library.custom_op("mpt_fast::bitsliced_conv2d_sign", mutates_args=())
def _bitsliced_conv2d_sign(
    planes: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    threshold: Tensor,
    flip: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    taps, geometry = _unpack(indptr, index, value, shape, stride, padding, dilation, groups)
    height, width = check_operands(planes, taps, geometry)
    out_shape = (shape[0], height, width, planes.shape[-1])
    check_thresholds(out_shape, threshold, flip, residual, residual_threshold, planes.device)
    case = cost_case("bitsliced_conv2d_sign", planes, taps, (height, width))
    chosen = choose("bitsliced_conv2d_sign", backend, planes.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.bitsliced_conv2d import triton

        decided = (threshold, flip, residual, residual_threshold)
        return triton.convolve(case, planes, taps, geometry, *decided)
    if chosen == "cpu":
        decisions = cpu.engine().bitsliced_conv2d_sign(
            as_array(planes),
            *tap_arrays(taps),
            *geometry,
            threshold=as_array(threshold),
            flip=as_array(flip.to(torch.uint8)),
            residual=optional_array(residual),
            residual_threshold=optional_array(residual_threshold),
            **run_options(),
        )
        return torch.from_numpy(decisions)
    return reference.bitsliced_conv2d_sign(
        planes, taps, threshold, flip, geometry, residual, residual_threshold
    )


@_bitsliced_conv2d_sign.register_fake
def _(
    planes: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    threshold: Tensor,
    flip: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    taps, geometry = _unpack(indptr, index, value, shape, stride, padding, dilation, groups)
    height, width = check_operands(planes, taps, geometry)
    out_shape = (shape[0], height, width, planes.shape[-1])
    check_thresholds(out_shape, threshold, flip, residual, residual_threshold, planes.device)
    return planes.new_empty(out_shape)


def bitsliced_conv2d(
    planes: Tensor,
    taps: Taps,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """The sums S of a +1/-1 input with kept +1/-1 taps (formula: see the module).

    Args:
        planes: int64 [C, H, W, words], from `pack_bits(x, dim=0)`.
        taps: int8 taps of shape (O, C/groups, kh, kw).
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`, ints or (h, w).
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int32 [O, Ho, Wo, words * 64], lanes last.

    Raises:
        ValueError: operands that do not fit each other, or a malformed tap list.
        BackendError: an explicit backend that cannot run.
    """
    geometry = make_geometry(stride, padding, dilation, groups)
    return _bitsliced_conv2d(planes, *taps, *geometry, backend)


def bitsliced_conv2d_sign(
    planes: Tensor,
    taps: Taps,
    threshold: Tensor,
    flip: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The packed decisions `S >= t` (or `S <= t`) of `bitsliced_conv2d` (see the module).

    Args:
        planes, taps, stride, padding, dilation, groups: as for `bitsliced_conv2d`.
        threshold: int32 [O], t where there is no residual or its bit is 0 (-1).
        flip: bool [O]; True decides `S <= t`, False `S >= t`.
        residual: int64 [O, Ho, Wo, words] planes of a +1/-1 shortcut, or None.
        residual_threshold: int32 [O], t where the residual's bit is 1 (+1); given with residual.
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int64 planes [O, Ho, Wo, words].

    Raises:
        ValueError: operands that do not fit each other, or a malformed tap list.
        BackendError: an explicit backend that cannot run.
    """
    geometry = make_geometry(stride, padding, dilation, groups)
    return _bitsliced_conv2d_sign(
        planes, *taps, threshold, flip, *geometry, residual, residual_threshold, backend
    )
