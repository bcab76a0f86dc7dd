"""The pruned random network: its kept edges over the neurons that are in use, and exact sums."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary.plan import Plan, Pool
from mpt_fast.random_binary.search import Edges
from mpt_fast.runtime.program import Pair, pool_size

_INT64 = 1 << 62  # sums below this are exact in int64 with room to spare
_ELEMENTS = 1 << 24  # gathered at a time


class TapEdges(NamedTuple):
    """Kept edges through one kernel tap, by output neuron (CSR over positions in `used`)."""

    row: int  # of the tap in the kernel box
    column: int
    indptr: NDArray[np.int64]
    source: NDArray[np.int64]
    sign: NDArray[np.int8]


@dataclass(frozen=True, eq=False, repr=False)
class NetLayer:
    """One layer of the random network with its kept edges.

    `width` neurons read `sources` neurons (after flattening, pixel-major) through the kernel box;
    `used` are the neurons that have a part in the output, ascending. Edges count positions: out in
    `used`, source in pixel*len(used before) + position.
    """

    name: str
    kind: str
    width: int
    sources: int
    used: NDArray[np.int64]
    kernel: Pair
    padding: Pair
    stride: Pair
    out_size: Pair
    relu: bool
    flat: int
    pools: tuple[Pool, ...]
    unit: int
    out: NDArray[np.int64]
    tap: NDArray[np.int64]
    source: NDArray[np.int64]
    sign: NDArray[np.int8]

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.name}: {self.sources} -> {self.width} neurons, {self.kept} of "
            f"{self.drawn} signs kept, {self.used.size} neurons in use"
        )

    def __repr__(self) -> str:
        return f"<{self}>"

    @property
    def drawn(self) -> int:
        """Random signs of this layer."""
        return self.width * self.sources * math.prod(self.kernel)

    @property
    def kept(self) -> int:
        """Kept edges of this layer."""
        return int(self.out.size)

    def taps(self) -> Iterator[TapEdges]:
        """The kept edges, one kernel tap after another."""
        for tap in np.unique(self.tap):
            chosen = self.tap == tap
            counts = np.bincount(self.out[chosen], minlength=self.used.size)
            indptr = np.concatenate([[0], np.cumsum(counts)])
            row, column = divmod(int(tap), self.kernel[1])
            yield TapEdges(row, column, indptr, self.source[chosen], self.sign[chosen])


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A pruned random +-1 network; `seed` makes its signs (see `signs`).

    Inputs are `channels` maps of `size`, with a channel of ones after them if `constant`.
    """

    seed: int
    channels: int
    size: Pair
    constant: bool
    layers: tuple[NetLayer, ...]

    def __repr__(self) -> str:
        return f"<Network: {len(self.layers)} layers, {self.kept} of {self.drawn} signs kept>"

    @property
    def drawn(self) -> int:
        """Random signs of the whole network."""
        return sum(layer.drawn for layer in self.layers)

    @property
    def kept(self) -> int:
        """Kept edges of the whole network."""
        return sum(layer.kept for layer in self.layers)

    @property
    def unit(self) -> int:
        """1/scale: the outputs are this many times those of the quantised target."""
        return math.prod(layer.unit for layer in self.layers)

    def integers(self, x: Any) -> NDArray:
        """Exact outputs [N, O] or [N, O, H, W] for integer inputs [N, C] or [N, C, H, W].

        int64 where every sum of the network is below 2**62, otherwise Python ints (dtype object).
        Raises ValueError for inputs that are no integers or of another shape.
        """
        images = np.asarray(x)
        if images.dtype == object:
            whole = all(isinstance(value, int | np.integer) for value in images.flat)
        else:
            whole = images.dtype.kind in "iu"
        if not whole:
            raise ValueError(f"exact evaluation takes integers, not {images.dtype}; round first")
        expected = (self.channels, *self.size)
        if images.ndim not in (2, 4) or images[:1].size != math.prod(expected) * len(images[:1]):
            raise ValueError(f"input has shape {images.shape}; this network takes [N, {expected}]")
        values = images.reshape(len(images), *expected).transpose(1, 2, 3, 0)
        if self.constant:
            ones = np.ones((1, *values.shape[1:]), values.dtype)
            values = np.concatenate([values, ones])
        largest = max(abs(int(values.min())), abs(int(values.max()))) if values.size else 0
        exact: Any = np.int64 if self._largest_sum(largest) < _INT64 else object
        values = values.astype(exact)
        for layer in self.layers:
            values = _apply(layer, values)
        result = values.transpose(3, 0, 1, 2)
        return result[:, :, 0, 0] if self.layers[-1].out_size == (1, 1) else result

    def _largest_sum(self, largest: int) -> float:
        """A bound of every sum for inputs of magnitude `largest`.

        Values after the first layer are nonnegative, so no sum exceeds that of its +1 edges, nor
        falls below the negated greatest value of the layer before.
        """
        values = np.full((self.channels + self.constant, *self.size, 1), float(largest))
        values[self.channels :] = 1.0
        result = values.max(initial=1.0)
        for layer in self.layers:
            values = _apply(layer, values, bound=True)
            result = max(result, values.max(initial=0.0))
        return float(result)


