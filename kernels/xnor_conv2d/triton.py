"""xnor_conv2d on the GPU: three 9-bit patches of neighbouring channels in one word.

The first kernel gathers the patches once, [groups, ceil(C/groups / 3), pixels] with pixels = all
(n, y, x) of the output, so that three kernels cost one popcount; bits outside the image are 0. It
reads rows (pixels in the lanes) or, for a layer of a packed network, planes (images there). The
second walks each output channel's list of word triples that keep a kernel:

    S = sum over the list of 2 * popcount((patches ^ ~sign) & mask) - popcount(mask) + border,

where border is the sum of the values of the taps outside the image, as in `bitsliced_conv2d`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.bitsliced_conv2d.triton import outside_sums
from mpt_fast.kernels.geometry import Geometry, conv2d_output_size
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.pack_bits.triton import as_words32
from mpt_fast.kernels.taps import KernelList
from mpt_fast.kernels.xnor_linear.triton import popcount

PER_WORD = 3
# Pixels of one program: 4 a thread keep loads at 128 bits.
BLOCK = 4096 if interpreted() else 512
OUTPUTS_PER_PROGRAM = 8


@triton.jit
def _xnor_patches_kernel(
    source_ptr,  # int32 [N, C, H, words], or PLANES: [C, H, W, words]
    patches_ptr,  # int32 [groups * TRIPLES, row], row = pixels filled to whole blocks
    pixels, row, C, TRIPLES, per_group, words,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    triple = tl.program_id(1)
    within = (pixel % (Ho * Wo)).to(tl.int32)
    image = pixel // (Ho * Wo)
    top = (within // Wo) * SH - PH
    left = (within % Wo) * SW - PW
    first = (triple // TRIPLES) * per_group
    patch = tl.zeros([BLOCK], tl.int32)
    for k in tl.static_range(3):
        c = (triple % TRIPLES) * 3 + k
        if PLANES:
            base = source_ptr + (first + c).to(tl.int64) * (H * W) * words + (image >> 5)
        else:
            base = source_ptr + (image * C + first + c) * H * words
        # Past the last channel no pixel is inside. (As a bound, because the interpreter of Triton
        # 3.9 turns a broadcast scalar condition into integers, which are no mask.)
        inside = pixel < tl.where(c < per_group, pixels, 0)
        for r in tl.static_range(3):
            y = top + r * DH
            for s in tl.static_range(3):
                x = left + s * DW
                row_inside = (y >= 0) & (y < H)
                column_inside = (x >= 0) & (x < W)
                here = inside & row_inside & column_inside
                if PLANES:
                    word = tl.load(base + (y * W + x) * words, mask=here, other=0)
                    bit = (word >> (image & 31).to(tl.int32)) & 1
                else:
                    word = tl.load(base + y * words + (x >> 5), mask=here, other=0)
                    bit = (word >> (x & 31)) & 1
                patch |= bit << (k * 9 + r * 3 + s)
    tl.store(patches_ptr + triple.to(tl.int64) * row + pixel, patch)


@triton.jit
def _xnor_conv2d_kernel(
    patches_ptr,
    starts_ptr,  # int32 [O + 1]
    triple_ptr,  # int32, first dimension of the patches
    unlike_ptr, mask_ptr,  # int32
    totals_ptr,  # int32 [O], kept taps
    border_ptr,  # int32 [O, Ho * Wo]
    out_ptr,  # int32 [N, O, Ho * Wo]
    pixels, row, O,
    SIZE: tl.constexpr, BORDER: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    place = (pixel % SIZE).to(tl.int32)
    base = patches_ptr + pixel  # rows are filled to whole blocks: no mask
    channel = tl.program_id(1) * OUTPUTS
    last = tl.minimum(channel + OUTPUTS, O)
    while channel < last:
        entry = tl.load(starts_ptr + channel)
        stop = tl.load(starts_ptr + channel + 1)
        agreements = tl.zeros([BLOCK], tl.int32)
        while entry < stop:
            triple = tl.load(triple_ptr + entry).to(tl.int64)
            patch = tl.load(base + triple * row)
            unlike = tl.load(unlike_ptr + entry)
            agreements += popcount((patch ^ unlike) & tl.load(mask_ptr + entry))
            entry += 1
        sums = 2 * agreements - tl.load(totals_ptr + channel)
        if BORDER:
            border = border_ptr + channel.to(tl.int64) * SIZE + place
            sums += tl.load(border, mask=inside, other=0)
        out = out_ptr + (pixel // SIZE * O + channel) * SIZE + place
        tl.store(out, sums, mask=inside)
        channel += 1


@dataclass(frozen=True)
class Prepared:
    """A layer's word list, ready for launches on images of one size."""

    geometry: Geometry
    image: tuple[int, int]
    out: tuple[int, int]
    per_group: int
    starts: Tensor
    triple: Tensor
    unlike: Tensor
    mask: Tensor
    totals: Tensor
    border: Tensor


