"""Bit planes in plain PyTorch: the ground truth of `pack_bits` and `unpack_bits`."""

import torch
from torch import Tensor

WORD_BITS = 64


def word_count(length: int) -> int:
    """Words that hold `length` bits."""
    return (length + WORD_BITS - 1) // WORD_BITS


def pack_bits(x: Tensor, dim: int) -> Tensor:
    """See `mpt_fast.kernels.pack_bits.op.pack_bits`."""
    bits = (x >= 0).movedim(dim, -1)
    length = bits.shape[-1]
    words = word_count(length)
    bits = torch.nn.functional.pad(bits, (0, words * WORD_BITS - length))
    bits = bits.unflatten(-1, (words, WORD_BITS)).to(torch.int64)
    # Distinct bits, so the sum is their union; bit 63 is the sign bit of the int64.
    return (bits << torch.arange(WORD_BITS, device=x.device)).sum(-1)


def unpack_bits(planes: Tensor, length: int, dim: int, dtype: torch.dtype) -> Tensor:
    """See `mpt_fast.kernels.pack_bits.op.unpack_bits`."""
    bits = (planes.unsqueeze(-1) >> torch.arange(WORD_BITS, device=planes.device)) & 1
    signs = (2 * bits.flatten(-2)[..., :length] - 1).to(dtype)
    return signs.movedim(-1, dim).contiguous()


def popcount(words: Tensor) -> Tensor:
    """int64 number of one bits in every int64 word, of the same shape."""
    bits = (words.unsqueeze(-1) >> torch.arange(WORD_BITS, device=words.device)) & 1
    return bits.sum(-1)
