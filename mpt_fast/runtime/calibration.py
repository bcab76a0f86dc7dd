"""Coefficients of the cost model: measured once on this machine, then kept in a file.

Small synthetic layers run through the engine's own programs and step clock, at full and at small
batches; each kernel's coefficients are the non-negative least-squares fit of the relative error.

Programs whose layers run as machine code have coefficients of their own, measured when a plan first
asks for them.

The file lies in the user's cache folder ($XDG_CACHE_HOME/mpt_fast, else ~/.cache/mpt_fast).
MPT_FAST_CACHE names another folder, or switches it off where it is empty. Its key is the
processor, the instruction set, the engine's build, the threads, the layout and the model's terms;
a file that is damaged or has another key is measured anew.
"""

import functools
import hashlib
import itertools
import json
import logging
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.kernels import cpu
from mpt_fast.runtime.container import FileError, write_whole
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.kernels import BIT_CODE, CODE, IMAGES, KERNELS, Block, Kernel, kernels_for
from mpt_fast.runtime.processor import processor
from mpt_fast.runtime.program import Flatten, Kind, Program
from mpt_fast.runtime.synthetic import Synthetic

logger = logging.getLogger("mpt_fast")

CACHE = "MPT_FAST_CACHE"
_FORMAT = 3  # raised when a count changes its meaning; names of terms are checked by themselves
_REPEATS = 8
_SECONDS = 0.6  # no further repetition is begun after that

Costs = Mapping[str, tuple[float, ...]]
"""Coefficients in seconds by `Kernel.case`, in the order of its terms."""


def layout_of(compiled: CompiledProgram, batch: int) -> str:
    """The layout in which `compiled` runs a batch with images in the lanes.

    Code of bits is for blocks of full width alone.
    """
    if compiled.code:
        return CODE
    full = compiled.block_lanes(batch) == compiled.lanes
    return BIT_CODE if compiled.bit_code and full else IMAGES


def kernels_of(layout: str) -> list[Kernel]:
    """The kernels that have coefficients in a layout."""
    return [kernel for kernel in KERNELS if kernel.layout == layout]


def blocks(compiled: CompiledProgram, batch: int) -> list[Block]:
    """The blocks in which `compiled` runs a batch."""
    words = cpu.engine().vector_words(compiled.isa)
    found = []
    while batch > 0:
        lanes = compiled.block_lanes(batch)
        found.append(Block(lanes, math.ceil(min(lanes, batch) / 16), words))
        batch -= lanes
    return found


@functools.lru_cache(maxsize=32)
def costs(isa: str, threads: int, layout: str) -> Costs:
    """The coefficients of a layout's kernels for an instruction set and threads, read or fitted."""
    key = _key(isa, threads, layout)
    path = _path(key)
    known = _read(path, key, layout) if path is not None else None
    if known is not None:
        return known
    start = time.perf_counter()
    fitted = fit(measure(isa, threads, layout))
    logger.info(
        "cost model of %s, %s, %d threads: fitted in %.1f s",
        isa,
        layout,
        threads,
        time.perf_counter() - start,
    )
    if path is not None:
        _write(path, key, fitted)
    return fitted


def _key(isa: str, threads: int, layout: str) -> dict[str, Any]:
    name, flags = processor()
    return {
        "format": _FORMAT,
        "terms": {kernel.case: list(kernel.terms) for kernel in kernels_of(layout)},
        "layout": layout,
        "processor": name or platform.processor() or platform.machine(),
        "instruction_sets": flags,
        "isa": isa,
        "engine": cpu.engine().source_digest,
        "threads": threads,
    }


