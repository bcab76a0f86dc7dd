"""The engine's kernels as the planner sees them: which steps each can run, and what it counts.

A kernel's time is modelled as a sum of a few counts, each times a coefficient fitted on the
machine (`calibration`). A step no kernel here claims has no prediction. A further way to run a
step is a further entry of KERNELS; the cheapest wins (`planner`), and all give the same result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from mpt_fast.kernels import cpu
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
    Taps,
    Value,
)

_L1, _L2 = 32 * 1024, 512 * 1024  # bytes; on a machine with others the coefficients absorb it
_SIGN_BYTES, _FLOAT_BYTES = 8.4, 20.0  # of code for a tap, with its share of loads

# As in sparse_conv2d/cpu_code_layer.cpp: taps of a function and bytes of its input under a pixel;
# code that stays in a cache, and what sums of a band of rows take with such code and with more.
_FUNCTION_TAPS, _FUNCTION_SLICE = 4500, 36 * 1024
_NEAR_CODE, _NEAR_BAND, _FAR_BAND = 256 * 1024, 64 * 1024, 1024 * 1024


# Layouts with images in the lanes: values lie channel by channel, or pixel by pixel as layers read
# and write them that run as code made from their taps. Or the first, where layers of bits run as
# code, which does not change how their values lie.
IMAGES, CODE, BIT_CODE = "images", "images by pixels", "images, bits by code"


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

    `name` is what a plan prints; `case` what has coefficients of its own; `layout` how the values
    of the programs lie that have it. `terms` names the entries of `count`'s result for one block.
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
    return min(6.0, math.log2(max(1.0, 2 * size / cache)))


def _whole_vectors(block: Block) -> bool:
    """As in cpu/tasks.h: a pixel is one vector. Then channels share sums, or code adds."""
    return block.words == 8 and block.lanes == 512


def _bit_visits(
    step: Conv | ConvSign | ConvAffine, source: Value, result: Value, block: Block
) -> tuple[float, float, float]:
    """(vectors written, vectors added, the latter times how far their input lies)."""
    outputs, inputs, height, width = step.taps.shape
    words = block.lanes // 64
    vectors = result.height * math.ceil(result.width * words / block.words)
    span = width if words < block.words else 1  # pixels read for one vector, per kernel row
    slice_bytes = 8 * inputs * height * (words * width if span == 1 else block.words + width)
    adds = (_bit_costs(step, source)[0] if _whole_vectors(block) else step.taps.kept) * vectors
    return outputs * vectors, adds, adds * _beyond(slice_bytes, _L1)


_known_costs: WeakKeyDictionary[Taps, dict[tuple[object, ...], tuple[float, bool]]] = (
    WeakKeyDictionary()
)


def _bit_costs(step: Conv | ConvSign | ConvAffine, source: Value) -> tuple[float, bool]:
    """The engine's word: additions for a vector of 512 images, and whether code makes them."""
    taps = step.taps
    known = _known_costs.setdefault(taps, {})
    geometry = (step.stride, step.padding, step.dilation, step.groups)
    key = (source.shape, *geometry)
    if key not in known:
        known[key] = cpu.engine().bitsliced_conv2d_costs(
            source.shape, taps.indptr, taps.index, taps.value, taps.shape, *geometry
        )
    return known[key]


