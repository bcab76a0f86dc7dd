"""sparse_conv2d on the GPU: images in the lanes, one load and one multiply-add per kept tap.

    out[n, o, y, x] = bias[o] + sum over the taps of value * x[n, c, y', x']

x is copied once to [C, H + 2 padding, W + 2 padding, N], so that a tap is one offset and needs no
bounds. A program holds a tile of pixels x images and walks several output channels over it, which
re-reads the tile from L1. Taps are added in groups of 16 that are summed apart: fewer roundings
accumulate, and the order, so the result, is fixed. Lists are filled to whole groups with zeros.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.geometry import Geometry, conv2d_output_size
from mpt_fast.kernels.gpu import ceil_div, guard, power_of_two, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.taps import Taps

GROUP = 16
TILE = 16_384 if interpreted() else 512
MOST_IMAGES = 1024 if interpreted() else 128
OUTPUTS_PER_PROGRAM = 8


@triton.jit
def _sparse_conv2d_kernel(
    x_ptr,  # [C, Hp, Wp, N]
    starts_ptr,  # int32 [O + 1], multiples of 16
    offsets_ptr,  # int32, in rows of N
    values_ptr,
    bias_ptr,
    out_ptr,  # [N, O, Ho * Wo] or [O, Ho * Wo, N], by its strides
    O, groups, N, out_image, out_channel, out_pixel,
    Wo: tl.constexpr, SIZE: tl.constexpr, Wp: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    GROUP_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, PIXELS: tl.constexpr, IMAGES: tl.constexpr,
    OUTPUTS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    inside = (pixel < SIZE)[:, None] & (image < N)[None, :]
    place = (pixel // Wo) * SH * Wp + (pixel % Wo) * SW
    place = tl.where(pixel < SIZE, place, 0).to(tl.int64)
    rows = tl.zeros([1, 1], tl.int64) + N
    lane = tl.minimum(image, N - 1)[None, :]  # images past the end read the last one
    channel = tl.program_id(2) * OUTPUTS
    last = tl.minimum(channel + OUTPUTS, O)
    while channel < last:
        group = (channel // (O // groups)).to(tl.int64)
        base = x_ptr + (place[:, None] + group * GROUP_ROWS) * rows + lane  # [PIXELS, IMAGES]
        tap = tl.load(starts_ptr + channel)
        stop = tl.load(starts_ptr + channel + 1)
        acc = tl.zeros([PIXELS, IMAGES], x_ptr.dtype.element_ty)
        while tap < stop:
            part = tl.zeros([PIXELS, IMAGES], x_ptr.dtype.element_ty)
            for k in tl.static_range(16):
                offset = tl.load(offsets_ptr + tap + k).to(tl.int64)
                value = tl.load(values_ptr + tap + k).to(x_ptr.dtype.element_ty)
                part += value * tl.load(base + offset * rows)
            acc += part
            tap += 16
        if HAS_BIAS:
            acc += tl.load(bias_ptr + channel)
        out = image.to(tl.int64)[None, :] * out_image + pixel.to(tl.int64)[:, None] * out_pixel
        tl.store(out_ptr + channel.to(tl.int64) * out_channel + out, acc, mask=inside)
        channel += 1


@dataclass(frozen=True)
class Prepared:
    """A layer's tap lists, ready for launches on images of one size."""

    geometry: Geometry
    out: tuple[int, int]
    channels: int
    starts: Tensor
    offsets: Tensor
    values: Tensor


def prepare(taps: Taps, image: tuple[int, int], geometry: Geometry) -> Prepared:
    """Validates and fills the lists; waits for the device. Do it once per layer, not per call."""
    taps.validate()
    outputs, per_group, kh, kw = taps.shape
    (ph, pw), (dh, dw) = geometry.padding, geometry.dilation
    Hp, Wp = image[0] + 2 * ph, image[1] + 2 * pw
    device = taps.index.device
    index = taps.index.long()
    c, r, s = index // (kh * kw), index // kw % kh, index % kw
    counts = (taps.indptr[1:] - taps.indptr[:-1]).long()
    filled = (counts + GROUP - 1) // GROUP * GROUP
    starts = torch.zeros(outputs + 1, dtype=torch.int64, device=device)
    starts[1:] = filled.cumsum(0)
    owner = torch.repeat_interleave(torch.arange(outputs, device=device), counts)
    within = torch.arange(index.numel(), device=device) - taps.indptr[:-1].long()[owner]
    place = starts[owner] + within
    total = int(starts[-1])
    offsets = torch.zeros(total, dtype=torch.int32, device=device)
    offsets[place] = ((c * Hp + r * dh) * Wp + s * dw).to(torch.int32)
    values = torch.zeros(total, dtype=taps.value.dtype, device=device)
    values[place] = taps.value
    return Prepared(
        geometry=geometry,
        out=conv2d_output_size(image, (kh, kw), geometry),
        channels=per_group * geometry.groups,
        starts=starts.to(torch.int32),
        offsets=offsets,
        values=values,
    )


