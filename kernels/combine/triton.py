"""combine on the GPU: one pass over one or two sources, signs packed where they are decided.

A program holds a tile of places (c, h, w) x words x the lanes of a word. More than two sources are
joined pair by pair: scaling the sum so far by 1 and shifting it by 0 changes no value. Products
are not fused with sums, as the contract says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.combine.reference import lanes_of
from mpt_fast.kernels.gpu import ceil_div, guard, power_of_two, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.pack_bits.reference import word_count
from mpt_fast.kernels.pack_bits.triton import as_words32

# Entries of one tile, 8 a thread.
TILE = 65_536 if interpreted() else 1024
MOST_WORDS = 16


@triton.jit
def _term(
    ptr, scale_ptr, shift_ptr, channel, place, place_stride, lane_stride, word, lane, places, lanes,
    PLANES: tl.constexpr,
):  # fmt: skip
    """scale * value + shift, [PLACES, WORDS, BITS]; outside, the shift."""
    if PLANES:
        at = place.to(tl.int64)[:, None] * place_stride + word[None, :]
        first = word * 32
        inside = (place < places)[:, None] & (first < lanes)[None, :]
        words = tl.load(ptr + at, mask=inside, other=0)
        value = 2 * ((words[:, :, None] >> (lane % 32)[None, :, :]) & 1) - 1
    else:
        at = place.to(tl.int64)[:, None, None] * place_stride
        at = at + lane.to(tl.int64)[None, :, :] * lane_stride
        inside = (place < places)[:, None, None] & (lane < lanes)[None, :, :]
        value = tl.load(ptr + at, mask=inside, other=0)
    scale = tl.load(scale_ptr + channel)[:, None, None]
    shift = tl.load(shift_ptr + channel)[:, None, None]
    return value.to(scale_ptr.dtype.element_ty) * scale + shift


@triton.jit
def _combine_kernel(
    first_ptr, second_ptr,  # planes as int32 words, or values
    first_scale_ptr, first_shift_ptr, second_scale_ptr, second_shift_ptr,  # [C]
    out_ptr,  # SIGN: int32 [places, row]; else [places, lanes]
    places, size, lanes, row,
    first_place, first_lane, second_place, second_lane,  # strides
    FIRST_PLANES: tl.constexpr, SECOND: tl.constexpr, SECOND_PLANES: tl.constexpr,
    RELU: tl.constexpr, SIGN: tl.constexpr,
    PLACES: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, BITS)
    lane = (word * BITS)[:, None] + bit[None, :]  # [WORDS, BITS]
    channel = tl.where(place < places, place // size, 0)
    y = _term(
        first_ptr, first_scale_ptr, first_shift_ptr, channel, place, first_place, first_lane,
        word, lane, places, lanes, FIRST_PLANES,
    )  # fmt: skip
    if SECOND:
        y += _term(
            second_ptr, second_scale_ptr, second_shift_ptr, channel, place, second_place,
            second_lane, word, lane, places, lanes, SECOND_PLANES,
        )  # fmt: skip
    if SIGN:
        bits = ((y >= 0) & (lane < lanes)[None, :, :]).to(tl.int32) << bit[None, None, :]
        out = place.to(tl.int64)[:, None] * row + word[None, :]
        inside = (place < places)[:, None] & (word < row)[None, :]
        tl.store(out_ptr + out, tl.sum(bits, 2), mask=inside)
    else:
        if RELU:
            y = tl.where(y < 0, 0, y)  # NaN stays
        out = place.to(tl.int64)[:, None, None] * lanes + lane[None, :, :]
        inside = (place < places)[:, None, None] & (lane < lanes)[None, :, :]
        tl.store(out_ptr + out, y, mask=inside)


def _flat(source: Tensor) -> tuple[Tensor, int, int]:
    """(tensor to read, stride of a place, stride of a lane); copied where places do not flatten."""
    if source.dtype == torch.int64:
        return as_words32(source), 2 * source.shape[3], 1
    try:
        flat = source.view(-1, source.shape[3])
    except RuntimeError:  # no such strides
        flat = source.contiguous().view(-1, source.shape[3])
    return flat, flat.stride(0), flat.stride(1)


def _tile(lanes: int, sign: bool) -> tuple[int, int, int]:
    """(places, words, bits) of a program."""
    bits = 32 if sign else power_of_two(lanes, 1, 32)
    words = power_of_two(ceil_div(lanes, bits), 1, MOST_WORDS)
    return TILE // (words * bits), words, bits


def run(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str,
    lanes: int | None = None,
) -> Tensor:
    """As the contract, which the caller has checked; computed in the dtype of the vectors."""
    sources, scales, shifts = list(sources), list(scales), list(shifts)
    lanes = lanes_of(sources) if lanes is None else lanes
    while len(sources) > 2:
        joined = _launch(sources[:2], scales[:2], shifts[:2], "none", lanes)
        one = torch.ones_like(scales[0])
        sources, scales = [joined, *sources[2:]], [one, *scales[2:]]
        shifts = [torch.zeros_like(one), *shifts[2:]]
    return _launch(sources, scales, shifts, act, lanes)


def _launch(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str,
    lanes: int,
) -> Tensor:
    C, H, W = sources[0].shape[:3]
    sign = act == "sign"
    words = word_count(lanes)
    shape = (C, H, W, words if sign else lanes)
    kind = torch.int64 if sign else scales[0].dtype
    out = torch.empty(shape, dtype=kind, device=sources[0].device)
    if not out.numel():
        return out
    first, second = _flat(sources[0]), _flat(sources[-1])
    places, across, bits = _tile(lanes, sign)
    row = 2 * words
    grid = (ceil_div(C * H * W, places), ceil_div(row if sign else ceil_div(lanes, bits), across))
    with guard(out):
        _combine_kernel[grid](
            first[0],
            second[0],
            scales[0].contiguous(),
            shifts[0].contiguous(),
            scales[-1].contiguous(),
            shifts[-1].contiguous(),
            out.view(torch.int32) if sign else out,
            C * H * W,
            H * W,
            lanes,
            row,
            *first[1:],
            *second[1:],
            FIRST_PLANES=sources[0].dtype == torch.int64,
            SECOND=len(sources) > 1,
            SECOND_PLANES=sources[-1].dtype == torch.int64,
            RELU=act == "relu",
            SIGN=sign,
            PLACES=places,
            WORDS=across,
            BITS=bits,
            enable_fp_fusion=False,
        )
    return out


def compile_cases() -> list[CompileCase]:
    """Every kind of source at batch 512 and 1, each activation."""
    cases = []
    for lanes, kind, first, second, act in (
        (512, "fp64", "fp64", None, "sign"),
        (512, "fp64", "i32", "planes", "sign"),
        (512, "fp32", "i32", None, "none"),
        (512, "fp32", "fp32", "fp32", "relu"),
        (512, "fp64", "planes", "fp64", "none"),
        (1, "fp64", "i32", "planes", "sign"),
        (1, "fp32", "fp32", "fp32", "relu"),
    ):
        sign = act == "sign"
        places, words, bits = _tile(lanes, sign)
        pointers = {
            "first_ptr": "*i32" if first == "planes" else f"*{first}",
            "second_ptr": "*i32" if second in (None, "planes") else f"*{second}",
            **dict.fromkeys(
                ("first_scale_ptr", "first_shift_ptr", "second_scale_ptr", "second_shift_ptr"),
                f"*{kind}",
            ),
            "out_ptr": "*i32" if sign else f"*{kind}",
        }
        sizes = ("places", "size", "lanes", "row")
        strides = ("first_place", "first_lane", "second_place", "second_lane")
        cases.append(
            CompileCase(
                _combine_kernel,
                f"{act} of {first}{f' and {second}' if second else ''} in {kind}, batch {lanes}",
                {**pointers, **dict.fromkeys((*sizes, *strides), "i32")},
                {
                    "FIRST_PLANES": first == "planes",
                    "SECOND": second is not None,
                    "SECOND_PLANES": second == "planes",
                    "RELU": act == "relu",
                    "SIGN": sign,
                    "PLACES": places,
                    "WORDS": words,
                    "BITS": bits,
                },
                multiples=("lanes", "row", "first_place", "second_place") if lanes > 1 else (),
                fp_fusion=False,
            )
        )
    return cases
