"""The affine sum in plain PyTorch: the ground truth of `combine`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels.pack_bits.reference import WORD_BITS, pack_bits, unpack_bits


def lanes_of(sources: Sequence[Tensor]) -> int:
    """Lanes that every source holds."""
    return min(s.shape[-1] * (WORD_BITS if s.dtype == torch.int64 else 1) for s in sources)


def combine(
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    act: str,
    dtype: torch.dtype,
    lanes: int | None = None,
) -> Tensor:
    """See `mpt_fast.kernels.combine.op.combine`."""
    lanes = lanes_of(sources) if lanes is None else lanes
    total = None
    for source, scale, shift in zip(sources, scales, shifts, strict=True):
        if source.dtype == torch.int64:
            source = unpack_bits(source, source.shape[-1] * WORD_BITS, -1, dtype)
        value = source[..., :lanes].to(dtype)
        term = value * _column(scale, dtype) + _column(shift, dtype)
        total = term if total is None else total + term
    assert total is not None
    if act == "sign":
        return pack_bits(total, -1)
    return total.relu() if act == "relu" else total


def _column(vector: Tensor, dtype: torch.dtype) -> Tensor:
    return vector.to(dtype).view(-1, 1, 1, 1)