def run(x: Tensor, layer: Prepared, bias: Tensor | None = None) -> Tensor:
    """out [N, O, Ho, Wo] of x [N, C, H, W], float32 or float64."""
    shape = (x.shape[0], layer.starts.numel() - 1, *layer.out)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    _launch(x.detach().permute(1, 2, 3, 0), layer, bias, out.permute(1, 2, 3, 0))
    return out


def run_lanes(x: Tensor, layer: Prepared) -> Tensor:
    """out [O, Ho, Wo, N] of x [C, H, W, N]: as `run`, with images in the lanes on both sides."""
    shape = (layer.starts.numel() - 1, *layer.out, x.shape[3])
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    _launch(x, layer, None, out)
    return out


def _launch(x: Tensor, layer: Prepared, bias: Tensor | None, out: Tensor) -> None:
    """x [C, H, W, N] -> out [O, Ho, Wo, N] of any strides in which pixels flatten."""
    if not out.numel():
        return
    Ho, Wo = layer.out
    outputs, N = out.shape[0], out.shape[3]
    ph, pw = layer.geometry.padding
    padded = F.pad(x, (0, 0, pw, pw, ph, ph)).contiguous()
    Hp, Wp = padded.shape[1:3]
    images = power_of_two(N, 1, MOST_IMAGES)
    pixels = power_of_two(Ho * Wo, 1, max(1, TILE // images))
    grid = (
        ceil_div(Ho * Wo, pixels),
        ceil_div(N, images),
        ceil_div(outputs, OUTPUTS_PER_PROGRAM),
    )
    groups = layer.geometry.groups
    with guard(x):
        _sparse_conv2d_kernel[grid](
            padded,
            layer.starts,
            layer.offsets,
            layer.values.to(x.dtype) if layer.values.is_floating_point() else layer.values,
            padded if bias is None else bias.detach().contiguous(),
            out,
            outputs,
            groups,
            N,
            out.stride(3),
            out.stride(0),
            out.stride(2),
            Wo=Wo,
            SIZE=Ho * Wo,
            Wp=Wp,
            SH=layer.geometry.stride[0],
            SW=layer.geometry.stride[1],
            GROUP_ROWS=layer.channels // groups * Hp * Wp,
            HAS_BIAS=bias is not None,
            PIXELS=pixels,
            IMAGES=images,
            OUTPUTS=OUTPUTS_PER_PROGRAM,
        )


def compile_cases() -> list[CompileCase]:
    """The kernel at batch 128 or more on the layers of a ResNet."""
    cases = []
    for kind in ("fp32", "fp64"):
        for value, lanes_last in (("i8", False), (kind, False), ("i8", True)):
            unit = ("out_image",) if lanes_last else ("out_pixel",)
            cases.append(
                CompileCase(
                    _sparse_conv2d_kernel,
                    f"{kind} with {value} taps{', images in the lanes' if lanes_last else ''}",
                    {
                        "x_ptr": f"*{kind}",
                        "starts_ptr": "*i32",
                        "offsets_ptr": "*i32",
                        "values_ptr": f"*{value}",
                        "bias_ptr": f"*{kind}",
                        "out_ptr": f"*{kind}",
                        "O": "i32",
                        "groups": "i32",
                        "N": "i32",
                        **{
                            name: "i32"
                            for name in ("out_image", "out_channel", "out_pixel")
                            if name not in unit
                        },
                    },
                    {
                        **dict.fromkeys(unit, 1),
                        "Wo": 8,
                        "SIZE": 64,
                        "Wp": 10,
                        "SH": 1,
                        "SW": 1,
                        "GROUP_ROWS": 25_600,
                        "HAS_BIAS": True,
                        "PIXELS": 4,
                        "IMAGES": 128,
                        "OUTPUTS": OUTPUTS_PER_PROGRAM,
                    },
                    multiples=("N", "out_pixel") if lanes_last else ("N",),
                )
            )
    return cases
