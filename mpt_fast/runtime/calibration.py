"""Coefficients of the cost model: measured once on this machine, then kept in a file.

Synthetic layers (`samples`) run through the engine's own programs and step clock; each kernel's
coefficients are the non-negative least-squares fit of the relative error. Every layout has its own
kernels and coefficients, measured when a plan first asks for them.

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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpt_fast.kernels import cpu
from mpt_fast.runtime.container import FileError, write_whole
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.kernels import BITS, CODE, KERNELS, LISTS, WHOLE, Kernel, kernels_for
from mpt_fast.runtime.processor import processor
from mpt_fast.runtime.program import Program
from mpt_fast.runtime.samples import samples
from mpt_fast.runtime.work import Block, works

logger = logging.getLogger("mpt_fast")

CACHE = "MPT_FAST_CACHE"
_FORMAT = 4  # raised when a count changes its meaning; names of terms are checked by themselves
_REPEATS = 8
_SECONDS = 0.6  # no further repetition is begun after that
_FITS = 8  # the weights of one come from the predictions of that before
_EXACT = 0.05  # smaller relative errors are all the same

Costs = Mapping[str, tuple[float, ...]]
"""Coefficients in seconds by `Kernel.case`, in the order of its terms."""


def kernels_of(layout: str) -> list[Kernel]:
    """The kernels that have coefficients in a layout."""
    return [kernel for kernel in KERNELS if kernel.layout == layout]


def blocks(compiled: CompiledProgram, batch: int) -> list[Block]:
    """The blocks in which `compiled` runs a batch with images in the lanes."""
    words = cpu.engine().vector_words(compiled.isa)
    found = []
    while batch > 0:
        lanes = compiled.block_lanes(batch)
        block = Block(BITS, lanes, math.ceil(min(lanes, batch) / 16), words)
        if lanes < 64:  # there are no bits
            block = replace(block, layout=CODE if compiled.code else LISTS)
        elif block.whole_vectors:
            block = replace(block, layout=WHOLE, bit_code=compiled.bit_code)
        found.append(block)
        batch -= lanes
    return found


def costs_of(compiled: CompiledProgram, batch: int, threads: int) -> Costs:
    """What `costs` knows of the layouts of a batch's blocks."""
    layouts = dict.fromkeys(block.layout for block in blocks(compiled, batch))
    return {k: v for layout in layouts for k, v in costs(compiled.isa, threads, layout).items()}


@functools.lru_cache(maxsize=32)
def costs(isa: str, threads: int, layout: str) -> Costs:
    """The coefficients of a layout's kernels for an instruction set and threads, read or fitted."""
    key = _key(isa, threads, layout)
    path = _path(key)
    known = _read(path, key, layout) if path is not None else None
    if known is not None:
        return known
    start = time.perf_counter()
    # What cannot run here is never asked for.
    none = {kernel.case: (0.0,) * len(kernel.terms) for kernel in kernels_of(layout)}
    fitted = {**none, **fit(measure(isa, threads, layout))}
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
    compiled: CompiledProgram, program: Program, times: Sequence[float], batch: int
) -> Iterator[Point]:
    """What the step clock of a run of `batch` images tells, step by step."""
    parts = blocks(compiled, batch)
    for work, seconds in zip(works(program, compiled.computed_by()), times, strict=True):
        if work is None:
            continue
        for kernel in kernels_for(work, parts[0]):
            counts = [kernel.count(work, block) for block in parts]
            yield Point(kernel.case, tuple(map(sum, zip(*counts, strict=True))), seconds)


def measure(isa: str, threads: int, layout: str) -> list[Point]:
    """Times of a layout's synthetic layers: of each the least of a few runs, in seconds."""
    end = time.perf_counter() + _SECONDS
    rng = np.random.default_rng(0)
    runs = []
    for program, batch, code in samples(isa, layout):
        compiled = CompiledProgram(program, program.input_kind, isa, "images", code)
        dtype = np.float32 if program.input_kind == "f32" else np.float64
        runs.append((compiled, program, rng.standard_normal((batch, *program.input), dtype)))
    times: list[list[list[float]]] = [[] for _ in runs]
    # In turns, so that what else the machine does delays few of the runs of each.
    while len(times[0]) <= _REPEATS and (len(times[0]) < 2 or time.perf_counter() < end):
        for (compiled, _, x), own in zip(runs, times, strict=True):
            compiled(x, threads)
            own.append(compiled.step_times())
    return [
        point
        for (compiled, program, x), (_, *own) in zip(runs, times, strict=True)  # the first warms up
        for point in points(compiled, program, np.min(own, axis=0).tolist(), len(x))
    ]


def fit(measured: Sequence[Point]) -> Costs:
    """Coefficients of every kernel measured, with the least relative error over its points."""
    by_case: dict[str, list[Point]] = defaultdict(list)
    for point in measured:
        by_case[point.case].append(point)
    return {case: tuple(_fit(own)) for case, own in by_case.items()}


def _fit(points: Sequence[Point]) -> list[float]:
    """Least sum of abs(p - t) / sqrt(p t), by which half of a time is as wrong as twice, and a run
    that was held up counts for little."""
    counts = np.array([point.counts for point in points])
    seconds = np.array([max(point.seconds, 1e-9) for point in points])
    predicted = seconds
    for _ in range(_FITS):
        predicted = np.maximum(predicted, seconds / 4)
        spread = np.sqrt(seconds * predicted)
        error = np.abs(predicted - seconds) / spread
        weights = 1 / (spread * np.sqrt(np.maximum(error, _EXACT)))
        found = nonnegative(counts * weights[:, None], seconds * weights)
        predicted = counts @ found
    return found


def nonnegative(matrix: NDArray, target: NDArray) -> list[float]:
    """The x >= 0 of least ‖matrix·x − target‖ (Lawson and Hanson's active sets).

    Columns that are equal but for rounding might take turns for ever: the steps are bounded.
    """
    scale = np.linalg.norm(matrix, axis=0)
    matrix = matrix / np.where(scale > 0, scale, 1)
    x = np.zeros(matrix.shape[1])
    support = np.zeros(matrix.shape[1], bool)
    for _ in range(3 * len(x)):
        gradient = np.where(support, 0, matrix.T @ (target - matrix @ x))
        if gradient.max() <= 1e-10 * np.linalg.norm(target):
            break
        support[gradient.argmax()] = True
        while True:
            best = np.zeros_like(x)
            best[support] = np.linalg.lstsq(matrix[:, support], target, rcond=None)[0]
            if (best[support] > 0).all():
                break
            falling = support & (best <= 0)  # as far as the first of these reaches zero
            share = (x[falling] / (x[falling] - best[falling])).min()
            x += share * (best - x)
            support &= x > 1e-14 * x.max()
            x[~support] = 0
        x = best
    return (x / np.where(scale > 0, scale, 1)).tolist()