def prepare(
    kernels: KernelList, per_group: int, image: tuple[int, int], geometry: Geometry
) -> Prepared:
    """Validates the kernels and joins them to words; waits for the device. Once per layer."""
    taps = kernels.to_taps(per_group)
    outputs = kernels.indptr.numel() - 1
    device = kernels.mask.device
    triples = ceil_div(per_group, PER_WORD)
    owner = torch.repeat_interleave(
        torch.arange(outputs, device=device), (kernels.indptr[1:] - kernels.indptr[:-1]).long()
    )
    channel = kernels.channel.long()
    flat = owner * triples + channel // PER_WORD
    shift = 9 * (channel % PER_WORD)
    words = torch.zeros((2, outputs * triples), dtype=torch.int64, device=device)
    kept = kernels.mask.long()
    words[0].index_add_(0, flat, kept << shift)
    words[1].index_add_(0, flat, (~kernels.sign.long() & kept) << shift)
    listed = torch.nonzero(words[0]).squeeze(1)
    row = listed // triples
    starts = torch.zeros(outputs + 1, dtype=torch.int64, device=device)
    starts[1:] = torch.bincount(row, minlength=outputs).cumsum(0)
    group = row // (outputs // geometry.groups)
    return Prepared(
        geometry=geometry,
        image=image,
        out=conv2d_output_size(image, (3, 3), geometry),
        per_group=per_group,
        starts=starts.to(torch.int32),
        triple=(group * triples + listed % triples).to(torch.int32),
        unlike=words[1][listed].to(torch.int32),
        mask=words[0][listed].to(torch.int32),
        totals=(taps.indptr[1:] - taps.indptr[:-1]).contiguous(),
        border=outside_sums(taps, image, geometry),
    )


def run(source: Tensor, layer: Prepared, images: int | None = None) -> Tensor:
    """S int32 [N, O, Ho, Wo] of int64 rows [N, C, H, words].

    With `images`, their number, `source` holds planes [C, H, W, words] instead.
    """
    planes = images is not None
    N, C = (images, source.shape[0]) if images is not None else source.shape[:2]
    Ho, Wo = layer.out
    outputs = layer.totals.numel()
    out = torch.empty((N, outputs, Ho, Wo), dtype=torch.int32, device=source.device)
    if not out.numel():
        return out
    geometry = layer.geometry
    triples = ceil_div(layer.per_group, PER_WORD)
    pixels = N * Ho * Wo
    tiles = ceil_div(pixels, BLOCK)
    row = tiles * BLOCK
    patches = torch.empty((geometry.groups * triples, row), dtype=torch.int32, device=source.device)
    halves = as_words32(source)
    with guard(source):
        _xnor_patches_kernel[(tiles, geometry.groups * triples)](
            halves,
            patches,
            pixels,
            row,
            C,
            triples,
            layer.per_group,
            halves.shape[3],
            *layer.image,
            Ho,
            Wo,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            planes,
            BLOCK,
        )
        _xnor_conv2d_kernel[(tiles, ceil_div(outputs, OUTPUTS_PER_PROGRAM))](
            patches,
            layer.starts,
            layer.triple,
            layer.unlike,
            layer.mask,
            layer.totals,
            layer.border,
            out,
            pixels,
            row,
            outputs,
            SIZE=Ho * Wo,
            BORDER=geometry.padding != (0, 0),
            OUTPUTS=OUTPUTS_PER_PROGRAM,
            BLOCK=BLOCK,
        )
    return out


def compile_cases() -> list[CompileCase]:
    """Both kernels on the layers of a ResNet."""
    cases = []
    for size, planes in ((32, False), (8, False), (32, True)):
        sizes = ("pixels", "row", "C", "TRIPLES", "per_group", "words")
        cases.append(
            CompileCase(
                _xnor_patches_kernel,
                f"{'planes' if planes else 'rows'} {size}x{size}",
                {"source_ptr": "*i32", "patches_ptr": "*i32", **dict.fromkeys(sizes, "i32")},
                {
                    "H": size,
                    "W": size,
                    "Ho": size,
                    "Wo": size,
                    "SH": 1,
                    "SW": 1,
                    "PH": 1,
                    "PW": 1,
                    "DH": 1,
                    "DW": 1,
                    "PLANES": planes,
                    "BLOCK": BLOCK,
                },
                multiples=("pixels", "row"),
            )
        )
    for size in (32, 8):
        pointers = ("patches_ptr", "starts_ptr", "triple_ptr", "unlike_ptr", "mask_ptr",
                    "totals_ptr", "border_ptr", "out_ptr")  # fmt: skip
        cases.append(
            CompileCase(
                _xnor_conv2d_kernel,
                f"{size}x{size}",
                {**dict.fromkeys(pointers, "*i32"), "pixels": "i32", "row": "i32", "O": "i32"},
                {
                    "SIZE": size * size,
                    "BORDER": True,
                    "OUTPUTS": OUTPUTS_PER_PROGRAM,
                    "BLOCK": BLOCK,
                },
                multiples=("pixels", "row"),
                checks={"popcount": BLOCK // 128, "loads": 4},
            )
        )
    return cases
