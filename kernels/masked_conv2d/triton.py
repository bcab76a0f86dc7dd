"""Convolution with a ticket's weight on the GPU, as implicit matrix products in NHWC.

    fwd    y[n, p, q, o]  = g * sum over (r, s, c) of x[n, p', q', c] * code[o, r, s, c],
           p' = p * stride - padding + r * dilation, q' likewise; zero outside the image
    dgrad  dx[n, h, w, c] = g * sum over (r, s, o) of dy[n, p, q, o] * code[o, r, s, c]
    wgrad  dw[o, r, s, c] = sum over (n, p, q) of dy[n, p, q, o] * x[n, p', q', c], in splits of the
           pixels; a second kernel adds the splits in a fixed order and then applies the scores'
           factor W * sign(s) * power * abs(s)**(power - 1)

The weight is the left operand, converted in registers, and the gain multiplies the sums. It comes
in one of two forms: its int8 code {-1, 0, +1} (one byte per weight and tile), or W, s and the
threshold that forms the code in the load. Groups are an axis of the grid, each with its own
channels. Operands float32 (products in tf32 or ieee), float16 or bfloat16; sums are float32.

All tensors here are contiguous: x, y and their gradients [N, H, W, C], weights
[O, kh, kw, C/groups].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.geometry import Geometry, conv2d_output_size
from mpt_fast.kernels.gpu import (
    RegisterLimit,
    ceil_div,
    guard,
    power_of_two,
    register_limit,
    tl,
    triton,
    widened,
)
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.masked_weight.triton import score_gradient

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Tile:
    """Launch configuration of one product: rows (weights) x columns (pixels or inputs) x depth."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


# (Tile of at most 64 weight rows, tile of more): a warpgroup's product has at least 64 rows. Chosen
# by registers and shared memory at compile time; not measured on a device yet.
NARROW_TILES = (Tile(64, 128, 64, 4, 4), Tile(128, 128, 64, 8, 3))
WIDE_TILES = (Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 8, 3))
# W and s are 8 bytes a weight in shared memory, the code is one: half the depth keeps two blocks on
# a multiprocessor of sm_90 and one on sm_80, which deeper tiles do not fit at all. Addresses and
# ties take registers: four warps spill where the channels are few and unaligned.
SCORES_TILES = (Tile(64, 128, 32, 8, 3), Tile(128, 128, 32, 8, 3))
WIDE_SCORES_TILES = (Tile(64, 64, 32, 8, 3), WIDE_TILES[1])
# Left to itself ptxas aims at 128 registers for sm_80's tf32 products and spills six of them, and
# that of Triton 3.6 at 80 for the weight gradient without tensor cores and spills two; told that
# they may use more, the first need 111 to 154, the second 135 to 139.
WIDE_REGISTERS = RegisterLimit(majors={8: 168})
WGRAD_NARROW = Tile(64, 64, 64, 4, 3)
WGRAD_WIDE = Tile(64, 64, 32, 4, 3)
# The interpreter's cost is per operation, not per entry.
INTERPRETED_TILE = Tile(16, 1024, 64, 4, 1)
INTERPRETED_WGRAD = Tile(16, 32, 512, 4, 1)
# Programs that fill a large device about twice.
WGRAD_PROGRAMS = 264