def _bit_sign(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, ConvSign)
    visits, adds, far = _bit_visits(step, sources[0], result, block)
    staged = step.stride[1] > 1 and (block.lanes // 64) % block.words != 0
    moved = math.prod(sources[0].shape) * (block.lanes // 64) if staged else 0
    return 1, visits, adds, far, visits if step.residual >= 0 else 0, moved


def _bit_code(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    """The functions of all outputs, called pixel by pixel; narrow blocks still have lists."""
    assert isinstance(step, ConvSign)
    if not _whole_vectors(block):
        _, visits, adds, far, chosen, moved = _bit_sign(step, sources, result, block)
        return 1, 0, 0, 0, 0, chosen, visits, adds, far, moved
    pixels = result.height * result.width
    visits, adds = result.channels * pixels, step.taps.kept * pixels
    read = sources[0].channels * pixels * step.stride[1]
    chosen = visits if step.residual >= 0 else 0
    return 1, visits, adds, step.taps.kept, read, chosen, 0, 0, 0, 0


def _runs_as_bit_code(step: Step, source: Value) -> bool:
    return isinstance(step, ConvSign) and _bit_costs(step, source)[1]


def _bit_sums(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    assert isinstance(step, Conv)
    visits, adds, far = _bit_visits(step, sources[0], result, block)
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


def _code(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    """Functions of a block of inputs and a part of outputs, called for the pixels of a band."""
    assert isinstance(step, Conv | ConvAffine)
    outputs, inputs, height, width = step.taps.shape
    kept, area = step.taps.kept, height * width
    levels = sources[0].kind in LEVELS
    groups = math.ceil(block.groups / 2) if levels else block.groups  # 32 images to a vector
    channels = min(
        _FUNCTION_TAPS * outputs * inputs / max(1, kept) / min(24, outputs),
        _FUNCTION_SLICE / (64 * area),
    )
    blocks = math.ceil(inputs / max(1, int(channels)))
    if levels:
        blocks = max(blocks, math.ceil(kept / outputs / 200))  # as many fit 16-bit sums
    parts = math.ceil(outputs / (27 if block.words == 8 else 11))  # by the vector registers

    size = kept * (_SIGN_BYTES if step.taps.binary else _FLOAT_BYTES)
    row_bytes = 64 * result.width * (outputs if blocks > 1 else math.ceil(outputs / parts))
    band = _FAR_BAND if size > _NEAR_CODE else _NEAR_BAND
    rows = min(result.height, max(1, band // row_bytes, 16 // result.width))
    # Every band fetches code that the L2 cache does not hold.
    bands = 1 + (math.ceil(result.height / rows) - 1) * min(1.0, _beyond(size, _L2))
    fetched = kept * bands * groups

    pixels = result.height * result.width * groups
    pieces = max(parts, step.groups)  # of outputs that read the same inputs
    read = 1 - (1 - kept / step.taps.weights) ** (outputs / pieces)
    adds, written = kept * pixels, outputs * pixels
    return (
        1,
        adds,
        adds * _beyond(size / blocks / parts, _L1),
        pieces * inputs * area * read * pixels,
        written,
        written * (blocks - 1),
        fetched,
        fetched * max(0.0, 1 - result.height * result.width / 8),  # no other pixel hides it
        written if isinstance(step, ConvAffine) and step.residual >= 0 else 0,
    )


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


def _flatten_copy(step: Step, sources: Sources, result: Value, block: Block) -> tuple[float, ...]:
    return 1, math.prod(result.shape) * block.groups


def _single(value: Value) -> bool:
    """One pixel."""
    return value.height * value.width == 1


def _real_kernel(kind: str, binary: bool) -> Kernel:
    def runs(step: Step, sources: Sources, result: Value) -> bool:
        if not isinstance(step, Conv | ConvAffine) or sources[0].kind != kind:
            return False
        return step.taps.binary == binary

    taps = "+-1 taps add and subtract" if binary else "float taps multiply"
    return Kernel(
        "sparse",
        f"sparse {kind} {'signs' if binary else 'floats'}",
        IMAGES,
        runs,
        ("call", "tile", "tap", "tap beyond L1", "value", "value signed or added to"),
        _real,
        f"{kind} inputs: {taps}",
    )


def _code_kernel(kind: str, binary: bool) -> Kernel:
    """`kind`: "f32" or "levels"."""
    levels = kind == "levels"

    def runs(step: Step, sources: Sources, result: Value) -> bool:
        if not isinstance(step, Conv | ConvAffine) or step.taps.binary != binary:
            return False
        return sources[0].kind in (LEVELS if levels else (kind,))

    taps = "an addition" if binary else "a multiplication and an addition"
    return Kernel(
        "sparse 8-bit code" if levels else "sparse code",
        f"code {kind} {'signs' if binary else 'floats'}",
        CODE,
        runs,
        (
            "call",
            "tap",
            "tap of functions beyond L1",
            "input vector loaded",
            "value",
            "value kept between blocks",
            "tap's code fetched",
            "tap's code waited for",
            "value added to",
        ),
        _code,
        f"{'8-bit' if levels else kind} inputs: {taps} of registers per tap, as machine code",
    )


def _pool_kernel(case: str, fits: Callable[[Step, str], bool]) -> Kernel:
    return Kernel(
        "pool",
        case,
        IMAGES,
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
        IMAGES,
        lambda step, sources, result: isinstance(step, Combine) and fits(result.kind),
        terms,
        lambda *arguments: _combine(*arguments)[: len(terms)],
        "joins or converts",
    )


def _beside_bit_code(kernel: Kernel) -> Kernel:
    """The same in programs whose layers of bits run as code where they have few taps."""

    def runs(step: Step, sources: Sources, result: Value) -> bool:
        return kernel.runs(step, sources, result) and not _runs_as_bit_code(step, sources[0])

    return replace(kernel, case=f"{kernel.case} beside code of bits", layout=BIT_CODE, runs=runs)


def _of_code(kernel: Kernel) -> Kernel:
    """The same in programs whose layers run as code."""
    return replace(
        kernel,
        case=f"{kernel.case} by pixels",
        layout=CODE,
        terms=kernel.terms[:3],  # there are no bits
        count=lambda *arguments: kernel.count(*arguments)[:3],
    )


_BIT_TERMS = ("call", "vector", "tap", "tap beyond L1")

_REAL_STEPS = (
    _combine_kernel("combine f32", lambda kind: kind == "f32"),
    _combine_kernel("combine levels", lambda kind: kind in LEVELS, bits=False),
    _pool_kernel(
        "max pool", lambda step, kind: isinstance(step, MaxPool) and kind not in ("bits", *LEVELS)
    ),
    _pool_kernel(
        "max pool levels", lambda step, kind: isinstance(step, MaxPool) and kind in LEVELS
    ),
    _pool_kernel("average pool", lambda step, kind: isinstance(step, AvgPool)),
)

_IMAGES: tuple[Kernel, ...] = (
    Kernel(
        "bit-sliced",
        "bit-sliced sign",
        IMAGES,
        lambda step, sources, result: isinstance(step, ConvSign),
        (*_BIT_TERMS, "vector chosen by a residual", "word sorted by stride"),
        _bit_sign,
        "+-1 inputs and taps: counts bits",
    ),
    Kernel(
        "bit-sliced",
        "bit-sliced sums",
        IMAGES,
        lambda step, sources, result: isinstance(step, Conv) and sources[0].kind == "bits",
        (*_BIT_TERMS, "plane of counts written", "counts written beyond L2"),
        _bit_sums,
        "+-1 inputs and taps: counts bits",
    ),
    *(_real_kernel(kind, binary) for kind in ("f32", "f64") for binary in (True, False)),
    Kernel(
        "sparse 8-bit",
        "sparse levels",
        IMAGES,
        lambda step, sources, result: isinstance(step, ConvAffine) and sources[0].kind in LEVELS,
        ("call", "tile", "tap", "tap beyond L1", "value", "value added to"),
        _levels,
        "8-bit inputs: +-1 taps add and subtract 16-bit integers",
    ),
    *_REAL_STEPS,
    _combine_kernel("combine f64", lambda kind: kind == "f64"),
    _combine_kernel("combine sign", lambda kind: kind == "bits"),
    _pool_kernel("max pool bits", lambda step, kind: isinstance(step, MaxPool) and kind == "bits"),
    Kernel(
        "free",
        "flatten",
        IMAGES,
        lambda step, sources, result: isinstance(step, Flatten),
        ("call",),
        _flatten,
        "lanes are images, so nothing moves",
    ),
)

KERNELS: tuple[Kernel, ...] = (
    *_IMAGES,
    Kernel(
        "bit-sliced code",
        "bit-sliced code sign",
        BIT_CODE,
        lambda step, sources, result: _runs_as_bit_code(step, sources[0]),
        (
            "call",
            "vector",
            "tap",
            "tap's code fetched",
            "input vector read",
            "vector chosen by a residual",
            "vector by lists",
            "tap by lists",
            "tap by lists beyond L1",
            "word sorted by stride",
        ),
        _bit_code,
        "+-1 inputs and taps: counts bits, as machine code",
    ),
    *map(_beside_bit_code, _IMAGES),
    _code_kernel("f32", binary=True),
    _code_kernel("f32", binary=False),
    _code_kernel("levels", binary=True),
    *map(_of_code, _REAL_STEPS),
    Kernel(
        "free",
        "flatten single pixels",
        CODE,
        lambda step, sources, result: isinstance(step, Flatten) and _single(sources[0]),
        ("call",),
        _flatten,
        "lanes are images, so nothing moves",
    ),
    Kernel(
        "copy",
        "flatten by pixels",
        CODE,
        lambda step, sources, result: isinstance(step, Flatten) and not _single(sources[0]),
        ("call", "value"),
        _flatten_copy,
        "the channels of a pixel lie side by side",
    ),
)
LAYOUTS: tuple[str, ...] = tuple(dict.fromkeys(kernel.layout for kernel in KERNELS))


def kernels_for(step: Step, sources: Sources, result: Value, layout: str) -> list[Kernel]:
    """The kernels that can run `step` in `layout`; empty where no cost is known."""
    return [k for k in KERNELS if k.layout == layout and k.runs(step, sources, result)]
