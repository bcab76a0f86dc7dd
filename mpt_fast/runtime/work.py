"""What the engine computes at once, and the quantities of it that its time may depend on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mpt_fast.kernels import cpu
from mpt_fast.runtime.program import (
    LEVELS,
    Conv,
    ConvAffine,
    ConvSign,
    Program,
    Step,
    Taps,
    Value,
)

AnyConv = Conv | ConvSign | ConvAffine

L1, L2 = 32 * 1024, 1024 * 1024  # bytes; on a machine with others the coefficients absorb some


@dataclass(frozen=True)
class Block:
    """One block of images on its way through a program.

    `layout` is how its values lie (`kernels`), `lanes` its width in images, `groups` the groups of
    16 of them in use, `words` the 64-bit words of one vector. `bit_code`: convolutions of bits to
    bits that have few taps run as code.
    """

    layout: str
    lanes: int
    groups: int
    words: int
    bit_code: bool = False

    @property
    def whole_vectors(self) -> bool:
        """As in cpu/tasks.h: a pixel is one vector. Then channels share sums, or code adds."""
        return self.words == 8 and self.lanes == 512


@dataclass(frozen=True)
class Work:
    """A step with the values it reads, and the earlier steps that are computed inside it."""

    step: Step
    sources: tuple[Value, ...]
    result: Value
    inside: tuple["Work", ...] = ()
    outer: tuple[tuple[Value, Step], ...] = ()
    """What is stored of what they read, each value with its reader."""

    def find(self, *kinds: type[Step]) -> "list[Work]":
        """Those of the steps inside that are of these kinds."""
        return [work for work in self.inside if isinstance(work.step, kinds)]


def works(program: Program, computed_by: Sequence[int]) -> list[Work | None]:
    """What is computed at every step: None where a later one does it in passing, or none."""
    values = program.values()
    found: list[Work | None] = []
    for number, step in enumerate(program.steps):
        if computed_by[number] != number:
            found.append(None)
            continue
        inside, outer = [], []
        left = [(source, step) for source in step.sources()]
        while left:
            source, reader = left.pop(0)
            if source == 0 or computed_by[source - 1] == source - 1:
                outer.append((values[source], reader))
                continue
            inner = program.steps[source - 1]
            inside.append(Work(inner, _sources(inner, values), values[source]))
            left += [(source, inner) for source in inner.sources()]
        result = values[number + 1]
        found.append(Work(step, _sources(step, values), result, tuple(inside), tuple(outer)))
    return found


def _sources(step: Step, values: Sequence[Value]) -> tuple[Value, ...]:
    return tuple(values[source] for source in step.sources())


def beyond(size: float, cache: int) -> float:
    """Doublings by which `size` bytes exceed half of a cache, from 0 to 6."""
    return min(6.0, math.log2(max(1.0, 2 * size / cache)))


def _lines(value: Value, block: Block) -> float:
    """Cache lines of a value."""
    if value.kind == "bits":
        return math.prod(value.shape) * block.lanes / 512
    share = 2.0 if value.kind == "f64" else 0.5 if value.kind in ("sums", *LEVELS) else 1.0
    return math.prod(value.shape) * block.groups * share


def _read_share(reader: Step) -> float:
    """Of a value's pixels: a stride may pass over some."""
    if not isinstance(reader, AnyConv):
        return 1.0
    _, _, *kernel = reader.taps.shape
    return math.prod(min(1.0, k / s) for k, s in zip(kernel, reader.stride, strict=True))


def far_lines(work: Work, block: Block) -> float:
    """Cache lines read and written that the L2 cache does not keep from step to step."""
    read = sum(_lines(value, block) * _read_share(reader) for value, reader in work.outer)
    return max(0.0, read + _lines(work.result, block) - L2 / 64)


_hits: WeakKeyDictionary[Taps, dict[tuple[object, ...], int]] = WeakKeyDictionary()


def taps_inside(conv: AnyConv, source: Value, result: Value) -> int:
    """Kept taps inside the image, over all pixels of the result."""
    key = (conv.stride, conv.padding, conv.dilation, source.shape, result.shape)
    known = _hits.setdefault(conv.taps, {})
    if key not in known:
        _, _, *kernel = conv.taps.shape
        lengths = zip((source.height, source.width), (result.height, result.width), strict=True)
        rows, columns = (
            _inside(length, outputs, kernel[axis], conv.stride[axis], conv.padding[axis],
                    conv.dilation[axis])
            for axis, (length, outputs) in enumerate(lengths)
        )  # fmt: skip
        area = kernel[0] * kernel[1]
        taps = np.bincount(conv.taps.index % area, minlength=area)
        known[key] = int(taps @ np.outer(rows, columns).ravel())
    return known[key]


def _inside(
    length: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
) -> NDArray[np.int64]:
    """For each position of a kernel along an axis, the outputs at which it meets the image."""
    at = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel) * dilation
    return ((at >= 0) & (at < length)).sum(0)


_known_costs: WeakKeyDictionary[Taps, dict[tuple[object, ...], tuple[float, bool]]] = (
    WeakKeyDictionary()
)


def bit_costs(work: Work) -> tuple[float, bool]:
    """The engine's word: additions for a vector of 512 images, and whether code makes them."""
    step, source = work.step, work.sources[0]
    assert isinstance(step, AnyConv)
    taps = step.taps
    known = _known_costs.setdefault(taps, {})
    geometry = (step.stride, step.padding, step.dilation, step.groups)
    key = (source.shape, *geometry)
    if key not in known:
        known[key] = cpu.engine().bitsliced_conv2d_costs(
            source.shape, taps.indptr, taps.index, taps.value, taps.shape, *geometry
        )
    return known[key]
