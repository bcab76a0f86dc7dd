"""xnor_linear on the GPU: a tile of outputs, one popcount a word.

    S[n, o] = sum over words of 2 * popcount((x ^ ~sign) & mask) - popcount(mask)

Words are 32 bits and stand [words, N] and [words, O], so that neighbouring threads read neighbours.
The popcount is written in shifts and adds, which compile to one POPC (v_bcnt on AMD).
"""

import torch
from torch import Tensor

from mpt_fast.kernels.backend import interpreted
from mpt_fast.kernels.gpu import ceil_div, guard, tl, triton
from mpt_fast.kernels.gpu.aot import CompileCase
from mpt_fast.kernels.pack_bits.triton import as_words32

BLOCK_N, BLOCK_O = (256, 64) if interpreted() else (64, 32)


@triton.jit
def popcount(word):
    """Set bits of int32 words; the shifts must be logical for the compiler to know the idiom."""
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32, bitcast=True)


@triton.jit
def _xnor_linear_kernel(
    x_ptr, unlike_ptr, mask_ptr, out_ptr, N, O, words,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    x_ptr += n
    unlike_ptr += o
    mask_ptr += o
    agreements = tl.zeros([BLOCK_N, BLOCK_O], tl.int32)
    kept = tl.zeros([BLOCK_O], tl.int32)
    # The kept weights in a loop of their own: the main one spends one popcount a word.
    word = words * 0
    while word < words:
        kept += popcount(tl.load(mask_ptr + word.to(tl.int64) * O, mask=o < O, other=0))
        word += 1
    word = words * 0
    while word < words:
        x = tl.load(x_ptr, mask=n < N, other=0)
        unlike = tl.load(unlike_ptr, mask=o < O, other=0)
        mask = tl.load(mask_ptr, mask=o < O, other=0)
        agreements += popcount((x[:, None] ^ unlike[None, :]) & mask[None, :])
        x_ptr += N
        unlike_ptr += O
        mask_ptr += O
        word += 1
    sums = 2 * agreements - kept[None, :]
    row = n.to(tl.int64)[:, None] * O
    tl.store(out_ptr + row + o[None, :], sums, mask=(n < N)[:, None] & (o < O)[None, :])


def xnor_linear(x: Tensor, sign: Tensor, mask: Tensor) -> Tensor:
    """S int32 [N, O] of int64 words x [N, words], sign and mask [O, words]."""
    N, O = x.shape[0], sign.shape[0]
    out = torch.empty((N, O), dtype=torch.int32, device=x.device)
    if not out.numel():
        return out
    halves = [as_words32(tensor).t().contiguous() for tensor in (x, ~sign, mask)]
    with guard(x):
        _xnor_linear_kernel[(ceil_div(N, BLOCK_N), ceil_div(O, BLOCK_O))](
            *halves, out, N, O, halves[0].shape[0], BLOCK_N=BLOCK_N, BLOCK_O=BLOCK_O
        )
    return out


def compile_cases() -> list[CompileCase]:
    """The kernel at the configuration that is launched."""
    pointers = ("x_ptr", "unlike_ptr", "mask_ptr", "out_ptr")
    return [
        CompileCase(
            _xnor_linear_kernel,
            "words",
            {**dict.fromkeys(pointers, "*i32"), "N": "i32", "O": "i32", "words": "i32"},
            {"BLOCK_N": BLOCK_N, "BLOCK_O": BLOCK_O},
            multiples=("N", "O"),
            checks={"popcount": BLOCK_N * BLOCK_O // 128, "loads": 3},
        )
    ]
