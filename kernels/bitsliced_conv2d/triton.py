"""Bit-sliced convolution on the GPU: vertical counters in registers, one activation tile in L1.

A plane is seen as words of 32 lanes. For one output channel and a tile of pixels x words, the kept
taps are added bit by bit: carry-save full adders (`a ^ b ^ c` and the majority) take 16 or 32 words
a turn into counter planes ones, twos, fours, eights (and sixteens); the last carry ripples through
the higher planes. The count is never unpacked: comparing it with an integer is one three-input
operation per plane.

    A = number of set bits among the positive taps + of cleared bits among the negative taps
    S = 2 A - T + border,   T = number of taps (with fillers), border = sum of the values of taps
                            that lie outside the image, where the padded plane holds 0 (-1)

Positive and negative taps are two lists, each filled to whole turns with taps that point to an
extra plane of zeros, so that the complement of a negative tap fuses with its adder. A program walks
several output channels over one tile; channels are sorted by their number of taps.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.bitsliced_conv2d import triton_int8
from mpt_fast.kernels.geometry import Geometry, conv2d_output_size
from mpt_fast.kernels.gpu import (
    RegisterLimit,
    ceil_div,
    guard,
    power_of_two,
    register_limit,
    tl,
    triton,
)
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.pack_bits.triton import as_words32
from mpt_fast.kernels.taps import Taps

ROUTES = ("adders", "int8")
# Pins the route, as tests and benchmarks do; None leaves it to the measured cost table.
ROUTE: str | None = None
# Taps of a turn. Long lists take more, so that the ripple stays below 2.5 operations a tap.
GROUP, LONG_GROUP, LONG_LIST = 16, 32, 512
# Words (of 32 lanes) of one tile: 4 words a thread keep loads at 128 bits.
TILE_WORDS = 512
SUM_TILE_WORDS = 128
WORDS_PER_THREAD = 4
# Walking several output channels re-reads the tile from L1; small maps walk fewer, so that there
# are about four programs for each multiprocessor of a large device.
OUTPUTS_PER_PROGRAM = 8
PROGRAMS = 528
# Without a limit ptxas of Triton 3.9 aims at 96 registers and spills two. With one it loads ahead
# as many planes as fit, near 128 a few too many: 124 on sm_90, where four tiles then share a
# multiprocessor, and 144 elsewhere spill nothing. The sums need 134.
SIGN_REGISTERS = RegisterLimit(144, {9: 124})
SUM_REGISTERS = RegisterLimit(168)
# Counters are built for these numbers of planes beyond the four of a group.
LEAST_HIGH, MOST_HIGH = 4, 16


@triton.jit
def _add(a, b, c):
    """(sum, carry) of three planes."""
    half = a ^ b
    return half ^ c, (a & b) | (c & half)


@triton.jit
def _word(base, taps_ptr, tap, ROW: tl.constexpr, NEGATIVE: tl.constexpr):
    """The plane of one tap for the tile; complemented for a negative tap."""
    # Offsets are stored in rows of ROW words; the product tells the compiler their alignment.
    word = tl.load(base + tl.load(taps_ptr + tap).to(tl.int64) * ROW)
    if NEGATIVE:
        word = word ^ -1
    return word


@triton.jit
def _add_two(base, taps_ptr, tap, ones, ROW: tl.constexpr, NEGATIVE: tl.constexpr):
    return _add(
        ones,
        _word(base, taps_ptr, tap, ROW, NEGATIVE),
        _word(base, taps_ptr, tap + 1, ROW, NEGATIVE),
    )


@triton.jit
def _add_four(base, taps_ptr, tap, ones, twos, ROW: tl.constexpr, NEGATIVE: tl.constexpr):
    ones, a = _add_two(base, taps_ptr, tap, ones, ROW, NEGATIVE)
    ones, b = _add_two(base, taps_ptr, tap + 2, ones, ROW, NEGATIVE)
    twos, carry = _add(twos, a, b)
    return ones, twos, carry


@triton.jit
def _add_eight(base, taps_ptr, tap, ones, twos, fours, ROW: tl.constexpr, NEGATIVE: tl.constexpr):
    ones, twos, a = _add_four(base, taps_ptr, tap, ones, twos, ROW, NEGATIVE)
    ones, twos, b = _add_four(base, taps_ptr, tap + 4, ones, twos, ROW, NEGATIVE)
    fours, carry = _add(fours, a, b)
    return ones, twos, fours, carry


@triton.jit
def _add_sixteen(
    base, taps_ptr, tap, ones, twos, fours, eights, ROW: tl.constexpr, NEGATIVE: tl.constexpr
):
    ones, twos, fours, a = _add_eight(base, taps_ptr, tap, ones, twos, fours, ROW, NEGATIVE)
    ones, twos, fours, b = _add_eight(base, taps_ptr, tap + 8, ones, twos, fours, ROW, NEGATIVE)
    eights, carry = _add(eights, a, b)
    return ones, twos, fours, eights, carry


@triton.jit
def _count(
    base, taps_ptr, tap, stop, ones, twos, fours, eights, high,
    ROW: tl.constexpr, HIGH: tl.constexpr, GROUP: tl.constexpr, NEGATIVE: tl.constexpr,
):  # fmt: skip
    """Adds the taps tap..stop, a multiple of GROUP, to the counter."""
    while tap < stop:
        ones, twos, fours, eights, carry = _add_sixteen(
            base, taps_ptr, tap, ones, twos, fours, eights, ROW, NEGATIVE
        )
        ripple = ()
        if GROUP == 32:
            ones, twos, fours, eights, second = _add_sixteen(
                base, taps_ptr, tap + 16, ones, twos, fours, eights, ROW, NEGATIVE
            )
            sixteens, carry = _add(high[0], carry, second)
            ripple = (sixteens,)
        for p in tl.static_range(GROUP // 32, HIGH):
            ripple = ripple + (high[p] ^ carry,)  # noqa: RUF005 - Triton has no starred tuple
            carry = high[p] & carry
        high = ripple
        tap += GROUP
    return ones, twos, fours, eights, high


@triton.jit
def _at_least(ones, twos, fours, eights, high, limit, HIGH: tl.constexpr):
    """Planes of (count >= limit); limit [PIXELS, 1] int32, any value."""
    # The carry out of count - limit: a majority per plane, from the lowest.
    result = (ones ^ ones) ^ -1
    low = (ones, twos, fours, eights)
    for p in tl.static_range(4 + HIGH):
        plane = low[p] if p < 4 else high[p - 4]
        clear = ((limit >> p) & 1) - 1  # -1 where the limit's bit is 0
        result = (plane & result) | (clear & (plane | result))
    result = tl.where(limit <= 0, -1, result)
    return tl.where(limit > (1 << (4 + HIGH)) - 1, 0, result)


@triton.jit
def _limit(threshold_ptr, channel, total, border, FLIPPED):
    """The least count A with S >= t (for a flipped channel S >= t + 1), [PIXELS, 1]."""
    # Sums are far inside +-2**26; beyond, every threshold decides alike.
    t = tl.load(threshold_ptr + channel)
    t = tl.minimum(tl.maximum(t, -(1 << 26)), 1 << 26)
    t = tl.where(FLIPPED, t + 1, t)
    return (t + total - border + 1) >> 1


@triton.jit
def _bitsliced_conv2d_kernel(
    planes_ptr,  # int32 [C + 1, Hp, Wp, ROW], padded; the last channel is 0
    order_ptr,  # int32 [O], channels by their number of taps
    starts_ptr,  # int32 [O, 3]: positive taps, negative taps, end
    taps_ptr,  # int32 offsets in rows
    totals_ptr,  # int32 [O]
    border_ptr,  # int32 [O, Ho * Wo]
    threshold_ptr, flip_ptr, residual_ptr, residual_threshold_ptr,
    out_ptr,  # SIGN: int32 [O, Ho * Wo, ROW]; else int32 [O, Ho * Wo, ROW * 32]
    O, groups,
    Ho: tl.constexpr, Wo: tl.constexpr, Hp: tl.constexpr, Wp: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, ROW: tl.constexpr, GROUP_ROWS: tl.constexpr,
    SIGN: tl.constexpr, RESIDUAL: tl.constexpr, BORDER: tl.constexpr, HIGH: tl.constexpr,
    GROUP: tl.constexpr, PIXELS: tl.constexpr, WORDS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    word_tiles: tl.constexpr = ROW // WORDS
    tile = tl.program_id(0)
    pixel = (tile // word_tiles) * PIXELS + tl.arange(0, PIXELS)  # [PIXELS]
    word = (tile % word_tiles) * WORDS + tl.arange(0, WORDS)  # [WORDS]
    inside = (pixel < Ho * Wo)[:, None]
    place = (pixel // Wo) * SH * Wp + (pixel % Wo) * SW
    place = tl.where(pixel < Ho * Wo, place, 0)
    position = tl.program_id(1) * OUTPUTS
    last = tl.minimum(position + OUTPUTS, O)
    while position < last:
        channel = tl.load(order_ptr + position)
        group = channel // (O // groups)
        base = planes_ptr + group.to(tl.int64) * (GROUP_ROWS * ROW)
        base = base + (place.to(tl.int64) * ROW)[:, None] + word[None, :]  # [PIXELS, WORDS]
        positive = tl.load(starts_ptr + channel * 3)
        negative = tl.load(starts_ptr + channel * 3 + 1)
        end = tl.load(starts_ptr + channel * 3 + 2)
        zero = tl.zeros([PIXELS, WORDS], tl.int32)
        high = ()
        for _ in tl.static_range(HIGH):
            high = high + (zero,)  # noqa: RUF005 - Triton has no starred tuple
        # No mask: tiles divide the rows, and pixels past the end read those of pixel 0.
        ones, twos, fours, eights, high = _count(
            base,
            taps_ptr,
            positive,
            negative,
            zero,
            zero,
            zero,
            zero,
            high,
            ROW,
            HIGH,
            GROUP,
            False,
        )
        ones, twos, fours, eights, high = _count(
            base,
            taps_ptr,
            negative,
            end,
            ones,
            twos,
            fours,
            eights,
            high,
            ROW,
            HIGH,
            GROUP,
            True,
        )
        total = tl.load(totals_ptr + channel)
        border = tl.zeros([PIXELS, 1], tl.int32)
        if BORDER:
            border = tl.load(
                border_ptr + channel.to(tl.int64) * (Ho * Wo) + pixel[:, None], mask=inside, other=0
            )
        row = (channel.to(tl.int64) * (Ho * Wo) + pixel)[:, None]
        if SIGN:
            flipped = tl.load(flip_ptr + channel) != 0
            limit = _limit(threshold_ptr, channel, total, border, flipped)
            bits = _at_least(ones, twos, fours, eights, high, limit, HIGH)
            if RESIDUAL:
                limit = _limit(residual_threshold_ptr, channel, total, border, flipped)
                other = _at_least(ones, twos, fours, eights, high, limit, HIGH)
                shortcut = tl.load(residual_ptr + row * ROW + word[None, :], mask=inside, other=0)
                bits = (shortcut & other) | ((shortcut ^ -1) & bits)
            bits = tl.where(flipped, bits ^ -1, bits)
            tl.store(out_ptr + row * ROW + word[None, :], bits, mask=inside)
        else:
            low = (ones, twos, fours, eights)
            lane = tl.arange(0, 32)
            count = tl.zeros([PIXELS, WORDS, 32], tl.int32)
            for p in tl.static_range(4 + HIGH):
                plane = low[p] if p < 4 else high[p - 4]
                count += ((plane[:, :, None] >> lane[None, None, :]) & 1) << p
            sums = 2 * count + (border - total)[:, :, None]
            place_of_word = out_ptr + (row * ROW + word[None, :]) * 32
            tl.store(place_of_word[:, :, None] + lane[None, None, :], sums, mask=inside[:, :, None])
        position += 1


@dataclass(frozen=True)
class Prepared:
    """A layer's tap lists, ready for launches on images of one size.

    order, starts, offsets, totals, border: the kernel's operands. most: taps of the fullest
    channel, fillers included. group: taps of a turn.
    """

    geometry: Geometry
    image: tuple[int, int]
    out: tuple[int, int]
    channels: int
    outputs: int
    order: Tensor
    starts: Tensor
    offsets: Tensor
    totals: Tensor
    border: Tensor
    most: int
    group: int


def group_of(most: int) -> int:
    """Taps of a turn for a layer whose fullest channel keeps `most` taps."""
    return LONG_GROUP if most >= LONG_LIST else GROUP


def outside_sums(taps: Taps, image: tuple[int, int], geometry: Geometry) -> Tensor:
    """int32 [O, Ho * Wo]: the sum of the values of the taps that lie outside the image."""
    dense = taps.to_dense(torch.float32).sum(1, keepdim=True)  # exact: integers below 2**24
    ones = torch.ones((1, 1, *image), dtype=torch.float32, device=dense.device)
    within = F.conv2d(ones, dense, None, geometry.stride, geometry.padding, geometry.dilation)
    outside = dense.sum((1, 2, 3)).view(-1, 1, 1) - within[0]
    return outside.round().to(torch.int32).flatten(1).contiguous()


def prepare(taps: Taps, image: tuple[int, int], geometry: Geometry) -> Prepared:
    """Validates and sorts the taps; waits for the device. Do it once per layer, not per call."""
    taps.validate()
    outputs, per_group, kh, kw = taps.shape
    channels = per_group * geometry.groups
    H, W = image
    (ph, pw), (dh, dw) = geometry.padding, geometry.dilation
    Hp, Wp = H + 2 * ph, W + 2 * pw
    device = taps.index.device
    counts = (taps.indptr[1:] - taps.indptr[:-1]).long()
    owner = torch.repeat_interleave(torch.arange(outputs, device=device), counts)
    index = taps.index.long()
    c, r, s = index // (kh * kw), index // kw % kh, index % kw
    offset = (c * Hp + r * dh) * Wp + s * dw
    # Lists in the order (channel, positive before negative), each filled to whole groups.
    which = 2 * owner + (taps.value < 0)
    sizes = torch.bincount(which, minlength=2 * outputs)
    group_taps = group_of(int(counts.max()))
    filled = (sizes + group_taps - 1) // group_taps * group_taps
    starts = torch.zeros(2 * outputs + 1, dtype=torch.int64, device=device)
    starts[1:] = filled.cumsum(0)
    group = torch.arange(outputs, device=device) // (outputs // geometry.groups)
    zero_plane = (channels - group * per_group) * Hp * Wp  # relative to the group's first channel
    offsets = torch.repeat_interleave(zero_plane.repeat_interleave(2), filled)
    rank = torch.argsort(which, stable=True)
    first = (sizes.cumsum(0) - sizes)[which[rank]]
    within = torch.arange(index.numel(), device=device) - first
    offsets[starts[which[rank]] + within] = offset[rank]
    per_channel = filled.view(-1, 2).sum(1)
    # A filler of the negative list counts as agreement; one of the positive list never does.
    fillers = (filled - sizes)[1::2]
    totals = counts + 2 * fillers
    return Prepared(
        geometry=geometry,
        image=image,
        out=conv2d_output_size(image, (kh, kw), geometry),
        channels=channels,
        outputs=outputs,
        order=torch.argsort(per_channel, descending=True, stable=True).to(torch.int32),
        starts=torch.stack([starts[:-1:2], starts[1::2], starts[2::2]], 1).to(torch.int32),
        offsets=offsets.to(torch.int32),
        totals=totals.to(torch.int32),
        border=outside_sums(taps, image, geometry),
        most=int(per_channel.max()),
        group=group_taps,
    )


def _tile(pixels: int, row: int, words: int) -> tuple[int, int]:
    """(pixels, words) of a tile of at most `words`: as much of a row as divides it, then pixels.

    Rows are a multiple of 4 words, and loads 128 bits wide, where the batch is one of 128.
    """
    if interpreted():
        words = 4096
    across = min(row & -row, words)
    return power_of_two(pixels, 1, max(1, words // across)), across


@dataclass(frozen=True)
class Launch:
    """Configuration of one launch: tile of pixels x words, output channels a program walks."""

    pixels: int
    across: int
    outputs: int
    num_warps: int
    registers: RegisterLimit

    @classmethod
    def of(cls, size: int, row: int, outputs: int, sign: bool) -> "Launch":
        """For `size` output pixels of `row` words and `outputs` channels."""
        pixels, across = _tile(size, row, TILE_WORDS if sign else SUM_TILE_WORDS)
        tiles = ceil_div(size, pixels) * (row // across)
        walked = min(OUTPUTS_PER_PROGRAM, outputs)
        while walked > 1 and tiles * ceil_div(outputs, walked) < PROGRAMS and not interpreted():
            walked = ceil_div(walked, 2)
        # The sums of a word are 32 registers: one word a thread there.
        per_thread = WORDS_PER_THREAD if sign else 1
        warps = min(4, power_of_two(pixels * across // (32 * per_thread)))
        return cls(pixels, across, walked, warps, SIGN_REGISTERS if sign else SUM_REGISTERS)

    @property
    def words_per_thread(self) -> int:
        return self.pixels * self.across // (32 * self.num_warps)


def high_planes(most: int) -> int:
    """Counter planes beyond four that hold counts up to `most`."""
    needed = most.bit_length() - 4
    if needed <= MOST_HIGH:
        return max(LEAST_HIGH, needed)
    raise ValueError(f"a channel with {most} taps needs more than {4 + MOST_HIGH} counter planes")


def run(
    planes: Tensor,
    layer: Prepared,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
) -> Tensor:
    """Sums int32 [O, Ho, Wo, words * 64], or, with `threshold`, planes int64 [O, Ho, Wo, words].

    planes: int64 [C, H, W, words]; operands as in the contract (checked by the caller).
    """
    Ho, Wo = layer.out
    words = planes.shape[3]
    sign = threshold is not None
    shape = (layer.outputs, Ho, Wo, words if sign else words * 64)
    out = torch.empty(shape, dtype=torch.int64 if sign else torch.int32, device=planes.device)
    if not out.numel():
        return out
    ph, pw = layer.geometry.padding
    padded = F.pad(planes, (0, 0, pw, pw, ph, ph, 0, 1))
    Hp, Wp = padded.shape[1:3]
    row = 2 * words
    launch = Launch.of(Ho * Wo, row, layer.outputs, sign)
    grid = (
        ceil_div(Ho * Wo, launch.pixels) * (row // launch.across),
        ceil_div(layer.outputs, launch.outputs),
    )
    unused = layer.totals
    with guard(planes):
        _bitsliced_conv2d_kernel[grid](
            planes_ptr=as_words32(padded),
            order_ptr=layer.order,
            starts_ptr=layer.starts,
            taps_ptr=layer.offsets,
            totals_ptr=layer.totals,
            border_ptr=layer.border,
            threshold_ptr=unused if threshold is None else threshold.contiguous(),
            flip_ptr=unused if flip is None else flip.to(torch.int8),
            residual_ptr=unused if residual is None else as_words32(residual),
            residual_threshold_ptr=unused
            if residual_threshold is None
            else residual_threshold.contiguous(),
            out_ptr=out.view(torch.int32),
            O=layer.outputs,
            groups=layer.geometry.groups,
            Ho=Ho,
            Wo=Wo,
            Hp=Hp,
            Wp=Wp,
            SH=layer.geometry.stride[0],
            SW=layer.geometry.stride[1],
            ROW=row,
            GROUP_ROWS=layer.channels // layer.geometry.groups * Hp * Wp,
            SIGN=sign,
            RESIDUAL=residual is not None,
            BORDER=layer.geometry.padding != (0, 0),
            HIGH=high_planes(layer.most),
            GROUP=layer.group,
            PIXELS=launch.pixels,
            WORDS=launch.across,
            OUTPUTS=launch.outputs,
            num_warps=launch.num_warps,
            **register_limit(launch.registers, planes),
        )
    return out


def convolve(
    case: costs.Case,
    planes: Tensor,
    taps: Taps,
    geometry: Geometry,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
) -> Tensor:
    """`prepare` and `run` of the route that `ROUTE` or, for `case`, the cost table names."""
    image = (planes.shape[1], planes.shape[2])
    decided = (threshold, flip, residual, residual_threshold)
    if (ROUTE or costs.route(case, ROUTES)) == "int8":
        return triton_int8.run(planes, triton_int8.prepare(taps, image, geometry), *decided)
    return run(planes, prepare(taps, image, geometry), *decided)


def layer_cases(name: str, size: int, outputs: int, most: int, padding: int) -> list[CompileCase]:
    """The kernel's forms at batch 512 (16 words) on a square map of that size, stride 1."""
    int32s = ("planes_ptr", "order_ptr", "starts_ptr", "taps_ptr", "totals_ptr", "border_ptr",
              "threshold_ptr", "residual_ptr", "residual_threshold_ptr", "out_ptr")  # fmt: skip
    cases = []
    row = 16
    padded = size + 2 * padding
    for sign, residual in ((True, False), (True, True), (False, False)):
        launch = Launch.of(size * size, row, outputs, sign)
        signature: dict[str, Any] = dict.fromkeys(int32s, "*i32")
        signature |= {"flip_ptr": "*i8", "O": "i32", "groups": "i32"}
        form = "residual" if residual else "sign" if sign else "sums"
        # A linear layer has 16 words in all there, half of one for each thread.
        full = sign and launch.words_per_thread >= WORDS_PER_THREAD
        cases.append(
            CompileCase(
                _bitsliced_conv2d_kernel,
                f"{form} {name} batch 512, up to {most} taps",
                signature,
                {
                    "Ho": size,
                    "Wo": size,
                    "Hp": padded,
                    "Wp": padded,
                    "SH": 1,
                    "SW": 1,
                    "ROW": row,
                    "GROUP_ROWS": outputs * padded**2,
                    "SIGN": sign,
                    "RESIDUAL": residual,
                    "BORDER": padding > 0,
                    "HIGH": high_planes(most),
                    "GROUP": group_of(most),
                    "PIXELS": launch.pixels,
                    "WORDS": launch.across,
                    "OUTPUTS": launch.outputs,
                },
                launch.num_warps,
                registers=launch.registers,
                checks={"bitsliced": group_of(most) * launch.words_per_thread} if full else {},
            )
        )
    return cases


def compile_cases() -> list[CompileCase]:
    """The kernel on the layers of a ResNet, density up to 0.5, and the int8 route's."""
    sizes = ((32, 64, 350), (16, 128, 650), (8, 256, 1300), (4, 512, 2500))
    cases = [
        case
        for size, outputs, most in sizes
        for case in layer_cases(f"{size}x{size}", size, outputs, most, 1)
    ]
    return cases + triton_int8.compile_cases()
