"""The random +-1 network itself: every sign is a function of (seed, layer, out, tap, in).

Counter based, so any sign can be recomputed and none is stored. With the finaliser of SplitMix64

    mix(z): z ^= z >> 30; z *= BF58476D1CE4E5B9; z ^= z >> 27; z *= 94D049BB133111EB; z ^= z >> 31

and G = 9E3779B97F4A7C15, all arithmetic modulo 2**64,

    layer key = mix(mix(seed + G) ^ (layer + 1)*G)
    row key   = mix(layer key ^ (out + 1)*G)
    word w    = mix(row key + (tap*2**32 + w + 1)*G)

The weight from input neuron `in` through kernel tap `tap` to output neuron `out` is +1 where bit
`in mod 64` of word `in div 64` is 1, and -1 where it is 0. A tap is the flat index into the kernel
box (kh, kw) of the layer; a layer without space has the one tap 0.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_G = np.uint64(GOLDEN)
_64 = (1 << 64) - 1
SEEDS = 1 << 63  # seeds are 0 <= seed < SEEDS, so that they fit a signed 64-bit integer


def mix(z: Words) -> Words:
    """The finaliser of SplitMix64, in place."""
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= _M1
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= _M2
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted
    return z


def layer_key(seed: int, layer: int) -> int:
    """The key of one layer; ValueError for a seed outside 0 <= seed < 2**63."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed {seed} is outside 0 <= seed < 2**63; give another")
    key = mix(np.array([(seed + GOLDEN) & _64], np.uint64))
    return int(mix(key ^ np.uint64((layer + 1) * GOLDEN & _64))[0])


def row_keys(key: int, count: int) -> Words:
    """uint64 [count]: the keys of output neurons 0 .. count - 1 of the layer with `key`."""
    return mix(np.uint64(key) ^ (np.arange(1, count + 1, dtype=np.uint64) * _G))


def words(rows: Words, tap: NDArray, word: NDArray) -> Words:
    """Sign words: `rows` are row keys, `tap` and `word` integers; shapes broadcast."""
    counter = (tap.astype(np.uint64) << np.uint64(32)) + word.astype(np.uint64) + np.uint64(1)
    return mix(rows + counter * _G)


def runs(rows: Words, tap: NDArray, first: NDArray, length: int) -> list[Words]:
    """Signs of `length` input neurons from `first` on, for `rows` [n, k] and `tap`, `first` [n].

    Returns ceil(length/64) arrays uint64 [n, k]: bit b of array w is the sign of input neuron
    first + 64*w + b. Bits past `length` are arbitrary.
    """
    result = []
    for start in range(0, length, 64):
        at = first + start
        shift = (at & 63).astype(np.uint64)
        low = words(rows, tap[:, None], (at >> 6)[:, None]) >> shift[:, None]
        over = np.flatnonzero((at & 63) + min(64, length - start) > 64)
        if over.size:
            high = words(rows[over], tap[over, None], ((at[over] >> 6) + 1)[:, None])
            low[over] |= high << (np.uint64(64) - shift[over])[:, None]
        result.append(low)
    return result


def signs(seed: int, layer: int, out: NDArray, tap: NDArray, source: NDArray) -> NDArray[np.int8]:
    """int8 [n] of +1 and -1: the weights (out, tap, source) of `layer`, one by one."""
    key = layer_key(seed, layer)
    rows = mix(np.uint64(key) ^ ((out.astype(np.uint64) + np.uint64(1)) * _G))
    bits = words(rows, tap, source >> 6) >> (source & 63).astype(np.uint64)
    return np.where(bits & np.uint64(1), np.int8(1), np.int8(-1))
