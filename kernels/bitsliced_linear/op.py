"""Contract of bitsliced_linear and bitsliced_linear_sign: a linear layer on bit planes.

    S[o, lane] = sum over the taps i of output o of value * (2 * bit - 1),
                 bit = planes[i] of the lane

`bitsliced_conv2d` without space: bits, lanes, thresholds, `flip` and the residual mean the same,
and so do the triton backend's routes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.bitsliced_conv2d.op import check_thresholds, cost_case
from mpt_fast.kernels.bitsliced_linear import reference
from mpt_fast.kernels.geometry import check_tensor, make_geometry
from mpt_fast.kernels.interop import as_array, optional_array, run_options, tap_arrays
from mpt_fast.kernels.pack_bits.reference import WORD_BITS
from mpt_fast.kernels.taps import Taps

BACKENDS = ("triton", "cpu", "reference")

_POINTWISE = make_geometry()


def _checked_taps(
    planes: Tensor, indptr: Tensor, index: Tensor, value: Tensor, shape: Sequence[int]
) -> Taps:
    outputs, inputs, kh, kw = shape
    taps = Taps(indptr, index, value, (outputs, inputs, kh, kw))
    taps.check(planes.device)
    if (kh, kw) != (1, 1):
        raise ValueError(f"a linear layer's taps have 1x1 kernels, got {kh}x{kw}")
    if value.dtype != torch.int8:
        raise ValueError("bit-sliced operations take int8 taps (+1 or -1); use sparse_linear")
    check_tensor(planes, "planes", torch.int64, (inputs, None))
    return taps


@torch.library.custom_op("mpt_fast::bitsliced_linear", mutates_args=())
def _bitsliced_linear(
    planes: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    backend: str | None = None,
) -> Tensor:
    taps = _checked_taps(planes, indptr, index, value, shape)
    case = cost_case("bitsliced_linear", planes, taps, (1, 1))
    chosen = choose("bitsliced_linear", backend, planes.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.bitsliced_linear import triton

        return triton.apply(case, planes, taps)
    if chosen == "cpu":
        sums = cpu.engine().bitsliced_conv2d(
            as_array(planes)[:, None, None, :], *tap_arrays(taps), *_POINTWISE, **run_options()
        )
        return torch.from_numpy(sums[:, 0, 0, :])
    return reference.bitsliced_linear(planes, taps)


@_bitsliced_linear.register_fake
def _(
    planes: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    backend: str | None = None,
) -> Tensor:
    _checked_taps(planes, indptr, index, value, shape)
    return planes.new_empty((shape[0], planes.shape[1] * WORD_BITS), dtype=torch.int32)


@torch.library.custom_op("mpt_fast::bitsliced_linear_sign", mutates_args=())
def _bitsliced_linear_sign(
    planes: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    threshold: Tensor,
    flip: Tensor,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    taps = _checked_taps(planes, indptr, index, value, shape)
    out_shape = (shape[0], planes.shape[1])
    check_thresholds(out_shape, threshold, flip, residual, residual_threshold, planes.device)
    case = cost_case("bitsliced_linear_sign", planes, taps, (1, 1))
    chosen = choose("bitsliced_linear_sign", backend, planes.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.bitsliced_linear import triton

        return triton.apply(case, planes, taps, threshold, flip, residual, residual_threshold)
    if chosen == "cpu":
        residual_array = optional_array(residual)
        decisions = cpu.engine().bitsliced_conv2d_sign(
            as_array(planes)[:, None, None, :],
            *tap_arrays(taps),
            *_POINTWISE,
            threshold=as_array(threshold),
            flip=as_array(flip.to(torch.uint8)),
            residual=None if residual_array is None else residual_array[:, None, None, :],
            residual_threshold=optional_array(residual_threshold),
            **run_options(),
        )
        return torch.from_numpy(decisions[:, 0, 0, :])
    return reference.bitsliced_linear_sign(
        planes, taps, threshold, flip, residual, residual_threshold
    )


@_bitsliced_linear_sign.register_fake
def _(
    planes: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    threshold: Tensor,
    flip: Tensor,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    _checked_taps(planes, indptr, index, value, shape)
    out_shape = (shape[0], planes.shape[1])
    check_thresholds(out_shape, threshold, flip, residual, residual_threshold, planes.device)
    return planes.new_empty(out_shape)


def bitsliced_linear(planes: Tensor, taps: Taps, backend: str | None = None) -> Tensor:
    """The sums S of a +1/-1 input with kept +1/-1 taps (formula: see the module).

    Args:
        planes: int64 [I, words], from `pack_bits(x, dim=0)` of [N, I].
        taps: int8 taps of shape (O, I, 1, 1).
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int32 [O, words * 64], lanes last.

    Raises:
        ValueError: operands that do not fit each other, or a malformed tap list.
        BackendError: an explicit backend that cannot run.
    """
    return _bitsliced_linear(planes, *taps, backend)


def bitsliced_linear_sign(
    planes: Tensor,
    taps: Taps,
    threshold: Tensor,
    flip: Tensor,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The packed decisions `S >= t` (or `S <= t`) of `bitsliced_linear`.

    Args:
        planes, taps: as for `bitsliced_linear`.
        threshold: int32 [O], t where there is no residual or its bit is 0 (-1).
        flip: bool [O]; True decides `S <= t`, False `S >= t`.
        residual: int64 [O, words] planes of a +1/-1 shortcut, or None.
        residual_threshold: int32 [O], t where the residual's bit is 1 (+1); given with residual.
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int64 planes [O, words].

    Raises:
        ValueError: operands that do not fit each other, or a malformed tap list.
        BackendError: an explicit backend that cannot run.
    """
    return _bitsliced_linear_sign(
        planes, *taps, threshold, flip, residual, residual_threshold, backend
    )
