"""pack_bits and unpack_bits on the GPU: signs to words of 32 bits and back.

Tensors are seen as [before, length, after] with `length` packed; planes as int32
[before, after, words], the little-endian halves of the contract's int64 words. Bit = 1 where
x >= 0, so -0.0 gives 1 and NaN gives 0; bits past the length are 0.
"""

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton, widened
from mpt_fast.kernels.gpu.aot import CompileCase

# Words that one program packs; a word is 32 loads.
BLOCK_WORDS = 1024 if interpreted() else 64
BLOCK_LANES = 65_536 if interpreted() else 1024


@triton.jit
def _pack_bits_across_kernel(x_ptr, planes_ptr, length, after, words, BLOCK: tl.constexpr):
    """One word of one row for BLOCK neighbours in `after`, the neighbours fastest."""
    # One axis of the grid: the others end at 65 535 programs.
    blocks = (after + BLOCK - 1) // BLOCK
    row = tl.program_id(0) // blocks
    word = row % words
    before = (row // words).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 32)
    x_ptr += (before * length + word * 32) * after
    inside = (word * 32 + bit < length)[:, None] & (place < after)[None, :]
    # Within a word's 32 rows the offset is 64-bit only through the row's length.
    offset = bit.to(tl.int64)[:, None] * after + place[None, :]  # [32, BLOCK]
    x = tl.load(x_ptr + offset, mask=inside, other=-1)
    plane = tl.sum((x >= 0).to(tl.int32) << bit[:, None], 0)
    tl.store(planes_ptr + (before * after + place) * words + word, plane, mask=place < after)


@triton.jit
def _pack_bits_along_kernel(x_ptr, planes_ptr, length, words, total, BLOCK: tl.constexpr):
    """BLOCK words of rows of `length` neighbours (after = 1)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = (index % words).to(tl.int32)
    base = (index // words) * length + word * 32
    bit = tl.arange(0, 32)
    inside = (index < total)[:, None] & (word[:, None] * 32 + bit[None, :] < length)
    x = tl.load(x_ptr + base[:, None] + bit[None, :], mask=inside, other=-1)  # [BLOCK, 32]
    plane = tl.sum((x >= 0).to(tl.int32) << bit[None, :], 1)
    tl.store(planes_ptr + index, plane, mask=index < total)


@triton.jit
def _unpack_bits_kernel(planes_ptr, out_ptr, length, after, words, total, BLOCK: tl.constexpr):
    """out [before, length, after], one element each."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    place = index % after
    lane = (index // after) % length
    before = index // after // length
    word = tl.load(planes_ptr + (before * after + place) * words + lane // 32, mask=inside)
    bit = (word >> (lane % 32).to(tl.int32)) & 1
    tl.store(out_ptr + index, (2 * bit - 1).to(out_ptr.dtype.element_ty), mask=inside)


def pack_bits(x: Tensor, planes: Tensor) -> None:
    """Packs contiguous `x` [before, length, after] into int32 `planes` [before, after, words]."""
    if not planes.numel():
        return
    before, length, after = x.shape
    words = planes.shape[2]
    with guard(x):
        if after > 1:
            programs = before * words * ceil_div(after, BLOCK_WORDS)
            _pack_bits_across_kernel[(programs,)](
                widened(x), planes, length, after, words, BLOCK=BLOCK_WORDS
            )
        else:
            total = planes.numel()
            _pack_bits_along_kernel[(ceil_div(total, BLOCK_WORDS),)](
                widened(x), planes, length, words, total, BLOCK=BLOCK_WORDS
            )


def unpack_bits(planes: Tensor, out: Tensor) -> None:
    """Writes +1 and -1 to contiguous `out` [before, length, after]; planes int32."""
    if not out.numel():
        return
    result = widened(out)
    _, length, after = out.shape
    with guard(planes):
        _unpack_bits_kernel[(ceil_div(out.numel(), BLOCK_LANES),)](
            planes, result, length, after, planes.shape[2], out.numel(), BLOCK=BLOCK_LANES
        )
    if result is not out:
        out.copy_(result)


def as_words32(planes: Tensor) -> Tensor:
    """int64 words [..., words] as their int32 halves [..., 2 * words], the low half first."""
    return planes.contiguous().view(torch.int32)


def compile_cases() -> list[CompileCase]:
    """Every kernel at the configurations that are launched."""
    sizes = {"length": "i32", "after": "i32", "words": "i32"}
    cases = []
    for kind in ("fp64", "fp32", "fp16", "bf16", "i8", "i16", "i32", "i64"):
        source = {"x_ptr": f"*{kind}", "planes_ptr": "*i32"}
        row = {"length": "i32", "words": "i32", "total": "i32"}
        cases += [
            CompileCase(
                _pack_bits_across_kernel,
                kind,
                {**source, **sizes},
                {"BLOCK": BLOCK_WORDS},
                multiples=("after",),
            ),
            CompileCase(_pack_bits_along_kernel, kind, {**source, **row}, {"BLOCK": BLOCK_WORDS}),
        ]
    for kind in ("fp64", "fp32", "fp16", "bf16", "i8", "i32"):
        cases.append(
            CompileCase(
                _unpack_bits_kernel,
                kind,
                {"planes_ptr": "*i32", "out_ptr": f"*{kind}", **sizes, "total": "i32"},
                {"BLOCK": BLOCK_LANES},
            )
        )
    return cases
