"""Contract of combine: an affine sum of values with images in the lanes, then an activation.

    y[c, h, w, lane] = act(sum_k (scale_k[c] * v_k[c, h, w, lane] + shift_k[c]))

in the order of the sources, each product and sum rounded by itself in `dtype`: batch norm, residual
additions and conversions between the kinds of values of a packed network. act is "none", "relu" or
"sign", the bit y >= 0 (NaN gives 0). int64 sources are planes (`pack_bits`), so +1 and -1; int32
ones are integer sums, others real. Sources may have more lanes than there are images; bits past the
images are 0. There is no gradient.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.combine import reference
from mpt_fast.kernels.geometry import check_tensor
from mpt_fast.kernels.pack_bits.reference import word_count

BACKENDS = ("triton", "reference")
ACTS = ("none", "relu", "sign")

_KINDS = (torch.int64, torch.int32, torch.float32, torch.float64)
_COMPUTED = (torch.float32, torch.float64)


def _out_shape(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str,
    dtype: torch.dtype,
    lanes: int | None,
) -> tuple[int, ...]:
    """Shape of the result; ValueError names an operand that does not fit."""
    if act not in ACTS:
        raise ValueError(f"act must be one of {ACTS}, got {act!r}")
    if dtype not in _COMPUTED:
        raise ValueError(f"combine computes in float32 or float64, not {dtype}")
    if not 0 < len(sources) == len(scales) == len(shifts):
        raise ValueError(
            f"got {len(sources)} sources, {len(scales)} scales and {len(shifts)} shifts"
        )
    device = sources[0].device
    check_tensor(sources[0], "sources[0]", _KINDS, (None, None, None, None))
    C, H, W = sources[0].shape[:3]
    for k, (source, scale, shift) in enumerate(zip(sources, scales, shifts, strict=True)):
        check_tensor(source, f"sources[{k}]", _KINDS, (C, H, W, None), device)
        check_tensor(scale, f"scales[{k}]", _COMPUTED, (C,), device)
        check_tensor(shift, f"shifts[{k}]", _COMPUTED, (C,), device)
    least = reference.lanes_of(sources)
    lanes = least if lanes is None else lanes
    if not 0 <= lanes <= least:
        raise ValueError(f"lanes={lanes} is outside 0..{least}, which the sources hold")
    return C, H, W, word_count(lanes) if act == "sign" else lanes


@torch.library.custom_op("mpt_fast::combine", mutates_args=())
def _combine(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str,
    dtype: torch.dtype,
    lanes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    shape = _out_shape(sources, scales, shifts, act, dtype, lanes)
    case = costs.elements(costs.typed("combine", dtype), math.prod(shape))
    chosen = choose("combine", backend, sources[0].device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.combine import triton

        wide = [scale.to(dtype) for scale in scales]
        return triton.run(sources, wide, [shift.to(dtype) for shift in shifts], act, lanes)
    return reference.combine(sources, scales, shifts, act, dtype, lanes).contiguous()


@_combine.register_fake
def _(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str,
    dtype: torch.dtype,
    lanes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    shape = _out_shape(sources, scales, shifts, act, dtype, lanes)
    return sources[0].new_empty(shape, dtype=torch.int64 if act == "sign" else dtype)


def combine(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str = "none",
    dtype: torch.dtype = torch.float32,
    lanes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """The affine sum of `sources` and its activation (formula: see the module).

    Args:
        sources: at least one; int64 planes [C, H, W, words], or int32, float32 or float64
            [C, H, W, lanes], any strides.
        scales, shifts: float32 or float64 [C], one of each for every source.
        act: "none", "relu" or "sign".
        dtype: float32 or float64, in which it is computed.
        lanes: number of images; None: the least number of lanes of a source.
        backend: None for automatic, or "triton" or "reference".

    Returns:
        `dtype` [C, H, W, lanes], or for "sign" int64 planes [C, H, W, ceil(lanes / 64)].

    Raises:
        ValueError: operands that do not fit each other, or an unknown act or dtype.
        BackendError: an explicit backend that cannot run.
    """
    return _combine(list(sources), list(scales), list(shifts), act, dtype, lanes, backend)