def _path(key: Mapping[str, Any]) -> Path | None:
    """The cache file of `key`; None where there is to be none."""
    named = os.environ.get(CACHE)
    if named == "":
        return None
    if named is None:
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification has relative paths ignored.
        folder = (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "mpt_fast"
    else:
        folder = Path(named)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"costs-{digest}.json"


def _read(path: Path, key: Mapping[str, Any], layout: str) -> Costs | None:
    """The coefficients in the file; None unless it is whole, of this key and of these kernels."""
    try:
        data = json.loads(path.read_bytes())
        stored = data["costs"] if data["key"] == key else {}
        known = {case: tuple(float(c) for c in values) for case, values in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    lengths = {kernel.case: len(kernel.terms) for kernel in kernels_of(layout)}
    numbers = itertools.chain.from_iterable(known.values())
    whole = {case: len(values) for case, values in known.items()} == lengths
    return known if whole and all(math.isfinite(c) and c >= 0 for c in numbers) else None


def _write(path: Path, key: Mapping[str, Any], fitted: Costs) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(json.dumps({"key": key, "costs": fitted}, indent=1).encode(), path)
    except (OSError, FileError) as error:
        logger.info("the cost model is not kept: %s", error)


class Point(NamedTuple):
    """One measured step: its kernel's case, what it counted over all blocks, and the time."""

    case: str
    counts: tuple[float, ...]
    seconds: float


def points(
    compiled: CompiledProgram, program: Program, times: Sequence[float], batch: int, layout: str
) -> Iterator[Point]:
    """What the step clock of a run of `batch` images tells, step by step, of a layout's kernels."""
    values = program.values()
    parts = blocks(compiled, batch)
    for step, result, seconds in zip(program.steps, values[1:], times, strict=True):
        if seconds == 0:  # done inside a later step
            continue
        sources = [values[source] for source in step.sources()]
        for kernel in kernels_for(step, sources, result, layout):
            counts = [kernel.count(step, sources, result, block) for block in parts]
            yield Point(kernel.case, tuple(map(sum, zip(*counts, strict=True))), seconds)


def measure(isa: str, threads: int, layout: str) -> list[Point]:
    """Times of a layout's synthetic layers: of each the least of a few runs, in seconds."""
    end = time.perf_counter() + _SECONDS
    rng = np.random.default_rng(0)
    runs = []
    for program, batches in _code_programs() if layout == CODE else _programs():
        has_bits = any(value.kind == "bits" for value in program.values())
        code = layout == CODE or (layout == BIT_CODE and has_bits)
        compiled = CompiledProgram(program, program.input_kind, isa, "images", code)
        for batch in (min(batch, compiled.lanes) for batch in batches):
            x = rng.standard_normal((batch, *program.input))
            x = x.astype(np.float32 if program.input_kind == "f32" else np.float64)
            runs.append((compiled, program, batch, x))
    found: list[Point] = []
    least: dict[int, NDArray] = {}
    for repeat in range(_REPEATS + 1):  # the first run of each fills the caches
        if repeat > 1 and time.perf_counter() > end:
            break
        for number, (compiled, _, _, x) in enumerate(runs):
            compiled(x, threads)
            times = np.array(compiled.step_times())
            least[number] = np.minimum(times, least[number]) if repeat > 1 else times
    for number, (compiled, program, batch, _) in enumerate(runs):
        found += points(compiled, program, least[number].tolist(), batch, layout)
    return found


def fit(measured: Sequence[Point]) -> Costs:
    """Coefficients of every kernel measured, with the least relative error over its points."""
    by_case: dict[str, list[Point]] = defaultdict(list)
    for point in measured:
        by_case[point.case].append(point)
    fitted = {}
    for kernel in KERNELS:
        if kernel.case not in by_case:
            continue
        own = by_case[kernel.case]
        counts = np.array([point.counts for point in own])
        seconds = np.array([max(point.seconds, 1e-9) for point in own])
        fitted[kernel.case] = tuple(nonnegative(counts / seconds[:, None], np.ones(len(own))))
    return fitted


def nonnegative(matrix: NDArray, target: NDArray) -> list[float]:
    """The x >= 0 of least ‖matrix·x − target‖: exact, by trying every support.

    At the optimum the entries above zero are the unconstrained solution on their own columns, so
    the best feasible one of the 2^columns solutions is it. For a handful of columns.
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), float(target @ target)
    for mask in range(1, 1 << columns):
        support = [k for k in range(columns) if mask >> k & 1 and matrix[:, k].any()]
        if len(support) != mask.bit_count():
            continue
        scale = np.linalg.norm(matrix[:, support], axis=0)
        solution = np.linalg.lstsq(matrix[:, support] / scale, target, rcond=None)[0] / scale
        residual = matrix[:, support] @ solution - target
        if (solution >= 0).all() and float(residual @ residual) < least * (1 - 1e-12):
            best, least = np.zeros(columns), float(residual @ residual)
            best[support] = solution
    return best.tolist()


def _programs() -> list[tuple[Program, tuple[int, ...]]]:
    """Layers of several widths, maps, densities and kinds, each with the batches it is run at."""
    found: list[tuple[Program, tuple[int, ...]]] = []
    for channels, side, densities in (
        (32, 12, (0.5, 0.2, 0.05)),
        (64, 8, (0.5, 0.1, 0.03)),
        (128, 4, (0.5, 0.1, 0.03)),
        (320, 3, (0.2, 0.05)),
    ):
        net = Synthetic((channels, side, side))
        bits = net.combine(0, "bits")
        for density in densities:
            last = net.sign(bits, channels // 2, 3, density)
        net.sign(bits, channels // 2, 3, 0.1, residual=last)
        net.sign(bits, channels // 2, 3, 0.1, stride=2)
        net.sign(bits, channels // 2, 1, 0.3)
        net.sums(bits, channels // 4, 3, 0.1)
        sums = net.sums(bits, channels // 4, 1, 0.3)
        kinds: tuple[Kind, ...] = ("f32", "f64", "bits")
        for kind in kinds:
            net.combine(sums, kind)
            net.combine(last, kind)
            net.combine(last, kind, last)
        net.pool(bits, 2)
        net.pool(bits, side)
        found.append((net.program(), (1, 512)))
    net = Synthetic((48, 12, 12))
    net.sums(net.combine(0, "bits"), 48, 1, 0.2)
    found.append((net.program(), (512,)))
    for channels in (256, 1024):
        net = Synthetic((channels, 1, 1))
        bits = net.combine(0, "bits")
        net.sums(bits, 10, 1, 0.5)
        sums = net.sums(bits, 100, 1, 0.1)
        for kind in ("f32", "f64"):  # two readers keep the sums a step of their own
            net.combine(sums, kind)
        net.sign(bits, 128, 1, 0.2)
        net.add(Flatten(src=bits))
        found.append((net.program(), (1, 512)))
    for channels, side in ((16, 16), (64, 8), (192, 4), (512, 1)):
        net = Synthetic((channels, side, side))
        level = net.combine(0, "i8")
        size, outputs = 1 if side == 1 else 3, max(16, channels // 4)
        for density in (0.5, 0.15, 0.04):
            last = net.levels(level, outputs, size, density)
        net.levels(level, outputs, size, 0.2, residual=last)
        net.combine(last, "i8", last)
        if side > 1:
            net.pool(level, 2)
            net.pool(level, side)
        net.combine(level, "f32")
        found.append((net.program(), (16, 32)))
    real: tuple[tuple[Kind, tuple[tuple[int, int], ...]], ...] = (
        ("f32", ((3, 32), (16, 16), (64, 8), (192, 4), (512, 1))),
        ("f64", ((3, 32), (48, 8), (128, 4), (512, 1))),
    )
    for kind, shapes in real:
        for channels, side in shapes:
            net = Synthetic((channels, side, side), kind)
            size, outputs = 1 if side == 1 else 3, max(16, channels // 4)
            for density in (0.5, 0.15, 0.04):
                last = net.real(0, outputs, size, density)
            net.real(0, outputs, size, 0.2, act="sign")
            net.real(0, outputs, size, 0.2, residual=last)
            net.real(0, outputs, size, 0.2, binary=False)
            net.real(0, outputs, size, 0.1, binary=False, act="sign")
            net.combine(last, kind)
            if side > 1:
                net.pool(0, 2)
                net.pool(0, side)
                net.pool(0, side, average=True)
                net.pool(0, 2, average=True)
            found.append((net.program(), (16, 32)))
    return found


def _code_programs() -> list[tuple[Program, tuple[int, ...]]]:
    """The same of layers that run as code: of floats or levels alone."""
    found: list[tuple[Program, tuple[int, ...]]] = []
    shapes = ((3, 16, 32), (16, 16, 16), (64, 48, 8), (192, 96, 4), (256, 160, 4), (512, 256, 1))
    for channels, outputs, side in shapes:
        size = 1 if side == 1 else 3
        net = Synthetic((channels, side, side))
        for density in (0.3, 0.1, 0.03):
            last = net.real(0, outputs, size, density)
        net.real(0, outputs, size, 0.2, residual=last)
        for density in (0.3, 0.1, 0.03):
            real = net.real(0, outputs, size, density, binary=False)
        net.real(0, outputs, size, 0.1, binary=False, residual=real)
        net.combine(0, "f32")
        net.combine(last, "f32", real)
        for source in (0, last, real):
            net.add(Flatten(src=source))
        if side > 1:
            net.pool(0, 2)
            net.pool(0, side)
            net.pool(0, side, average=True)
            net.pool(0, 2, average=True)
        found.append((net.program(), (16,)))

        net = Synthetic((channels, side, side))
        level = net.combine(0, "i8")
        for density in (0.3, 0.1, 0.03):
            last = net.levels(level, outputs, size, density)
        net.levels(level, outputs, size, 0.2, residual=last)
        net.combine(last, "i8", last)
        net.add(Flatten(src=level))
        if side > 1:
            net.pool(level, 2)
            net.pool(level, side)
        net.combine(level, "f32")
        found.append((net.program(), (32,)))
    return found
