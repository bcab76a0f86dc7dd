"""Masks and flags as bytes: exact, canonical, and near the entropy."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mpt_fast.runtime.coding import (
    CodedMask,
    CodingError,
    decode_mask,
    encode_mask,
    entropy_bits,
    pack_flags,
    unpack_flags,
)

NOTHING = np.zeros(0, np.uint8)


def random_mask(n: int, density: float) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(n).random(n) < density)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_any_mask_comes_back(flags: list[bool]) -> None:
    kept = np.flatnonzero(flags)
    coded = encode_mask(kept, len(flags))
    assert np.array_equal(decode_mask(coded, len(flags), kept.size), kept)
    assert coded.high.size + coded.low.size <= (len(flags) + 7) // 8


@pytest.mark.parametrize(
    ("density", "coding", "excess"),
    [
        (0.001, "gaps", 1.02),
        (0.05, "gaps", 1.02),
        (0.1, "gaps", 1.02),
        (0.2, "gaps", 1.03),
        (0.5, "bits", 1.001),
        (0.8, "holes", 1.03),
        (0.99, "holes", 1.02),
    ],
)
def test_size_against_the_entropy(density: float, coding: str, excess: float) -> None:
    n = 200_000
    kept = random_mask(n, density)
    coded = encode_mask(kept, n)
    assert coded.coding == coding
    assert 8 * (coded.high.size + coded.low.size) <= excess * entropy_bits(n, kept.size)
    assert np.array_equal(decode_mask(coded, n, kept.size), kept)


def test_extremes_cost_nothing() -> None:
    for kept, n in ((np.arange(9), 9), (np.arange(0), 9)):
        coded = encode_mask(kept, n)
        assert coded.high.size == coded.low.size == 0
        assert np.array_equal(decode_mask(coded, n, kept.size), kept)
    assert entropy_bits(9, 9) == entropy_bits(9, 0) == 0.0
    assert entropy_bits(8, 4) == 8.0


def test_gaps_by_hand() -> None:
    """Kept 2 and 7 of 64: gaps 2 and 4. With one low bit: unary 1 and 2 (01, 001), lows 0, 0."""
    kept = np.array([2, 7])
    mask = CodedMask("gaps", 1, np.array([0b10010], np.uint8), np.array([0], np.uint8))
    assert np.array_equal(decode_mask(mask, 64, 2), kept)


@pytest.mark.parametrize(
    ("mask", "n", "kept", "message"),
    [
        (CodedMask("bits", 0, NOTHING, NOTHING), 9, 3, "0 bytes for 9 bits"),
        (CodedMask("bits", 0, np.array([7, 2], np.uint8), NOTHING), 9, 3, "padding bits"),
        (CodedMask("bits", 0, np.array([7, 0], np.uint8), NOTHING), 9, 4, "3 entries are kept"),
        (CodedMask("bits", 1, np.array([7, 0], np.uint8), NOTHING), 9, 3, "has no remainders"),
        (CodedMask("all", 0, NOTHING, NOTHING), 9, 8, "coding 'all' with 8"),
        (CodedMask("all", 0, np.array([1], np.uint8), NOTHING), 9, 9, "coding 'all'"),
        (CodedMask("gaps", 0, np.array([0b101], np.uint8), NOTHING), 3, 1, "does not end after 1"),
        (CodedMask("gaps", 0, np.array([0b101], np.uint8), NOTHING), 2, 2, "index 2 outside"),
        (CodedMask("gaps", 0, np.array([5, 0], np.uint8), NOTHING), 9, 2, "does not end"),
        (CodedMask("gaps", 0, NOTHING, NOTHING), 9, 2, "2 gaps do not fit in 0"),
        (CodedMask("gaps", 0, np.array([1], np.uint8), NOTHING), 9, 0, "does not end after 0"),
        (CodedMask("gaps", 3, np.array([3], np.uint8), NOTHING), 99, 2, "0 bytes for 6 bits"),
        (CodedMask("gaps", 25, np.array([3], np.uint8), NOTHING), 99, 2, "rice 25"),
        (CodedMask("gaps", -1, np.array([3], np.uint8), NOTHING), 99, 2, "rice -1"),
        (CodedMask("what", 0, NOTHING, NOTHING), 9, 2, "unknown coding"),  # type: ignore[arg-type]  # on purpose
        (CodedMask("holes", 0, NOTHING, NOTHING), 2**40, 5, "do not fit"),
        (CodedMask("bits", 0, NOTHING, NOTHING), 9, 10, "10 kept of 9"),
        (CodedMask("bits", 0, NOTHING, NOTHING), 9, -1, "-1 kept of 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_not_promised_is_refused(mask: CodedMask, n: int, kept: int, message: str) -> None:
    with pytest.raises(CodingError, match=message):
        decode_mask(mask, n, kept)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 65])
def test_flags_come_back(n: int) -> None:
    flags = np.random.default_rng(n).random(n) < 0.5
    data = pack_flags(flags)
    assert data.size == (n + 7) // 8
    assert np.array_equal(unpack_flags(data, n), flags)
    assert pack_flags(np.array([True, False, True])).tolist() == [5]
