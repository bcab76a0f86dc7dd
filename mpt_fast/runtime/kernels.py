"""The engine's kernels as the planner sees them: which work each does, and what it counts.

A kernel's time is modelled as a sum of a few counts, each times a coefficient fitted on the
machine (`calibration`). Work no kernel here claims has no prediction. A further way to do some
work is a further entry of KERNELS; the cheapest wins (`planner`), and all give the same result.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
from mpt_fast.runtime.work import L1, L2, Block, Work, beyond, bit_costs, far_lines, taps_inside

_SIGN_BYTES, _FLOAT_BYTES, _BIT_BYTES = 8.4, 20.0, 21.0  # of code for a tap, with its loads

# As in sparse_conv2d/cpu_code_layer.cpp: taps of a function and bytes of its input under a pixel;
# code that stays in a cache, and what sums of a band of rows take with such code and with more.
_FUNCTION_TAPS, _FUNCTION_SLICE = 4500, 36 * 1024
_NEAR_CODE, _NEAR_BAND, _FAR_BAND = 256 * 1024, 64 * 1024, 1024 * 1024
# From this density on channels share sums of inputs.
_LEAST_SHARED = 0.07
# As in sparse_conv2d/cpu_code.cpp: output channels whose sums AVX-512's registers hold, of floats
# that share no sums of inputs and else, and those of AVX2.
_FLOAT_SUMS, _SUMS, _AVX2_SUMS = 30, 28, 11


# Layouts with images in the lanes. Of programs without bits: values lie channel by channel, or
# pixel by pixel as layers read and write them that run as code made from their taps. Of programs
# with bits: a vector holds several pixels or a part of one, or it is one.
LISTS, CODE = "images", "images by pixels"
BITS, WHOLE = "images, bits", "images, bits in whole vectors"

Count = Callable[[Work, Block], tuple[float, ...]]


@dataclass(frozen=True)
class Kernel:
    """A way to do some work.

    `name` is what a plan prints; `case` what has coefficients of its own; `layout` how the values
    of the programs lie that have it. `terms` names the entries of `count`'s result for one block.
    """

    name: str
    case: str
    layout: str
    runs: Callable[[Work, Block], bool]
    terms: tuple[str, ...]
    count: Count
    why: str


_TAPS = ("tap", "tap outside the image", "tap beyond L1")
_BIT_TERMS = ("call", "vector", *_TAPS, "pixel sorted by stride")
_FAR = "line beyond L2"


def _tap_counts(conv: Work, adds: float, slice_bytes: float) -> tuple[float, float, float]:
    """`adds` additions of taps as _TAPS; `slice_bytes` of input or code serve one result."""
    step = conv.step
    assert isinstance(step, Conv | ConvAffine | ConvSign)
    visited = step.taps.kept * conv.result.height * conv.result.width
    share = taps_inside(step, conv.sources[0], conv.result) / max(1, visited)
    return adds * share, adds * (1 - share), adds * beyond(slice_bytes, L1)


def _bit_counts(conv: Work, block: Block) -> NDArray[np.float64]:
    """_BIT_TERMS but the call: vectors of results, additions to them, and pixels sorted."""
    step, result = conv.step, conv.result
    assert isinstance(step, Conv | ConvSign)
    outputs, inputs, height, width = step.taps.shape
    words = block.lanes // 64
    vectors = result.height * math.ceil(result.width * words / block.words)
    span = width if words < block.words else 1  # pixels read for one vector, per kernel row
    slice_bytes = 8 * inputs * height * (words * width if span == 1 else block.words + width)
    if block.whole_vectors:  # whose lists may lack the taps outside
        adds = bit_costs(conv)[0] * vectors
        taps = (adds, 0.0, adds * beyond(slice_bytes, L1))
    else:
        taps = _tap_counts(conv, step.taps.kept * vectors, slice_bytes)
    staged = step.stride[1] > 1 and words % block.words != 0
    moved = math.prod(conv.sources[0].shape) if staged else 0
    return np.array([outputs * vectors, *taps, moved])


def _bit_sign(work: Work, block: Block) -> tuple[float, ...]:
    step = work.step
    assert isinstance(step, ConvSign)
    counts = _bit_counts(work, block)
    chosen = counts[0] if step.residual >= 0 else 0
    return 1, *counts, chosen, far_lines(work, block)


def _bit_code(work: Work, block: Block) -> tuple[float, ...]:
    """The functions of all outputs, called pixel by pixel."""
    step, result = work.step, work.result
    assert isinstance(step, ConvSign)
    pixels = result.height * result.width
    vectors, kept = result.channels * pixels, step.taps.kept
    taps = _tap_counts(work, kept * pixels, kept * _BIT_BYTES)
    chosen = vectors if step.residual >= 0 else 0
    return 1, vectors, *taps, kept, chosen, far_lines(work, block)


def _runs_as_bit_code(work: Work, block: Block) -> bool:
    return isinstance(work.step, ConvSign) and block.bit_code and bit_costs(work)[1]


def _bit_sums(work: Work, block: Block) -> tuple[float, ...]:
    written = math.prod(work.result.shape) * block.groups
    return 1, *_bit_counts(work, block), written, far_lines(work, block)


def _bit_pair(work: Work, block: Block) -> tuple[float, ...]:
    counts = np.sum([_bit_counts(conv, block) for conv in work.find(Conv)], axis=0)
    return 1, *counts, far_lines(work, block)


def _is_bit_pair(work: Work, block: Block) -> bool:
    return len(work.inside) == 2 and len(work.find(Conv)) == 2 and work.result.kind == "bits"


def _joined_sums(work: Work, block: Block) -> tuple[float, ...]:
    """Convolutions, maxima of their sums where there are any, and what is made of them."""
    convs, pools = work.find(Conv), work.find(MaxPool)
    counts = np.sum([_bit_counts(conv, block) for conv in convs], axis=0)
    pooled = sum(math.prod(pool.sources[0].shape) for pool in pools) * block.groups
    values = math.prod(work.result.shape) * block.groups
    joined = values * len(work.sources) * (2 if work.result.kind in ("f64", "bits") else 1)
    return 1, *counts, pooled, values * len(convs), joined, far_lines(work, block)


def _conv_of(work: Work) -> Work:
    """The convolution of reals or levels, of which perhaps only maxima are stored."""
    (conv,) = work.find(ConvAffine, Conv) if isinstance(work.step, MaxPool) else (work,)
    return conv


def _real(work: Work, block: Block) -> tuple[float, ...]:
    conv = _conv_of(work)
    step, result = conv.step, conv.result
    assert isinstance(step, Conv | ConvAffine)
    _, inputs, height, width = step.taps.shape
    pixels = result.height * result.width * block.groups
    size = 128 if conv.sources[0].kind == "f64" else 64
    tiles = result.channels * result.height * math.ceil(result.width / 4) * block.groups
    slice_bytes = size * inputs * height * (width + 3)
    extra = 0 if isinstance(step, Conv) or (step.act != "sign" and step.residual < 0) else 1
    values = result.channels * pixels
    pooled = 0 if conv is work else values
    return (
        1,
        tiles,
        *_tap_counts(conv, step.taps.kept * pixels, slice_bytes),
        values - pooled,
        extra * values,
        pooled,
        far_lines(work, block),
    )


def _levels(work: Work, block: Block) -> tuple[float, ...]:
    return _real(work, replace(block, groups=math.ceil(block.groups / 2)))  # 32 to a vector


def _filtered(work: Work, block: Block) -> tuple[float, ...]:
    step, result = work.step, work.result
    assert isinstance(step, ConvAffine)
    pixels = result.height * result.width * block.groups
    return 1, result.channels * pixels, step.taps.kept * pixels, far_lines(work, block)


def _code(work: Work, block: Block) -> tuple[float, ...]:
    """Functions of a block of inputs and a part of outputs, called for the pixels of a band."""
    conv = _conv_of(work)
    step, result = conv.step, conv.result
    assert isinstance(step, Conv | ConvAffine)
    outputs, inputs, height, width = step.taps.shape
    kept, area = step.taps.kept, height * width
    levels = conv.sources[0].kind in LEVELS
    groups = math.ceil(block.groups / 2) if levels else block.groups  # 32 images to a vector
    channels = min(
        _FUNCTION_TAPS * outputs * inputs / max(1, kept) / min(24, outputs),
        _FUNCTION_SLICE / (64 * area),
    )
    blocks = math.ceil(inputs / max(1, int(channels)))
    if levels:
        blocks = max(blocks, math.ceil(kept / outputs / 200))  # as many fit 16-bit sums
    shares = step.taps.binary and kept >= _LEAST_SHARED * step.taps.weights
    sums = _SUMS if shares or levels else _FLOAT_SUMS
    parts = math.ceil(outputs / (sums if block.words == 8 else _AVX2_SUMS))

    size = kept * (_SIGN_BYTES if step.taps.binary else _FLOAT_BYTES)
    row_bytes = 64 * result.width * (outputs if blocks > 1 else math.ceil(outputs / parts))
    band = _FAR_BAND if size > _NEAR_CODE else _NEAR_BAND
    rows = min(result.height, max(1, band // row_bytes, 16 // result.width))
    # Every band fetches code that the L2 cache does not hold.
    bands = 1 + (math.ceil(result.height / rows) - 1) * min(1.0, beyond(size, L2))
    fetched = kept * bands * groups

    pixels = result.height * result.width * groups
    pieces = max(parts, step.groups)  # of outputs that read the same inputs
    read = 1 - (1 - kept / step.taps.weights) ** (outputs / pieces)
    loaded = pieces * inputs * area * read * pixels
    # What a row of results touches should lie near until the next: input, results and code.
    row = 64 * (inputs * height * (conv.sources[0].width + 1) + outputs * result.width)
    near = row + min(size, L2 / 2)
    values = outputs * pixels
    pooled = 0 if conv is work else values
    return (
        1,
        *_tap_counts(conv, kept * pixels, size / blocks / parts),
        loaded,
        loaded * beyond(near, L2),
        values - pooled,
        values * (blocks - 1),
        fetched,
        fetched * max(0.0, 1 - result.height * result.width / 8),  # no other pixel hides it
        values if isinstance(step, ConvAffine) and step.residual >= 0 else 0,
        pooled,
        far_lines(work, block),
    )


def _combine(work: Work, block: Block) -> tuple[float, ...]:
    values = math.prod(work.result.shape) * block.groups
    bits = sum(source.kind == "bits" for source in work.sources) * values
    return 1, values, values * len(work.sources), far_lines(work, block), bits


def _pool(work: Work, block: Block) -> tuple[float, ...]:
    step, result = work.step, work.result
    assert isinstance(step, MaxPool | AvgPool)
    parts = math.ceil(block.lanes / 64 / block.words) if result.kind == "bits" else block.groups
    values = math.prod(result.shape) * parts
    read = values * math.prod(step.kernel) * (2 if result.kind == "f64" else 1)
    return 1, values, read, far_lines(work, block)


def _flatten(work: Work, block: Block) -> tuple[float, ...]:
    return (1,)


def _flatten_copy(work: Work, block: Block) -> tuple[float, ...]:
    return 1, math.prod(work.result.shape) * block.groups, far_lines(work, block)


def _single(value: Value) -> bool:
    """One pixel."""
    return value.height * value.width == 1


def _real_conv(work: Work, kinds: tuple[str, ...], binary: bool) -> bool:
    if isinstance(work.step, MaxPool) and not work.inside:
        return False
    conv = _conv_of(work)
    return (
        isinstance(conv.step, Conv | ConvAffine)
        and conv.sources[0].kind in kinds
        and conv.step.taps.binary == binary
        and not _is_filtered(work)
    )


def _is_filtered(work: Work) -> bool:
    """Signs in float where that is certain: the conversion to double is left out."""
    return isinstance(work.step, ConvAffine) and bool(work.inside)


def _real_kernel(kind: str, binary: bool) -> Kernel:
    taps = "+-1 taps add and subtract" if binary else "float taps multiply"
    return Kernel(
        "sparse",
        f"sparse {kind} {'signs' if binary else 'floats'}",
        LISTS,
        lambda work, block: _real_conv(work, (kind,), binary),
        ("call", "tile", *_TAPS, "value", "value signed or added to", "value pooled", _FAR),
        _real,
        f"{kind} inputs: {taps}",
    )


def _filtered_kernel(binary: bool) -> Kernel:
    taps = "+-1 taps add and subtract" if binary else "float taps multiply"
    return Kernel(
        "sparse",
        f"sparse filtered {'signs' if binary else 'floats'}",
        LISTS,
        lambda work, block: _is_filtered(work) and work.step.taps.binary == binary,  # type: ignore[attr-defined]
        ("call", "value", "tap", _FAR),
        _filtered,
        f"f32 inputs: {taps}; signs in double only where float is not certain",
    )


def _code_kernel(kind: str, binary: bool) -> Kernel:
    """`kind`: "f32" or "levels"."""
    levels = kind == "levels"
    taps = "an addition" if binary else "a multiplication and an addition"
    return Kernel(
        "sparse 8-bit code" if levels else "sparse code",
        f"code {kind} {'signs' if binary else 'floats'}",
        CODE,
        lambda work, block: _real_conv(work, tuple(LEVELS) if levels else (kind,), binary),
        (
            "call",
            *_TAPS,
            "input vector loaded",
            "input vector beyond L2",
            "value",
            "value kept between blocks",
            "tap's code fetched",
            "tap's code waited for",
            "value added to",
            "value pooled",
            _FAR,
        ),
        _code,
        f"{'8-bit' if levels else kind} inputs: {taps} of registers per tap, as machine code",
    )


def _pool_kernel(case: str, fits: Callable[[Step, str], bool]) -> Kernel:
    return Kernel(
        "pool",
        case,
        LISTS,
        lambda work, block: fits(work.step, work.result.kind) and not work.inside,
        ("call", "value", "value read", _FAR),
        _pool,
        "window",
    )


def _combine_kernel(case: str, fits: Callable[[str], bool], bits: bool = True) -> Kernel:
    """`bits`: whether a source may be bits."""
    terms = ("call", "value", "value read", _FAR, "value read from bits")[: 5 if bits else 4]
    return Kernel(
        "elementwise",
        case,
        LISTS,
        lambda work, block: (
            isinstance(work.step, Combine) and fits(work.result.kind) and not work.inside
        ),
        terms,
        lambda *arguments: _combine(*arguments)[: len(terms)],
        "joins or converts",
    )


def _in_layout(kernel: Kernel, layout: str) -> Kernel:
    """The same in another layout."""
    return replace(kernel, case=f"{kernel.case}{layout.removeprefix(LISTS)}", layout=layout)


def _of_code(kernel: Kernel) -> Kernel:
    """The same in programs whose layers run as code."""
    return replace(
        kernel,
        case=f"{kernel.case} by pixels",
        layout=CODE,
        terms=kernel.terms[:4],  # there are no bits
        count=lambda *arguments: kernel.count(*arguments)[:4],
    )


_REAL_STEPS = (
    _combine_kernel("combine f32", lambda kind: kind == "f32"),
    _pool_kernel(
        "max pool", lambda step, kind: isinstance(step, MaxPool) and kind not in ("bits", *LEVELS)
    ),
    _pool_kernel("average pool", lambda step, kind: isinstance(step, AvgPool)),
)

_LEVEL_STEPS = (
    _combine_kernel("combine levels", lambda kind: kind in LEVELS, bits=False),
    _pool_kernel(
        "max pool levels", lambda step, kind: isinstance(step, MaxPool) and kind in LEVELS
    ),
)

_BIT_STEPS: tuple[Kernel, ...] = (
    Kernel(
        "bit-sliced",
        "bit-sliced sign",
        LISTS,
        lambda work, block: isinstance(work.step, ConvSign) and not _runs_as_bit_code(work, block),
        (*_BIT_TERMS, "vector chosen by a residual", _FAR),
        _bit_sign,
        "+-1 inputs and taps: counts bits",
    ),
    Kernel(
        "bit-sliced",
        "bit-sliced sums",
        LISTS,
        lambda work, block: isinstance(work.step, Conv) and work.sources[0].kind == "bits",
        (*_BIT_TERMS, "value", _FAR),
        _bit_sums,
        "+-1 inputs and taps: counts bits",
    ),
    Kernel(
        "bit-sliced pair",
        "bit-sliced pair",
        LISTS,
        _is_bit_pair,
        (*_BIT_TERMS, _FAR),
        _bit_pair,
        "two convolutions of bits and the sign of their sum, decided in integers",
    ),
    Kernel(
        "bit-sliced, joined",
        "bit-sliced joined sums",
        LISTS,
        lambda work, block: (
            isinstance(work.step, Combine)
            and bool(work.find(Conv))
            and not _is_bit_pair(work, block)
        ),
        (*_BIT_TERMS, "value pooled", "value", "value joined", _FAR),
        _joined_sums,
        "convolutions of bits and what is made of their sums, a few channels at a time",
    ),
    *(_filtered_kernel(binary) for binary in (True, False)),
    _combine_kernel("combine sign", lambda kind: kind == "bits"),
    _pool_kernel("max pool bits", lambda step, kind: isinstance(step, MaxPool) and kind == "bits"),
    Kernel(
        "pool",
        "average pool of bits",
        LISTS,
        lambda work, block: isinstance(work.step, AvgPool) and bool(work.inside),
        ("call", "value", "value read", _FAR),
        _pool,
        "window over bits",
    ),
)

_REAL_PROGRAMS: tuple[Kernel, ...] = (
    *(_real_kernel(kind, binary) for kind in ("f32", "f64") for binary in (True, False)),
    *_REAL_STEPS,
    _combine_kernel("combine f64", lambda kind: kind == "f64"),
    Kernel(
        "free",
        "flatten",
        LISTS,
        lambda work, block: isinstance(work.step, Flatten),
        ("call",),
        _flatten,
        "lanes are images, so nothing moves",
    ),
)

KERNELS: tuple[Kernel, ...] = (
    *_REAL_PROGRAMS,
    Kernel(
        "sparse 8-bit",
        "sparse levels",
        LISTS,
        lambda work, block: _real_conv(work, tuple(LEVELS), True),
        ("call", "tile", *_TAPS, "value", "value added to", "value pooled", _FAR),
        _levels,
        "8-bit inputs: +-1 taps add and subtract 16-bit integers",
    ),
    *_LEVEL_STEPS,
    *(
        _in_layout(kernel, layout)
        for layout in (BITS, WHOLE)
        for kernel in (*_BIT_STEPS, *_REAL_PROGRAMS)
    ),
    Kernel(
        "bit-sliced code",
        "bit-sliced code sign",
        WHOLE,
        _runs_as_bit_code,
        (
            "call",
            "vector",
            *_TAPS,
            "tap's code fetched",
            "vector chosen by a residual",
            _FAR,
        ),
        _bit_code,
        "+-1 inputs and taps: counts bits, as machine code",
    ),
    _code_kernel("f32", binary=True),
    _code_kernel("f32", binary=False),
    _code_kernel("levels", binary=True),
    *map(_of_code, (*_REAL_STEPS, *_LEVEL_STEPS)),
    Kernel(
        "free",
        "flatten single pixels",
        CODE,
        lambda work, block: isinstance(work.step, Flatten) and _single(work.sources[0]),
        ("call",),
        _flatten,
        "lanes are images, so nothing moves",
    ),
    Kernel(
        "copy",
        "flatten by pixels",
        CODE,
        lambda work, block: isinstance(work.step, Flatten) and not _single(work.sources[0]),
        ("call", "value", _FAR),
        _flatten_copy,
        "the channels of a pixel lie side by side",
    ),
)
LAYOUTS: tuple[str, ...] = tuple(dict.fromkeys(kernel.layout for kernel in KERNELS))


def kernels_for(work: Work, block: Block) -> list[Kernel]:
    """The kernels that can do `work` in `block`; empty where no cost is known."""
    return [k for k in KERNELS if k.layout == block.layout and k.runs(work, block)]
