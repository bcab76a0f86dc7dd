"""The mask: which random edges to keep, by live bundles forward and a sweep backward.

Forward, a neuron is live if each of its demands finds enough live copies with the right sign in
the bundle it asks; only one bit per neuron is kept. Backward from the outputs, every needed neuron
picks its sources among those copies, the most asked-for copy of a bundle first, so that few copies
serve many; what nothing needs is never kept. Signs are recomputed where they are looked at.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary import signs
from mpt_fast.random_binary.plan import Demands, Layer, Plan

_CHUNK = 1 << 17  # sign words looked at together: stays in cache
_INSTANCES = 1 << 18  # demands of single neurons resolved together

Progress = Callable[[int, int, str], None]


class MaskNotFound(RuntimeError):  # noqa: N818 - says what happened, as FileNotFoundError does
    """This random network has no mask for the target by the greedy search.

    `redundancy` is the one that was tried, `suggestion` one that should do; `expected_success` is
    the share of random networks that were expected to have a mask.
    """

    def __init__(
        self, message: str, redundancy: int, suggestion: int, expected_success: float
    ) -> None:
        super().__init__(message)
        self.redundancy = redundancy
        self.suggestion = suggestion
        self.expected_success = expected_success


class Edges(NamedTuple):
    """Kept edges of one layer, sorted by (out, tap, source); source is after flattening."""

    out: NDArray[np.int64]
    tap: NDArray[np.int64]
    source: NDArray[np.int64]
    negative: NDArray[np.bool_]


class Mask(NamedTuple):
    """Kept edges of every layer, and how many signs the search looked at."""

    edges: list[Edges]
    looked_at: int


class _Source:
    """The bundles that a layer reads: those of the layer before, once per pixel if flattened."""

    def __init__(self, plan: Plan, layer: Layer, live: NDArray[np.uint64]) -> None:
        if layer.index == 0:
            self.copies, self.width, self.block = 1, plan.channels, np.arange(plan.channels)
        else:
            before = plan.layers[layer.index - 1]
            self.copies, self.width, self.block = before.copies, before.width, before.block
        self.live = live  # uint64 [bundles, words]

    def bundle(self, source: NDArray) -> NDArray:
        """Bundle of the layer before."""
        return source % self.block.size

    def first(self, source: NDArray) -> NDArray:
        """First neuron, in the flattened order (pixel, neuron)."""
        pixel, bundle = np.divmod(source, self.block.size)
        return pixel * self.width + self.block[bundle] * self.copies


def find_mask(plan: Plan, seed: int, progress: Progress | None = None) -> Mask | tuple[Layer, str]:
    """The mask of `plan` in the random network of `seed`, or (layer, why) where there is none."""
    total = 2 * len(plan.layers)
    live = [_inputs(plan)]
    looked = 0
    for layer in plan.layers:
        if progress is not None:
            progress(layer.index, total, f"forward: layer {layer.index} of {layer.name}")
        source = _Source(plan, layer, live[-1])
        demands = layer.demands()
        short = _too_few(source, demands)
        if short is not None:
            return layer, short
        alive, seen = _forward(layer, source, demands, seed)
        live.append(alive)
        looked += seen
    outputs = plan.layers[-1]
    asked = np.unique(outputs.demands().out)
    if not (live[-1][asked, 0] & np.uint64(1)).all():
        return outputs, "an output neuron misses an edge of the sign it needs"
    needed = np.zeros_like(live[-1])
    needed[asked] = 1
    kept: list[Edges] = []
    for layer in reversed(plan.layers):
        if progress is not None:
            progress(total - layer.index - 1, total, f"backward: layer {layer.index}")
        source = _Source(plan, layer, live[layer.index])
        edges, needed = _backward(layer, source, layer.demands(), needed, seed)
        kept.append(edges)
    return Mask(kept[::-1], looked)


def _words(copies: int) -> int:
    return math.ceil(copies / 64)


def _inputs(plan: Plan) -> NDArray[np.uint64]:
    return np.ones((plan.channels, 1), np.uint64)


def _count(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Bits set in each row of uint64 [n, words]."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.int64)


def _too_few(source: _Source, demands: Demands) -> str | None:
    """Says so if a bundle has fewer live copies than a demand needs."""
    counts = _count(source.live)[source.bundle(demands.source)]
    short = np.flatnonzero(counts < demands.need)
    if not short.size:
        return None
    worst = short[0]
    return f"a bundle before it has {counts[worst]} live copies of {demands.need[worst]} needed"


def _candidates(
    source: _Source, demands: Demands, chosen: NDArray, rows: signs.Words
) -> list[signs.Words]:
    """Live copies of the right sign, as words, for neurons `rows` [n, k] of `chosen` demands."""
    found = signs.runs(
        rows, demands.tap[chosen], source.first(demands.source[chosen]), source.copies
    )
    live = source.live[source.bundle(demands.source[chosen])]
    flip = np.where(demands.negative[chosen], ~np.uint64(0), np.uint64(0))[:, None]
    for number, word in enumerate(found):
        word ^= flip
        word &= live[:, number, None]
    return found


def _forward(
    layer: Layer, source: _Source, demands: Demands, seed: int
) -> tuple[NDArray[np.uint64], int]:
    copies = layer.copies
    live = np.zeros((layer.bundles, _words(copies)), np.uint64)
    full = np.zeros((1, 8 * live.shape[1]), np.uint8)
    full[0, : math.ceil(copies / 8)] = np.packbits(np.ones(copies, np.bool_), bitorder="little")
    live[demands.out] = full.view(np.uint64)
    keys = signs.row_keys(signs.layer_key(seed, layer.index), layer.width)
    order = np.argsort(demands.out, kind="stable")
    step = max(1, _CHUNK // copies)
    for start in range(0, order.size, step):
        chosen = order[start : start + step]
        out = demands.out[chosen]
        first = layer.block[out] * copies
        words = _candidates(source, demands, chosen, keys[first[:, None] + np.arange(copies)])
        enough = _enough(words, demands.need[chosen])
        octets = np.zeros((chosen.size, full.size), np.uint8)
        octets[:, : math.ceil(copies / 8)] = np.packbits(enough, axis=1, bitorder="little")
        starts = np.flatnonzero(np.diff(out, prepend=-1))
        live[out[starts]] &= np.bitwise_and.reduceat(octets.view(np.uint64), starts, axis=0)
    return live, order.size * copies * source.copies


def _enough(words: list[signs.Words], need: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether at least `need` (1 or 2) bits are set in the words of each neuron, bool [n, k]."""
    one = words[0] != 0
    two = need == 2
    if not two.any():
        for word in words[1:]:
            one |= word != 0
        return one
    both = (words[0] & (words[0] - np.uint64(1))) != 0
    for word in words[1:]:
        some = word != 0
        both |= (one & some) | ((word & (word - np.uint64(1))) != 0)
        one |= some
    return np.where(two[:, None], both, one)


