"""Masks as bytes: raw bits or Golomb-Rice coded gaps, whichever is smaller.

A mask of n entries with k kept (density d = k/n) carries n*H(d) bits of information,
H(d) = -d*log2(d) - (1-d)*log2(1-d). Three codings, none of which needs a Python loop:

- "bits": one bit per entry;
- "gaps": between kept entries, the number g of pruned ones as g >> r in unary (that many 0s and
  a 1) and the low r bits of g, in two separate streams;
- "holes": the same for the pruned entries, where fewer are pruned than kept;
- "all": every entry is kept, no bytes.

Streams are little-endian in each byte and padded with 0 bits to a byte; a decoder accepts only
the one canonical form.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Coding = Literal["bits", "gaps", "holes", "all"]
CODINGS: tuple[Coding, ...] = ("bits", "gaps", "holes", "all")
MAX_RICE = 24

Bytes = NDArray[np.uint8]
_EMPTY: Bytes = np.zeros(0, np.uint8)


class CodingError(ValueError):
    """A coded mask does not decode to exactly what was promised."""


class CodedMask(NamedTuple):
    """`high` holds raw bits or unary parts, `low` the remainders of `rice` bits each."""

    coding: Coding
    rice: int
    high: Bytes
    low: Bytes


def entropy_bits(n: int, kept: int) -> float:
    """n*H(kept/n): the least bits that tell which `kept` of `n` entries are kept, on average."""
    if not 0 < kept < n:
        return 0.0
    density = kept / n
    return -n * (density * math.log2(density) + (1 - density) * math.log2(1 - density))


def pack_flags(flags: NDArray[np.bool_]) -> Bytes:
    """bool [n] -> uint8 [ceil(n/8)], bit b of byte i is entry 8*i + b."""
    return np.packbits(flags, bitorder="little")


def unpack_flags(data: Bytes, n: int) -> NDArray[np.bool_]:
    """Inverse of pack_flags; raises CodingError unless the length fits and unused bits are 0."""
    if data.size != (n + 7) // 8:
        raise CodingError(f"{data.size} bytes for {n} bits, expected {(n + 7) // 8}")
    bits = np.unpackbits(data, bitorder="little").view(np.bool_)
    if bits[n:].any():
        raise CodingError("padding bits are not 0")
    return bits[:n]


def encode_mask(kept: NDArray[np.integer], n: int) -> CodedMask:
    """Codes the ascending flat indices `kept` of a mask of `n` entries in the fewest bytes."""
    if kept.size == n:
        return CodedMask("all", 0, _EMPTY, _EMPTY)
    coding: Coding = "gaps" if 2 * kept.size <= n else "holes"
    # A sparse mask of very many entries never has its n flags in memory.
    marks = kept if coding == "gaps" else np.flatnonzero(~_flags(kept, n))
    gaps = marks.astype(np.int64)
    gaps[1:] -= marks[:-1] + 1
    rice = min(range(MAX_RICE + 1), key=lambda r: int((gaps >> r).sum()) + gaps.size * r)
    unary_bits = int((gaps >> rice).sum()) + gaps.size
    if (unary_bits + 7) // 8 + (gaps.size * rice + 7) // 8 >= (n + 7) // 8:
        return CodedMask("bits", 0, pack_flags(_flags(kept, n)), _EMPTY)
    unary = np.zeros(unary_bits, np.bool_)
    unary[np.cumsum((gaps >> rice) + 1) - 1] = True
    low = (gaps[:, None] >> np.arange(rice)) & 1
    return CodedMask(coding, rice, pack_flags(unary), pack_flags(low.astype(np.bool_).ravel()))


def _flags(kept: NDArray[np.integer], n: int) -> NDArray[np.bool_]:
    flags = np.zeros(n, np.bool_)
    flags[kept] = True
    return flags


def decode_mask(mask: CodedMask, n: int, kept: int) -> NDArray[np.int64]:
    """Ascending flat indices of the `kept` kept entries among `n`.

    Allocates in proportion to the coded bytes and `kept` only. Raises CodingError unless the
    streams are canonical and hold exactly `kept` entries below `n`.
    """
    if not 0 <= kept <= n:
        raise CodingError(f"{kept} kept of {n} entries")
    if mask.coding not in ("gaps", "holes") and (mask.rice or mask.low.size):
        raise CodingError(f"coding {mask.coding!r} has no remainders")
    if mask.coding == "all":
        if kept != n or mask.high.size:
            raise CodingError(f"coding 'all' with {kept} kept of {n} entries")
        return np.arange(n, dtype=np.int64)
    if mask.coding == "bits":
        index = np.flatnonzero(unpack_flags(mask.high, n))
        if index.size != kept:
            raise CodingError(f"{index.size} entries are kept, {kept} were promised")
        return index
    if mask.coding not in ("gaps", "holes") or not 0 <= mask.rice <= MAX_RICE:
        raise CodingError(f"unknown coding {mask.coding!r} with rice {mask.rice}")
    count = kept if mask.coding == "gaps" else n - kept
    marks = _decode_gaps(mask, n, count)
    if mask.coding == "gaps":
        return marks
    flags = np.ones(n, np.bool_)
    flags[marks] = False
    return np.flatnonzero(flags)


def _decode_gaps(mask: CodedMask, n: int, count: int) -> NDArray[np.int64]:
    if count > 8 * mask.high.size:
        raise CodingError(f"{count} gaps do not fit in {mask.high.size} bytes")
    ends = np.flatnonzero(np.unpackbits(mask.high, bitorder="little"))
    if ends.size != count or (int(ends[-1]) // 8 + 1 if count else 0) != mask.high.size:
        raise CodingError(f"unary stream does not end after {count} gaps")
    low = unpack_flags(mask.low, count * mask.rice).reshape(count, mask.rice)
    gaps = (np.diff(ends, prepend=-1) - 1) << mask.rice
    gaps += low @ (1 << np.arange(mask.rice, dtype=np.int64))
    index = np.cumsum(gaps + 1) - 1
    if count and int(index[-1]) >= n:
        raise CodingError(f"index {int(index[-1])} outside a mask of {n} entries")
    return index
