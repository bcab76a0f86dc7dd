"""pool2d on the GPU: one program reads the windows of a tile of places x lanes."""

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.gpu import ceil_div, guard, power_of_two, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.pack_bits.triton import as_words32

# Entries of one tile, 4 a thread.
TILE = 65_536 if interpreted() else 512
MOST_LANES = 512

Pair = tuple[int, int]


@triton.jit
def _pool2d_kernel(
    x_ptr,  # [C, H, W, lanes]
    flip_ptr,  # int8 [C]
    out_ptr,  # [C, Ho, Wo, lanes]
    places, lanes,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, MODE: tl.constexpr, FLIP: tl.constexpr,
    INCLUDE_PAD: tl.constexpr, DIVISOR: tl.constexpr, LEAST: tl.constexpr,
    PLACES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = (place < places)[:, None] & (lane < lanes)[None, :]
    channel = place // (Ho * Wo)
    top = (place // Wo % Ho) * SH - PH
    left = (place % Wo) * SW - PW
    kind = x_ptr.dtype.element_ty
    best = tl.full([PLACES, LANES], LEAST, kind)
    inverted = tl.zeros([PLACES, 1], tl.int32)
    if FLIP:  # AND is the OR of the complements
        flip = tl.load(flip_ptr + channel, mask=place < places, other=0)
        inverted = -(flip.to(tl.int32))[:, None]
    for r in range(0, R):
        y = top + r
        for s in range(0, S):
            x = left + s
            here = inside & ((y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None]
            at = ((channel.to(tl.int64) * H + y) * W + x) * lanes
            value = tl.load(x_ptr + at[:, None] + lane[None, :], mask=here, other=LEAST)
            if MODE == "planes":
                best = best | tl.where(here, value ^ inverted, 0)
            elif MODE == "max":
                best = tl.where((value > best) | (value != value), value, best)
            else:
                best = best + value
    if MODE == "planes":
        best = best ^ inverted
    if MODE == "mean":
        bottom = tl.minimum(top + R, H + PH)
        right = tl.minimum(left + S, W + PW)
        size = (bottom - top) * (right - left)
        if not INCLUDE_PAD:
            size = tl.minimum(bottom, H) - tl.maximum(top, 0)
            size = size * (tl.minimum(right, W) - tl.maximum(left, 0))
        if DIVISOR > 0:
            size = tl.zeros([PLACES], tl.int32) + DIVISOR
        best = best / size.to(kind)[:, None]
    out = place.to(tl.int64)[:, None] * lanes + lane[None, :]
    tl.store(out_ptr + out, best, mask=inside)


def _tile(lanes: int) -> tuple[int, int]:
    """(places, lanes) of a program."""
    across = power_of_two(lanes, 1, MOST_LANES)
    return TILE // across, across


def run(
    x: Tensor,
    mode: str,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    size: tuple[int, int],
    flip: Tensor | None = None,
    count_include_pad: bool = True,
    divisor: int = 0,
) -> Tensor:
    """As the contract, which the caller has checked; `size` is (Ho, Wo)."""
    C, H, W, _ = x.shape
    planes = x.dtype == torch.int64
    out = torch.empty((C, *size, x.shape[3]), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    read = as_words32(x) if planes else x.contiguous()
    lanes = read.shape[3]
    count = C * size[0] * size[1]
    places, across = _tile(lanes)
    with guard(x):
        _pool2d_kernel[(ceil_div(count, places), ceil_div(lanes, across))](
            read,
            read if flip is None else flip.to(torch.int8),
            out.view(torch.int32) if planes else out,
            count,
            lanes,
            H=H,
            W=W,
            Ho=size[0],
            Wo=size[1],
            R=kernel[0],
            S=kernel[1],
            SH=stride[0],
            SW=stride[1],
            PH=padding[0],
            PW=padding[1],
            MODE="planes" if planes else mode,
            FLIP=flip is not None,
            INCLUDE_PAD=count_include_pad,
            DIVISOR=divisor,
            LEAST=_least(read.dtype, mode, planes),
            PLACES=places,
            LANES=across,
        )
    return out


def _least(dtype: torch.dtype, mode: str, planes: bool) -> float:
    """What every value wins against, or adds to."""
    if planes or mode == "mean":
        return 0
    return -(2**31) if dtype == torch.int32 else float("-inf")


def compile_cases() -> list[CompileCase]:
    """Every kind of value on the windows of a VGG and a ResNet, batch 512 and 1."""
    cases = []
    for mode, kind, lanes, window, size in (
        ("planes", "i32", 16, 2, 32),
        ("planes", "i32", 2, 2, 32),
        ("max", "i32", 512, 2, 16),
        ("max", "fp32", 512, 2, 32),
        ("max", "fp64", 512, 2, 32),
        ("mean", "fp32", 512, 4, 4),
        ("mean", "fp64", 1, 4, 4),
    ):
        places, across = _tile(lanes)
        flip = mode == "planes"
        constants = {
            "H": size,
            "W": size,
            "Ho": size // window,
            "Wo": size // window,
            "R": window,
            "S": window,
            "SH": window,
            "SW": window,
            "PH": 0,
            "PW": 0,
            "MODE": mode,
            "FLIP": flip,
            "INCLUDE_PAD": True,
            "DIVISOR": 0,
            "LEAST": _least(
                torch.int32 if kind == "i32" else torch.float32, mode, mode == "planes"
            ),
            "PLACES": places,
            "LANES": across,
        }
        cases.append(
            CompileCase(
                _pool2d_kernel,
                f"{mode} {window}x{window} of {kind}@{size}x{size}, {lanes} lanes",
                {
                    "x_ptr": f"*{kind}",
                    "flip_ptr": "*i8" if flip else f"*{kind}",
                    "out_ptr": f"*{kind}",
                    "places": "i32",
                    "lanes": "i32",
                },
                constants,
                multiples=("lanes",) if lanes % 16 == 0 else (),
            )
        )
    return cases