@dataclass(frozen=True)
class Layer:
    """Sizes of one convolution as compile-time constants of its kernels."""

    H: int
    W: int
    Ho: int
    Wo: int
    C: int  # channels of a group
    O: int  # outputs of a group
    R: int
    S: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int
    G: int

    @classmethod
    def of(cls, x_size: tuple[int, int], weight: tuple[int, ...], geometry: Geometry) -> "Layer":
        """The layer of an image (H, W) and a weight of shape (O, C/groups, kh, kw)."""
        stride, padding, dilation, groups = geometry
        outputs, channels, R, S = weight
        Ho, Wo = conv2d_output_size(x_size, (R, S), geometry)
        return cls(*x_size, Ho, Wo, channels, outputs // groups, R, S, *stride, *padding, *dilation,
                   groups)  # fmt: skip

    @property
    def taps(self) -> int:
        return self.R * self.S

    def constants(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(frozen=True)
class FromScores:
    """A weight formed in the operand load: sign(W) where the scores pass the threshold.

    weight, scores: float32 [O, kh, kw, C/groups]; threshold, tie_limit: 0-dim, as in `Selection`.
    """

    weight: Tensor
    scores: Tensor
    threshold: Tensor
    tie_limit: Tensor


@triton.jit
def _load_weight(
    code_ptr, w_ptr, s_ptr, threshold, limit, offset, index, inside, FROM_SCORES: tl.constexpr
):
    """{-1, 0, +1} at `offset`; `index` is the flat index in [O, C, kh, kw] order, for ties."""
    if FROM_SCORES:
        score = tl.abs(tl.load(s_ptr + offset, mask=inside, other=0.0))
        weight = tl.load(w_ptr + offset, mask=inside, other=0.0)
        keep = (score > threshold) | ((score == threshold) & (index < limit))
        sign = (weight > 0).to(tl.int8) - (weight < 0).to(tl.int8)
        code = tl.where(keep & inside, sign, 0).to(tl.int8)
    else:
        code = tl.load(code_ptr + offset, mask=inside, other=0)
    return code


@triton.jit(do_not_specialize=["N"])
def _masked_conv2d_fwd_kernel(
    x_ptr, code_ptr, w_ptr, s_ptr, threshold_ptr, limit_ptr, gain_ptr, y_ptr, N,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, G: tl.constexpr,
    FROM_SCORES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share the pixels: outputs vary fastest.
    blocks_o: tl.constexpr = (O + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    group = tl.program_id(1)
    o = (program % blocks_o) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    pixel = (program // blocks_o).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    within = (pixel % (Ho * Wo)).to(tl.int32)
    image = pixel // (Ho * Wo)
    row = (within // Wo) * SH - PH
    column = (within % Wo) * SW - PW
    channel = tl.arange(0, BLOCK_K)
    x_base = x_ptr + ((image * H + row) * W + column) * (C * G) + group * C  # [BLOCK_N]
    threshold = 0.0
    limit = tl.zeros([1], tl.int64)
    if FROM_SCORES:
        threshold = tl.load(threshold_ptr)
        limit = tl.load(limit_ptr)
    o_inside = o < O
    o_global = (group * O + o).to(tl.int64)
    live = pixel < N.to(tl.int64) * (Ho * Wo)
    steps: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, R * S * steps):
        tap = step // steps
        c = (step % steps) * BLOCK_K + channel  # [BLOCK_K]
        r = (tap // S) * DH
        s = (tap % S) * DW
        a_offset = o_global[:, None] * (R * S * C) + (tap * C + c)[None, :]
        a_index = (o_global[:, None] * C + c[None, :]) * (R * S) + tap
        a_inside = o_inside[:, None] & (c < C)[None, :]
        a = _load_weight(
            code_ptr, w_ptr, s_ptr, threshold, limit, a_offset, a_index, a_inside, FROM_SCORES
        ).to(x_ptr.dtype.element_ty)  # [BLOCK_M, BLOCK_K]
        here = live & (row + r >= 0) & (row + r < H) & (column + s >= 0) & (column + s < W)
        b_ptrs = x_base[None, :] + ((r * W + s) * (C * G) + c)[:, None]
        b = tl.load(b_ptrs, mask=here[None, :] & (c < C)[:, None], other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    acc *= tl.load(gain_ptr).to(tl.float32)
    y_ptrs = y_ptr + pixel[None, :] * (O * G) + o_global[:, None]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=o_inside[:, None] & live[None, :])


@triton.jit(do_not_specialize=["N"])
def _masked_conv2d_bwd_x_kernel(
    dy_ptr, code_ptr, w_ptr, s_ptr, threshold_ptr, limit_ptr, gain_ptr, dx_ptr, N,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, G: tl.constexpr,
    FROM_SCORES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    blocks_c: tl.constexpr = (C + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    group = tl.program_id(1)
    c = (program % blocks_c) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    pixel = (program // blocks_c).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    within = (pixel % (H * W)).to(tl.int32)
    image = pixel // (H * W)
    row = within // W + PH
    column = within % W + PW
    output = tl.arange(0, BLOCK_K)
    threshold = 0.0
    limit = tl.zeros([1], tl.int64)
    if FROM_SCORES:
        threshold = tl.load(threshold_ptr)
        limit = tl.load(limit_ptr)
    c_inside = c < C
    live = pixel < N.to(tl.int64) * (H * W)
    steps: tl.constexpr = (O + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, R * S * steps):
        tap = step // steps
        o = (step % steps) * BLOCK_K + output  # [BLOCK_K]
        o_global = (group * O + o).to(tl.int64)
        up = row - (tap // S) * DH
        left = column - (tap % S) * DW
        a_offset = o_global[None, :] * (R * S * C) + (tap * C + c)[:, None]
        a_index = (o_global[None, :] * C + c[:, None]) * (R * S) + tap
        a_inside = c_inside[:, None] & (o < O)[None, :]
        a = _load_weight(
            code_ptr, w_ptr, s_ptr, threshold, limit, a_offset, a_index, a_inside, FROM_SCORES
        ).to(dy_ptr.dtype.element_ty)  # [BLOCK_M, BLOCK_K]
        here = live & (up >= 0) & (up < Ho * SH) & (left >= 0) & (left < Wo * SW)
        if SH > 1:
            here = here & (up % SH == 0)
        if SW > 1:
            here = here & (left % SW == 0)
        place = ((image * Ho + up // SH) * Wo + left // SW) * (O * G)
        b_ptrs = dy_ptr + place[None, :] + o_global[:, None]
        b = tl.load(b_ptrs, mask=here[None, :] & (o < O)[:, None], other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    acc *= tl.load(gain_ptr).to(tl.float32)
    dx_ptrs = dx_ptr + pixel[None, :] * (C * G) + (group * C + c)[:, None]
    tl.store(dx_ptrs, acc.to(dx_ptr.dtype.element_ty), mask=c_inside[:, None] & live[None, :])


@triton.jit(do_not_specialize=["N"])
def _masked_conv2d_bwd_weight_kernel(
    dy_ptr, x_ptr, parts_ptr, N,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, G: tl.constexpr,
    STEPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One split's share of dw for BLOCK_M outputs, one tap and BLOCK_N channels."""
    blocks_o: tl.constexpr = (O + BLOCK_M - 1) // BLOCK_M
    blocks_c: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    split = tl.program_id(1)
    group = tl.program_id(2)
    o = (program % blocks_o) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    tap = program // blocks_o // blocks_c
    c = (program // blocks_o % blocks_c) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    r = (tap // S) * DH - PH
    s = (tap % S) * DW - PW
    lane = tl.arange(0, BLOCK_K)
    total = N.to(tl.int64) * (Ho * Wo)
    first = split.to(tl.int64) * (STEPS * BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, STEPS):
        pixel = first + step * BLOCK_K + lane  # [BLOCK_K]
        live = pixel < total
        within = (pixel % (Ho * Wo)).to(tl.int32)
        row = (within // Wo) * SH + r
        column = (within % Wo) * SW + s
        a_ptrs = dy_ptr + pixel[None, :] * (O * G) + (group * O + o)[:, None]
        a = tl.load(a_ptrs, mask=(o < O)[:, None] & live[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        here = live & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        place = ((pixel // (Ho * Wo) * H + row) * W + column) * (C * G) + group * C
        b_ptrs = x_ptr + place[:, None] + c[None, :]
        b = tl.load(b_ptrs, mask=here[:, None] & (c < C)[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    o_global = (split.to(tl.int64) * G + group) * O + o
    ptrs = parts_ptr + o_global[:, None] * (R * S * C) + (tap * C + c)[None, :]
    tl.store(ptrs, acc, mask=(o < O)[:, None] & (c < C)[None, :])


def tile_for(rows: int, dtype: torch.dtype, from_scores: bool = False) -> Tile:
    """The tile of a forward or input-gradient product with that many weight rows."""
    if interpreted():
        return INTERPRETED_TILE
    if dtype == torch.float32:
        few, many = WIDE_SCORES_TILES if from_scores else WIDE_TILES
    else:
        few, many = SCORES_TILES if from_scores else NARROW_TILES
    return few if rows <= 64 else many


def wgrad_tile(dtype: torch.dtype) -> Tile:
    """The tile of a weight-gradient product."""
    if interpreted():
        return INTERPRETED_WGRAD
    return WGRAD_WIDE if dtype == torch.float32 else WGRAD_NARROW


def registers_for(precision: str) -> RegisterLimit:
    """The limit of a forward or input-gradient product in that precision."""
    return WIDE_REGISTERS if precision == "tf32" else RegisterLimit()


def wgrad_registers(dtype: torch.dtype, precision: str) -> RegisterLimit:
    """The limit of a weight-gradient product of that operand in that precision."""
    without_tensor_cores = (dtype, precision) == (torch.float32, "ieee")
    return WIDE_REGISTERS if without_tensor_cores else RegisterLimit()


def _blocks(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth}


def _launch_options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def _weight_arguments(weight: Tensor | FromScores, x: Tensor) -> dict[str, Any]:
    if isinstance(weight, FromScores):
        return {
            "code_ptr": x,
            "w_ptr": weight.weight,
            "s_ptr": weight.scores,
            "threshold_ptr": weight.threshold,
            "limit_ptr": weight.tie_limit,
            "FROM_SCORES": True,
        }
    unused = dict.fromkeys(("w_ptr", "s_ptr", "threshold_ptr", "limit_ptr"), x)
    return {"code_ptr": weight, **unused, "FROM_SCORES": False}


def masked_conv2d_fwd(
    x: Tensor,
    weight: Tensor | FromScores,
    gain: Tensor,
    layer: Layer,
    precision: str = "ieee",
) -> Tensor:
    """y [N, Ho, Wo, O] of x [N, H, W, C]; weight: int8 code [O, kh, kw, C/groups] or FromScores."""
    N = x.shape[0]
    operand = widened(x)
    y = torch.empty(
        (N, layer.Ho, layer.Wo, layer.O * layer.G), dtype=operand.dtype, device=x.device
    )
    if y.numel():
        tile = tile_for(layer.O, x.dtype, isinstance(weight, FromScores))
        pixels = N * layer.Ho * layer.Wo
        grid = (ceil_div(layer.O, tile.rows) * ceil_div(pixels, tile.columns), layer.G)
        with guard(x):
            _masked_conv2d_fwd_kernel[grid](
                x_ptr=operand,
                **_weight_arguments(weight, operand),
                gain_ptr=gain,
                y_ptr=y,
                N=N,
                **layer.constants(),
                PRECISION=precision,
                **_blocks(tile),
                **_launch_options(tile),
                **register_limit(registers_for(precision), x),
            )
    return y.to(x.dtype)


def masked_conv2d_bwd_x(
    dy: Tensor,
    weight: Tensor | FromScores,
    gain: Tensor,
    layer: Layer,
    precision: str = "ieee",
) -> Tensor:
    """dx [N, H, W, C] of dy [N, Ho, Wo, O]."""
    N = dy.shape[0]
    operand = widened(dy)
    dx = torch.empty(
        (N, layer.H, layer.W, layer.C * layer.G), dtype=operand.dtype, device=dy.device
    )
    if dx.numel():
        tile = tile_for(layer.C, dy.dtype, isinstance(weight, FromScores))
        pixels = N * layer.H * layer.W
        grid = (ceil_div(layer.C, tile.rows) * ceil_div(pixels, tile.columns), layer.G)
        with guard(dy):
            _masked_conv2d_bwd_x_kernel[grid](
                dy_ptr=operand,
                **_weight_arguments(weight, operand),
                gain_ptr=gain,
                dx_ptr=dx,
                N=N,
                **layer.constants(),
                PRECISION=precision,
                **_blocks(tile),
                **_launch_options(tile),
                **register_limit(registers_for(precision), dy),
            )
    return dx.to(dy.dtype)


def wgrad_splits(layer: Layer, pixels: int, tile: Tile) -> tuple[int, int]:
    """(splits, steps of each): enough programs to fill a device, deterministic in the sizes."""
    tiles = ceil_div(layer.O, tile.rows) * ceil_div(layer.C, tile.columns) * layer.taps * layer.G
    steps = ceil_div(pixels, tile.depth)
    # A power of two, so that few kernels are compiled as the batch varies.
    per_split = power_of_two(ceil_div(steps * tiles, WGRAD_PROGRAMS))
    return ceil_div(steps, per_split), per_split


def masked_conv2d_bwd_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    layer: Layer,
    power: float,
    needs: tuple[bool, bool],
    precision: str = "ieee",
) -> tuple[Tensor | None, Tensor | None]:
    """(dL/dw float32 or None, dL/dscores or None) as `needs` asks, both [O, kh, kw, C/groups].

    weight, scores: [O, kh, kw, C/groups]; the scores' gradient has their dtype.
    """
    need_grad, need_scores = needs
    tile = wgrad_tile(dy.dtype)
    grad = torch.empty(weight.shape, dtype=torch.float32, device=x.device) if need_grad else None
    grad_scores = torch.empty_like(scores) if need_scores else None
    pixels = x.shape[0] * layer.Ho * layer.Wo
    n = weight.numel()
    if not n:
        return grad, grad_scores
    splits, steps = wgrad_splits(layer, pixels, tile) if pixels else (0, 1)
    parts = torch.empty((splits, n), dtype=torch.float32, device=x.device)
    with guard(x):
        if splits:
            rows = ceil_div(layer.O, tile.rows) * ceil_div(layer.C, tile.columns) * layer.taps
            _masked_conv2d_bwd_weight_kernel[(rows, splits, layer.G)](
                dy_ptr=widened(dy),
                x_ptr=widened(x),
                parts_ptr=parts,
                N=x.shape[0],
                **layer.constants(),
                STEPS=steps,
                PRECISION=precision,
                **_blocks(tile),
                **_launch_options(tile),
                **register_limit(wgrad_registers(dy.dtype, precision), x),
            )
    score_gradient(parts, weight, scores, power, grad, grad_scores)
    return grad, grad_scores


def nhwc(tensor: Tensor) -> Tensor:
    """[N, C, H, W] as contiguous [N, H, W, C]; a view where `tensor` is channels_last."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous()


def nchw(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Contiguous [N, H, W, C] as [N, C, H, W] in format `layout`; a view if channels_last."""
    return tensor.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def precision_of(dtype: torch.dtype, allow_tf32: bool) -> str:
    """How products are formed: float32's by PyTorch's own switches, others as they are."""
    return "tf32" if allow_tf32 and dtype == torch.float32 else "ieee"


# What a layer is launched with: (operand type, precision, whether the weight comes as scores).
FORMS = tuple(
    (kind, precision, from_scores)
    for kind, precision in (("bf16", "ieee"), ("fp16", "ieee"), ("fp32", "tf32"), ("fp32", "ieee"))
    for from_scores in (False, True)
)
_OPERANDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def layer_cases(
    name: str, layer: Layer, forms: Sequence[tuple[str, str, bool]]
) -> list[CompileCase]:
    """The three products of one layer in each of the forms."""
    cases = []
    for kind, precision, from_scores in forms:
        dtype = _OPERANDS[kind]
        # In float32 proper the products are fused multiply-adds, elsewhere tensor-core.
        tensor_core = (kind, precision) != ("fp32", "ieee")
        label = f"{name} {kind}" + (f" {precision}" if kind == "fp32" else "")
        weight = {
            "code_ptr": f"*{kind}" if from_scores else "*i8",
            "w_ptr": "*fp32" if from_scores else f"*{kind}",
            "s_ptr": "*fp32" if from_scores else f"*{kind}",
            "threshold_ptr": "*fp32" if from_scores else f"*{kind}",
            "limit_ptr": "*i64" if from_scores else f"*{kind}",
            "gain_ptr": "*fp32",
            "N": "i32",
        }
        for kernel, rows, source, result in (
            (_masked_conv2d_fwd_kernel, layer.O, "x_ptr", "y_ptr"),
            (_masked_conv2d_bwd_x_kernel, layer.C, "dy_ptr", "dx_ptr"),
        ):
            tile = tile_for(rows, dtype, from_scores)
            cases.append(
                CompileCase(
                    kernel,
                    f"{label} {'scores' if from_scores else 'code'}",
                    {source: f"*{kind}", result: f"*{kind}", **weight},
                    {
                        **layer.constants(),
                        "FROM_SCORES": from_scores,
                        "PRECISION": precision,
                        **_blocks(tile),
                    },
                    tile.num_warps,
                    tile.num_stages,
                    registers=registers_for(precision),
                    tensor_core=tensor_core,
                    asynchronous=layer.C % 16 == 0,
                )
            )
        if from_scores:
            continue  # the weight gradient reads no weight
        tile = wgrad_tile(dtype)
        cases.append(
            CompileCase(
                _masked_conv2d_bwd_weight_kernel,
                label,
                {"dy_ptr": f"*{kind}", "x_ptr": f"*{kind}", "parts_ptr": "*fp32", "N": "i32"},
                {**layer.constants(), "STEPS": 64, "PRECISION": precision, **_blocks(tile)},
                tile.num_warps,
                tile.num_stages,
                registers=wgrad_registers(dtype, precision),
                tensor_core=tensor_core,
                asynchronous=layer.C % 16 == 0,
            )
        )
    return cases


def compile_cases() -> list[CompileCase]:
    """Every tile in every form that is launched, on layers of a ResNet that lead to it."""
    stem = Layer(32, 32, 32, 32, 3, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    block = Layer(32, 32, 32, 32, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    down = Layer(16, 16, 8, 8, 128, 256, 3, 3, 2, 2, 1, 1, 1, 1, 1)
    return [
        *layer_cases("3-64@32x32 3x3", stem, FORMS),
        *layer_cases("64@32x32 3x3", block, FORMS),
        *layer_cases("128-256@16x16 3x3 stride 2", down, FORMS),
    ]
