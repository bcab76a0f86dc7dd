"""The generator of random signs: reproducible, counter based, balanced."""

import numpy as np
import pytest

from mpt_fast.random_binary import signs

_MASK = (1 << 64) - 1
_G = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _sign(seed: int, layer: int, out: int, tap: int, source: int) -> int:
    """The documented formula in Python integers."""
    key = _mix(_mix((seed + _G) & _MASK) ^ ((layer + 1) * _G & _MASK))
    row = _mix(key ^ ((out + 1) * _G & _MASK))
    word = _mix((row + (tap * 2**32 + source // 64 + 1) * _G) & _MASK)
    return 1 if word >> (source % 64) & 1 else -1


def test_mix_is_splitmix64():
    """The first outputs of SplitMix64 from state 0: mix(G), mix(2G)."""
    states = np.array([_G, 2 * _G & _MASK], np.uint64)
    assert [hex(v) for v in signs.mix(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
    ]


def test_signs_follow_the_documented_formula():
    rng = np.random.default_rng(0)
    out, tap, source = (rng.integers(0, n, 200) for n in (5000, 25, 9000))
    for seed, layer in ((0, 0), (7, 3), (2**63 - 1, 500)):
        got = signs.signs(seed, layer, out, tap, source)
        assert got.dtype == np.int8
        wanted = [
            _sign(seed, layer, *key)
            for key in zip(*(a.tolist() for a in (out, tap, source)), strict=True)
        ]
        assert got.tolist() == wanted


@pytest.mark.parametrize("length", [1, 20, 63, 64, 65, 128, 150])
def test_runs_are_the_same_signs(length):
    rng = np.random.default_rng(length)
    first, tap = rng.integers(0, 1000, 50), rng.integers(0, 9, 50)
    rows = signs.row_keys(signs.layer_key(5, 2), 30)
    words = signs.runs(rows[np.arange(50)[:, None] % 30 + np.zeros(2, int)], tap, first, length)
    assert len(words) == -(-length // 64)
    for b in range(length):
        got = words[b // 64] >> np.uint64(b % 64) & np.uint64(1)
        wanted = signs.signs(5, 2, np.arange(50) % 30, tap, first + b)
        assert (np.where(got == 1, 1, -1) == wanted[:, None]).all()


def test_signs_are_balanced_and_uncorrelated():
    """2**18 signs: means and correlations of neighbours within 4.5 standard deviations of 0."""
    out, source = np.divmod(np.arange(2**18), 2**9)
    tap = np.zeros_like(out)
    limit = 4.5 / np.sqrt(2**18)
    base = signs.signs(0, 0, out, tap, source).astype(float)
    others = {
        "seed": signs.signs(1, 0, out, tap, source),
        "layer": signs.signs(0, 1, out, tap, source),
        "out": signs.signs(0, 0, out + 1, tap, source),
        "tap": signs.signs(0, 0, out, tap + 1, source),
        "in": signs.signs(0, 0, out, tap, source + 1),
        "word": signs.signs(0, 0, out, tap, source + 64),
    }
    assert abs(base.mean()) < limit
    for name, other in others.items():
        assert abs((base * other).mean()) < limit, name
    rows = base.reshape(2**9, 2**9)
    assert abs(rows.mean(axis=0)).max() < 5.5 / np.sqrt(2**9)
    assert abs(rows.mean(axis=1)).max() < 5.5 / np.sqrt(2**9)


def test_seeds_have_a_range():
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="seed"):
            signs.layer_key(seed, 0)