def _apply(layer: NetLayer, values: NDArray, bound: bool = False) -> NDArray:
    """One layer of exact sums; values [C, H, W, N]. `bound`: of its +1 edges only."""
    for pool in layer.pools:
        values = _max_pool(values, pool)
    if layer.flat:
        values = values.transpose(1, 2, 0, 3).reshape(-1, 1, 1, values.shape[3])
    values = _padded(values, layer.padding)
    height, width = layer.out_size
    result = np.zeros((layer.used.size, height, width, values.shape[3]), values.dtype)
    for edges in layer.taps():
        seen = values[
            :,
            edges.row : edges.row + (height - 1) * layer.stride[0] + 1 : layer.stride[0],
            edges.column : edges.column + (width - 1) * layer.stride[1] + 1 : layer.stride[1],
        ]
        sign: NDArray = edges.sign
        if bound:
            sign = np.abs(sign) if layer.kind == "split" else np.maximum(sign, 0)
        _accumulate(result, edges, sign.astype(values.dtype), seen)
    return np.maximum(result, 0) if layer.relu else result


def _accumulate(result: NDArray, edges: TapEdges, sign: NDArray, seen: NDArray) -> None:
    """Adds the signed sources of each output neuron, some images at a time."""
    filled = np.flatnonzero(np.diff(edges.indptr))
    images = result.shape[3]
    step = max(1, _ELEMENTS * max(images, 1) // max(1, edges.source.size * result[0].size))
    for start in range(0, images, step):
        part = slice(start, start + step)
        terms = seen[edges.source][..., part] * sign[:, None, None, None]
        result[filled, ..., part] += np.add.reduceat(terms, edges.indptr[:-1][filled], axis=0)


def _padded(values: NDArray, padding: Pair) -> NDArray:
    """Zeros around maps [C, H, W, N]. (np.pad would put NumPy's zeros among Python's integers.)"""
    (channels, height, width, images), (top, left) = values.shape, padding
    result = np.zeros((channels, height + 2 * top, width + 2 * left, images), values.dtype)
    result[:, top : top + height, left : left + width] = values
    return result


def _max_pool(values: NDArray, pool: Pool) -> NDArray:
    """Max-pool of nonnegative maps, whose padding is as good as 0."""
    (kh, kw), (sh, sw) = pool.kernel, pool.stride
    height, width = (
        pool_size(length, k, s, p, ceil_mode=False)
        for length, k, s, p in zip(
            values.shape[1:3], pool.kernel, pool.stride, pool.padding, strict=True
        )
    )
    padded = _padded(values, pool.padding)
    windows = [
        padded[:, r : r + (height - 1) * sh + 1 : sh, c : c + (width - 1) * sw + 1 : sw]
        for r in range(kh)
        for c in range(kw)
    ]
    result = windows[0]
    for window in windows[1:]:
        result = np.maximum(result, window)
    return result


def make_network(plan: Plan, edges: list[Edges], seed: int) -> Network:
    """The network of a plan and the edges kept of every layer, over the neurons in use."""
    layers: list[NetLayer] = []
    used = np.arange(plan.channels)
    width = plan.channels
    for number, (layer, kept) in enumerate(zip(plan.layers, edges, strict=True)):
        position = np.full(width, -1, np.int64)
        position[used] = np.arange(used.size)
        pixel, neuron = np.divmod(kept.source, width)
        source = pixel * used.size + position[neuron]
        if number == len(plan.layers) - 1:
            mine = np.arange(layer.width)
        else:
            mine = np.unique(edges[number + 1].source % layer.width)
            mine = mine if mine.size else np.zeros(1, np.int64)  # of an output that is always 0
        rank = np.full(layer.width, -1, np.int64)
        rank[mine] = np.arange(mine.size)
        layers.append(
            NetLayer(
                name=layer.name,
                kind=layer.kind,
                width=layer.width,
                sources=layer.sources,
                used=mine,
                kernel=layer.kernel,
                padding=layer.padding,
                stride=layer.stride,
                out_size=layer.out_size,
                relu=layer.relu,
                flat=layer.flat,
                pools=layer.pools,
                unit=layer.unit,
                out=rank[kept.out],
                tap=kept.tap,
                source=source,
                sign=np.where(kept.negative, np.int8(-1), np.int8(1)),
            )
        )
        used, width = mine, layer.width
    return Network(seed, plan.inputs, plan.size, plan.constant, tuple(layers))