def _backward(
    layer: Layer, source: _Source, demands: Demands, needed: NDArray[np.uint64], seed: int
) -> tuple[Edges, NDArray[np.uint64]]:
    """Kept edges into the needed neurons, and the neurons those need of the layer before."""
    copies = layer.copies
    keys = signs.row_keys(signs.layer_key(seed, layer.index), layer.width)
    asked = _flags(needed, copies)  # bool [bundles, copies]
    used = np.zeros((source.block.size, 64 * source.live.shape[1]), np.bool_)
    found: list[Edges] = []
    for chosen in _groups(source, demands, asked):
        which, copy = np.nonzero(asked[demands.out[chosen]])
        chosen = chosen[which]
        out = layer.block[demands.out[chosen]] * copies + copy
        words = _candidates(source, demands, chosen, keys[out][:, None])
        octets = np.concatenate(words, axis=1).view(np.uint8)
        options = np.unpackbits(octets, axis=1, bitorder="little")[:, : source.copies]
        bundle = source.bundle(demands.source[chosen])
        instance, pick = _cover(options, bundle, demands.need[chosen])
        used[bundle[instance], pick] = True
        chosen = chosen[instance]
        found.append(
            Edges(
                out[instance],
                demands.tap[chosen],
                source.first(demands.source[chosen]) + pick,
                demands.negative[chosen],
            )
        )
    octets = np.packbits(used, axis=1, bitorder="little")
    return _sorted(found), octets.view(np.uint64)


def _flags(words: NDArray[np.uint64], copies: int) -> NDArray[np.bool_]:
    octets = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")[:, :copies].view(np.bool_)


def _groups(
    source: _Source, demands: Demands, asked: NDArray[np.bool_]
) -> Iterator[NDArray[np.int64]]:
    """Demands by the bundle they ask, all demands of a bundle together, some bundles at a time."""
    bundle = source.bundle(demands.source)
    order = np.argsort(bundle, kind="stable")
    heavy = np.cumsum(asked.sum(axis=1)[demands.out[order]])
    ends = np.append(np.flatnonzero(np.diff(bundle[order])), order.size - 1)
    start, done = 0, 0
    for end in ends if order.size else ():
        if heavy[end] - done >= _INSTANCES or end == order.size - 1:
            yield order[start : end + 1]
            start, done = end + 1, heavy[end]


def _cover(
    options: NDArray[np.uint8], bundle: NDArray, need: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Picks `need` distinct copies for every instance, few copies per bundle in all.

    options [n, copies] of 0 and 1, bundle [n] ascending. Each round takes, for every bundle, the
    copy that serves most instances still open. Returns (instance, copy) pairs.
    """
    open_ = np.arange(bundle.size)
    need = need.copy()
    instances, picks = [], []
    while open_.size:
        starts = np.flatnonzero(np.diff(bundle[open_], prepend=-1))
        popular = np.add.reduceat(options[open_], starts, axis=0, dtype=np.int32).argmax(axis=1)
        pick = np.repeat(popular, np.diff(starts, append=open_.size))
        hit = options[open_, pick] == 1
        served = open_[hit]
        if not served.size:
            raise RuntimeError("a live neuron finds no source; report this as a bug of the search")
        instances.append(served)
        picks.append(pick[hit])
        options[served, pick[hit]] = 0
        need[served] -= 1
        open_ = open_[need[open_] > 0]
    if not instances:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(instances), np.concatenate(picks)


def _sorted(parts: list[Edges]) -> Edges:
    if not parts:
        none = np.zeros(0, np.int64)
        return Edges(none, none, none, np.zeros(0, np.bool_))
    out, tap, source = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("out", "tap", "source")
    )
    negative = np.concatenate([part.negative for part in parts])
    order = np.lexsort((source, tap, out))
    return Edges(out[order], tap[order], source[order], negative[order])
