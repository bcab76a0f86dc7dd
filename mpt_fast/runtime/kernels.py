"""The engine's kernels as the planner sees them: which steps each can run, and what it counts.

A kernel's time is modelled as a sum of a few counts, each times a coefficient fitted on the
machine (`calibration`). A step no kernel here claims has no prediction. A further way to run a
step is a further entry of KERNELS; the cheapest wins (`planner`), and all give the same result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpt_fast.runtime.program import (
    LEVELS,
    AvgPool,
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    MaxPool,
    Step,
    Value,
)

_L1, _L2 = 32 * 1024, 512 * 1024  # bytes; on a machine with others the coefficients absorb it


@dataclass(frozen=True)
class Block:
    """One block of images on its way through a program.

    `lanes` is its width in images, `groups` the groups of 16 of them in use, `words` the 64-bit
    words of one vector.
    """

    lanes: int
    groups: int
    words: int


Sources = Sequence[Value]
Count = Callable[[Step, Sources, Value, Block], tuple[float, ...]]


@dataclass(frozen=True)
class Kernel:
    """A way to run some steps.

    `name` is what a plan prints; `case` what has coefficients of its own; `layout` what lies in
    the lanes. `terms` names the entries of `count`'s result for one block.
    """

    name: str
    case: str
    layout: str
    runs: Callable[[Step, Sources, Value], bool]
    terms: tuple[str, ...]
    count: Count
    why: str


def _beyond(size: float, cache: int) -> float:
    """Doublings by which `size` bytes exceed half of a cache, from 0 to 6."""
    return min(6.0, max(0.0, math.log2(2 * size / cache)))


def _bit_visits(
    step: Conv | ConvSign | ConvAffine, result: Value, block: Block
) -> tuple[float, float, float]:
    """(vectors written, vectors added, the latter times how far their input lies)."""
    outputs, inputs, height, width = step.taps.shape
    words = block.lanes // 64
    vectors = result.height * math.ceil(result.width * words / block.words)
    span = width if words < block.words else 1  # pixels read for one vector, per kernel row
    slice_bytes = 8 * inputs * height * (words * width if span == 1 else block.words + width)
    adds = step.taps.kept * vectors
    return outputs * vectors, adds, adds * _beyond(slice_bytes, _L1)


def _bit_sign(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, ConvSign)
    visits, adds, far = _bit_visits(step, result, block)
    staged = step.stride[1] > 1 and (block.lanes // 64) % block.words != 0
    moved = math.prod(sources[0].shape) * (block.lanes // 64) if staged else 0
    return 1, visits, adds, far, visits if step.residual >= 0 else 0, moved


def _bit_sums(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, Conv)
    visits, adds, far = _bit_visits(step, result, block)
    planes = max(5.0, math.log2(step.taps.kept / result.channels + 1) + 2)
    written = math.prod(result.shape) * block.groups
    return 1, visits, adds, far, written * planes, written * _beyond(64 * written, _L2)


def _real(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, Conv | ConvAffine)
    _, inputs, height, width = step.taps.shape
    pixels = result.height * result.width * block.groups
    size = 128 if sources[0].kind == "f64" else 64
    adds = step.taps.kept * pixels
    tiles = result.channels * result.height * math.ceil(result.width / 4) * block.groups
    slice_bytes = size * inputs * height * (width + 3)
    extra = 0 if isinstance(step, Conv) or (step.act != "sign" and step.residual < 0) else 1
    written = result.channels * pixels
    return 1, tiles, adds, adds * _beyond(slice_bytes, _L1), written, extra * written


def _levels(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, ConvAffine)
    half = Block(block.lanes, math.ceil(block.groups / 2), block.words)  # 32 images to a vector
    return _real(step, sources, result, half)


def _combine(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, Combine)
    values = math.prod(result.shape) * block.groups
    bits = sum(source.kind == "bits" for source in sources) * values
    return 1, values, values * len(sources), bits


def _pool(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, MaxPool | AvgPool)
    parts = math.ceil(block.lanes / 64 / block.words) if result.kind == "bits" else block.groups
    values = math.prod(result.shape) * parts
    return 1, values, values * math.prod(step.kernel) * (2 if result.kind == "f64" else 1)


def _flatten(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    return (1,)


def _real_kernel(kind: str, binary: bool) -> Kernel:
    def runs(step: Step, sources: Sources, result: Value) -> bool:
        if not isinstance(step, Conv | ConvAffine) or sources[0].kind != kind:
            return False
        return step.taps.binary == binary

    taps = "+-1 taps add and subtract" if binary else "float taps multiply"
    return Kernel(
        "sparse",
        f"sparse {kind} {'signs' if binary else 'floats'}",
        "images",
        runs,
        ("call", "tile", "tap", "tap beyond L1", "value", "value signed or added to"),
        _real,
        f"{kind} inputs: {taps}",
    )


def _pool_kernel(case: str, fits: Callable[[Step, str], bool]) -> Kernel:
    return Kernel(
        "pool",
        case,
        "images",
        lambda step, sources, result: fits(step, result.kind),
        ("call", "value", "value read"),
        _pool,
        "window",
    )


def _combine_kernel(case: str, fits: Callable[[str], bool], bits: bool = True) -> Kernel:
    """`bits`: whether a source may be bits."""
    terms = ("call", "value", "value read", "value read from bits")[: 4 if bits else 3]
    return Kernel(
        "elementwise",
        case,
        "images",
        lambda step, sources, result: isinstance(step, Combine) and fits(result.kind),
        terms,
        lambda *arguments: _combine(*arguments)[: len(terms)],
        "joins or converts",
    )


_BIT_TERMS = ("call", "vector", "tap", "tap beyond L1")

KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "bit-sliced",
        "bit-sliced sign",
        "images",
        lambda step, sources, result: isinstance(step, ConvSign),
        (*_BIT_TERMS, "vector chosen by a residual", "word sorted by stride"),
        _bit_sign,
        "+-1 inputs and taps: counts bits",
    ),
    Kernel(
        "bit-sliced",
        "bit-sliced sums",
        "images",
        lambda step, sources, result: isinstance(step, Conv) and sources[0].kind == "bits",
        (*_BIT_TERMS, "plane of counts written", "counts written beyond L2"),
        _bit_sums,
        "+-1 inputs and taps: counts bits",
    ),
    *(_real_kernel(kind, binary) for kind in ("f32", "f64") for binary in (True, False)),
    Kernel(
        "sparse 8-bit",
        "sparse levels",
        "images",
        lambda step, sources, result: isinstance(step, ConvAffine) and sources[0].kind in LEVELS,
        ("call", "tile", "tap", "tap beyond L1", "value", "value added to"),
        _levels,
        "8-bit inputs: +-1 taps add and subtract 16-bit integers",
    ),
    _combine_kernel("combine f32", lambda kind: kind == "f32"),
    _combine_kernel("combine levels", lambda kind: kind in LEVELS, bits=False),
    _combine_kernel("combine f64", lambda kind: kind == "f64"),
    _combine_kernel("combine sign", lambda kind: kind == "bits"),
    _pool_kernel("max pool bits", lambda step, kind: isinstance(step, MaxPool) and kind == "bits"),
    _pool_kernel(
        "max pool", lambda step, kind: isinstance(step, MaxPool) and kind not in ("bits", *LEVELS)
    ),
    _pool_kernel(
        "max pool levels", lambda step, kind: isinstance(step, MaxPool) and kind in LEVELS
    ),
    _pool_kernel("average pool", lambda step, kind: isinstance(step, AvgPool)),
    Kernel(
        "free",
        "flatten",
        "images",
        lambda step, sources, result: isinstance(step, Flatten),
        ("call",),
        _flatten,
        "lanes are images, so nothing moves",
    ),
)
LAYOUTS: tuple[str, ...] = tuple(dict.fromkeys(kernel.layout for kernel in KERNELS))


def kernels_for(step: Step, sources: Sources, result: Value, layout: str) -> list[Kernel]:
    """The kernels that can run `step` in `layout`; empty where no cost is known."""
    return [k for k in KERNELS if k.layout == layout and k.runs(step, sources, result)]
