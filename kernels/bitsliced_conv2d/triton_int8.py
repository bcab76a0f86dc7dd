"""The int8 route of `bitsliced_conv2d` on the GPU: products of +1, 0 and -1 on tensor cores.

It takes and gives the same planes and sums as the adders of `triton.py`, so a network may change
route from layer to layer, and its cost does not depend on the density: meant for layers that keep
many of their weights. Two launches:

    unpack   planes [C, H, W, lanes] -> x int8 [lanes, H + 2 padding, W + 2 padding, groups, CP],
             +1 and -1 inside the image and 0 outside, so that no border class is needed
    product  S[o, pixel, lane] = sum over (r, s, c) of code[o, r, s, c] * x[lane, y', x', c],
             exact in int32; the sign form compares with the thresholds and packs 32 lanes a word

CP is the number of channels of a group, filled with zeros to whole steps of the product; outputs
are filled to whole tiles, and pixels past the last repeat it. The loads therefore carry no masks
and are asynchronous copies of 16 bytes. x takes a byte for each input entry, eight times the
planes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.geometry import Geometry, conv2d_output_size
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.pack_bits.triton import as_words32
from mpt_fast.kernels.taps import Taps

# Channels and words (of 32 lanes) that one program unpacks: reads of 32 bytes, writes of 32.
UNPACK_CHANNELS, UNPACK_WORDS = 32, 512 if interpreted() else 8
# Columns of a product are 128 lanes of one pixel, or 64 of each of two.
COLUMNS = 128
LEAST_DEPTH, MOST_DEPTH = 32, 128


@triton.jit
def _bitsliced_conv2d_unpack_kernel(
    planes_ptr,  # int32 [G * C, H, W, row]
    x_ptr,  # int8 [row * 32, Hp, Wp, G, CP]
    row,
    C: tl.constexpr, CP: tl.constexpr, G: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WORDS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """CHANNELS channels of a group at WORDS words of lanes, counted over the padded image."""
    Hp: tl.constexpr = H + 2 * PH
    Wp: tl.constexpr = W + 2 * PW
    blocks: tl.constexpr = CP // CHANNELS
    group = tl.program_id(1) // blocks
    c = (tl.program_id(1) % blocks) * CHANNELS + tl.arange(0, CHANNELS)  # [CHANNELS]
    index = tl.program_id(0) * WORDS + tl.arange(0, WORDS)  # [WORDS]
    place = index // row
    word = index % row
    y = place // Wp - PH
    x = place % Wp - PW
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    filled = (c < C)[:, None] & inside[None, :]
    source = (group * C + c).to(tl.int64)[:, None] * (H * W) + (y * W + x)[None, :]
    words = tl.load(planes_ptr + source * row + word[None, :], mask=filled, other=0)
    lanes = tl.arange(0, 32)
    bit = (words[:, :, None] >> lanes[None, None, :]) & 1  # [CHANNELS, WORDS, 32]
    value = tl.where(filled[:, :, None], 2 * bit - 1, 0).to(tl.int8)
    lane = (word * 32).to(tl.int64)[:, None] + lanes[None, :]  # [WORDS, 32]
    target = lane * (Hp * Wp * G * CP) + ((place * G + group) * CP)[:, None]
    tl.store(
        x_ptr + target[None, :, :] + c[:, None, None],
        value,
        mask=((place < Hp * Wp)[None, :] & (c < CP)[:, None])[:, :, None],
    )


@triton.jit
def _bitsliced_conv2d_int8_kernel(
    x_ptr,  # int8 [lanes, Hp, Wp, G, CP]
    code_ptr,  # int8 [G, OP, R * S * CP]
    threshold_ptr, flip_ptr, residual_ptr, residual_threshold_ptr,
    out_ptr,  # SIGN: int32 [G * O, Ho * Wo, row]; else int32 [G * O, Ho * Wo, row * 32]
    row,
    CP: tl.constexpr, G: tl.constexpr, O: tl.constexpr, OP: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    Hp: tl.constexpr, Wp: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, SIGN: tl.constexpr, RESIDUAL: tl.constexpr,
    LANES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    blocks_o: tl.constexpr = OP // BLOCK_M
    pixels: tl.constexpr = BLOCK_N // LANES
    steps: tl.constexpr = CP // BLOCK_K
    # Neighbouring programs share the activations: outputs vary fastest, then pixels.
    program = tl.program_id(0)
    lane_tile = tl.program_id(1)
    group = tl.program_id(2)
    o = (program % blocks_o) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    first = (program // blocks_o) * pixels
    column = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    lane = lane_tile * LANES + column % LANES
    pixel = tl.minimum(first + column // LANES, Ho * Wo - 1)
    place = (pixel // Wo) * SH * Wp + (pixel % Wo) * SW
    x_base = x_ptr + lane.to(tl.int64) * (Hp * Wp * G * CP) + (place * G + group) * CP  # [BLOCK_N]
    code = code_ptr + (group * OP + o).to(tl.int64) * (R * S * CP)  # [BLOCK_M]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for step in range(0, R * S * steps):
        tap = step // steps
        offset = ((tap // S) * DH * Wp + (tap % S) * DW) * (G * CP) + (step % steps) * BLOCK_K
        a = tl.load(code[:, None] + (step * BLOCK_K + k)[None, :])  # [BLOCK_M, BLOCK_K]
        b = tl.load(x_base[None, :] + (offset + k)[:, None])  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    outputs = (group * O + o).to(tl.int64)  # [BLOCK_M]
    if SIGN:
        words: tl.constexpr = BLOCK_N // 32
        words_a_pixel: tl.constexpr = LANES // 32
        w = tl.arange(0, words)
        pixel = first + w // words_a_pixel
        live = (o < O)[:, None] & (pixel < Ho * Wo)[None, :]
        where = (outputs[:, None] * (Ho * Wo) + pixel[None, :]) * row
        where += (lane_tile * words_a_pixel + w % words_a_pixel)[None, :]  # [BLOCK_M, words]
        limit = tl.load(threshold_ptr + outputs, mask=o < O, other=0)[:, None, None]
        flip = tl.load(flip_ptr + outputs, mask=o < O, other=0)[:, None, None]
        bit = tl.arange(0, 32)[None, None, :]
        sums = tl.reshape(acc, [BLOCK_M, words, 32])
        if RESIDUAL:
            other = tl.load(residual_threshold_ptr + outputs, mask=o < O, other=0)[:, None, None]
            shortcut = tl.load(residual_ptr + where, mask=live, other=0)[:, :, None]
            limit = tl.where(((shortcut >> bit) & 1) > 0, other, limit)
        decision = tl.where(flip > 0, (sums <= limit).to(tl.int32), (sums >= limit).to(tl.int32))
        tl.store(out_ptr + where, tl.sum(decision << bit, 2), mask=live)
    else:
        pixel = first + column // LANES
        live = (o < O)[:, None] & (pixel < Ho * Wo)[None, :]
        where = (outputs[:, None] * (Ho * Wo) + pixel[None, :]) * row * 32 + lane[None, :]
        tl.store(out_ptr + where, acc, mask=live)


@dataclass(frozen=True)
class Launch:
    """Configuration of one product: rows (outputs) x columns (lanes of pixels) x depth."""

    rows: int
    lanes: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, outputs: int, filled: int, lanes: int) -> "Launch":
        """For that many outputs and filled channels of a group, and lanes (a multiple of 64)."""
        depth = min(MOST_DEPTH, filled & -filled)
        columns = 1024 if interpreted() else COLUMNS  # the interpreter's cost is per operation
        across = min(columns, lanes & -lanes)
        rows = 64 if outputs <= 64 else 128
        if interpreted():
            rows = 16
        # Three tiles in flight: 24 to 96 KiB.
        return cls(rows, across, columns, depth, 4 if rows <= 64 else 8, 3)


@dataclass(frozen=True)
class Prepared:
    """A layer's weight, ready for launches on images of one size.

    code: int8 [groups, outputs filled to tiles, kh * kw * filled channels].
    """

    geometry: Geometry
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    channels: int
    filled: int
    outputs: int
    code: Tensor


def filled_channels(channels: int) -> int:
    """`channels` of a group and zeros to whole steps of the product."""
    return ceil_div(channels, LEAST_DEPTH) * LEAST_DEPTH


def prepare(taps: Taps, image: tuple[int, int], geometry: Geometry) -> Prepared:
    """Validates the taps and lays them out; waits for the device. Once per layer, not per call."""
    outputs, channels, kh, kw = taps.shape
    dense = taps.to_dense(torch.int8)  # validates
    groups = geometry.groups
    filled = filled_channels(channels)
    per_group = outputs // groups
    rows = Launch.of(per_group, filled, 64).rows
    code = dense.new_zeros((groups, ceil_div(per_group, rows) * rows, kh, kw, filled))
    code[:, :per_group, ..., :channels] = dense.view(groups, per_group, channels, kh, kw).permute(
        0, 1, 3, 4, 2
    )
    return Prepared(
        geometry=geometry,
        image=image,
        out=conv2d_output_size(image, (kh, kw), geometry),
        kernel=(kh, kw),
        channels=channels,
        filled=filled,
        outputs=per_group,
        code=code,
    )


def _unpack_constants(layer: Prepared) -> dict[str, Any]:
    (ph, pw), (H, W) = layer.geometry.padding, layer.image
    return {
        "C": layer.channels,
        "CP": layer.filled,
        "G": layer.geometry.groups,
        "H": H,
        "W": W,
        "PH": ph,
        "PW": pw,
        "WORDS": UNPACK_WORDS,
        "CHANNELS": UNPACK_CHANNELS,
    }


def _product_constants(layer: Prepared, launch: Launch) -> dict[str, Any]:
    (sh, sw), (ph, pw), (dh, dw), groups = layer.geometry
    return {
        "CP": layer.filled,
        "G": groups,
        "O": layer.outputs,
        "OP": layer.code.shape[1],
        "R": layer.kernel[0],
        "S": layer.kernel[1],
        "Ho": layer.out[0],
        "Wo": layer.out[1],
        "Hp": layer.image[0] + 2 * ph,
        "Wp": layer.image[1] + 2 * pw,
        "SH": sh,
        "SW": sw,
        "DH": dh,
        "DW": dw,
        "LANES": launch.lanes,
        "BLOCK_M": launch.rows,
        "BLOCK_N": launch.columns,
        "BLOCK_K": launch.depth,
    }


def run(
    planes: Tensor,
    layer: Prepared,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
    residual: Tensor | None = None,
    residual_threshold: Tensor | None = None,
) -> Tensor:
    """As `triton.run`: sums int32 [O, Ho, Wo, words * 64], or planes int64 [O, Ho, Wo, words]."""
    Ho, Wo = layer.out
    groups = layer.geometry.groups
    outputs = layer.outputs * groups
    words = planes.shape[3]
    sign = threshold is not None
    shape = (outputs, Ho, Wo, words if sign else words * 64)
    out = torch.empty(shape, dtype=torch.int64 if sign else torch.int32, device=planes.device)
    if not out.numel():
        return out
    row = 2 * words
    (ph, pw), (H, W) = layer.geometry.padding, layer.image
    places = (H + 2 * ph) * (W + 2 * pw)
    x = torch.empty(
        (32 * row, places * groups * layer.filled), dtype=torch.int8, device=planes.device
    )
    launch = Launch.of(layer.outputs, layer.filled, 32 * row)
    tiles = layer.code.shape[1] // launch.rows * ceil_div(Ho * Wo * launch.lanes, launch.columns)
    unused = layer.code
    with guard(planes):
        _bitsliced_conv2d_unpack_kernel[
            (ceil_div(places * row, UNPACK_WORDS), groups * layer.filled // UNPACK_CHANNELS)
        ](as_words32(planes), x, row, **_unpack_constants(layer))
        _bitsliced_conv2d_int8_kernel[(tiles, 32 * row // launch.lanes, groups)](
            x_ptr=x,
            code_ptr=layer.code,
            threshold_ptr=unused if threshold is None else threshold.contiguous(),
            flip_ptr=unused if flip is None else flip.to(torch.int8),
            residual_ptr=unused if residual is None else as_words32(residual),
            residual_threshold_ptr=unused
            if residual_threshold is None
            else residual_threshold.contiguous(),
            out_ptr=out.view(torch.int32),
            row=row,
            SIGN=sign,
            RESIDUAL=residual is not None,
            **_product_constants(layer, launch),
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
    return out


def compile_cases() -> list[CompileCase]:
    """Both kernels at batch 512 on the layers of a ResNet, one for each size of tile."""
    cases = []
    for channels, size in ((64, 32), (512, 4)):
        code = torch.empty((1, channels, 3, 3, channels), dtype=torch.int8, device="meta")
        geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
        layer = Prepared(
            geometry, (size, size), (size, size), (3, 3), channels, channels, channels, code
        )
        launch = Launch.of(channels, channels, 512)
        cases.append(
            CompileCase(
                _bitsliced_conv2d_unpack_kernel,
                f"{channels}@{size}x{size}",
                {"planes_ptr": "*i32", "x_ptr": "*i8", "row": "i32"},
                _unpack_constants(layer),
                multiples=("row",),
            )
        )
        for sign, residual in ((True, False), (True, True), (False, False)):
            form = "residual" if residual else "sign" if sign else "sums"
            wide = "*i32" if sign else "*i8"  # an operand that is not used is the code
            cases.append(
                CompileCase(
                    _bitsliced_conv2d_int8_kernel,
                    f"{form} {channels}@{size}x{size} batch 512",
                    {
                        "x_ptr": "*i8",
                        "code_ptr": "*i8",
                        "threshold_ptr": wide,
                        "flip_ptr": "*i8",
                        "residual_ptr": "*i32" if residual else "*i8",
                        "residual_threshold_ptr": "*i32" if residual else "*i8",
                        "out_ptr": "*i32",
                        "row": "i32",
                    },
                    {
                        **_product_constants(layer, launch),
                        "SIGN": sign,
                        "RESIDUAL": residual,
                    },
                    launch.num_warps,
                    launch.num_stages,
                    multiples=("row",),
                    tensor_core=True,
                )
            )
    return cases
