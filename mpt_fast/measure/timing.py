"""Clocked comparisons: candidate and baseline by turns in one process, medians and spread."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Call = Callable[[], object]

_MIN_SAMPLE = 0.02
_MIN_ROUNDS = 5


@dataclass(frozen=True)
class Clocked:
    """A callable with a clock of its own: each call returns the seconds that count."""

    call: Callable[[], float]

    def __call__(self) -> float:
        return self.call()


@dataclass(frozen=True)
class Timing:
    """Seconds per call: every sample in order, their median, 20th and 80th percentile."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds per call in the middle of the samples."""
        return statistics.median(self.samples)

    @property
    def p20(self) -> float:
        """20th percentile of the samples, in seconds."""
        return percentile(self.samples, 0.2)

    @property
    def p80(self) -> float:
        """80th percentile of the samples, in seconds."""
        return percentile(self.samples, 0.8)

    def to_dict(self) -> dict[str, Any]:
        """median, p20, p80 in seconds and the number of samples."""
        return {
            "median": self.median,
            "p20": self.p20,
            "p80": self.p80,
            "samples": len(self.samples),
        }


@dataclass(frozen=True)
class Comparison:
    """Two timings taken by turns. `ratio` above 1: the candidate is that many times faster."""

    candidate: Timing
    baseline: Timing

    @property
    def ratio(self) -> float:
        """Median of the baseline over median of the candidate."""
        return self.baseline.median / self.candidate.median

    @property
    def ratio_p20(self) -> float:
        """20th percentile of the ratios of the single rounds."""
        return percentile(self._ratios(), 0.2)

    @property
    def ratio_p80(self) -> float:
        """80th percentile of the ratios of the single rounds."""
        return percentile(self._ratios(), 0.8)

    def to_dict(self) -> dict[str, Any]:
        """ratio with its spread and both timings, JSON-able."""
        return {
            "ratio": self.ratio,
            "ratio_p20": self.ratio_p20,
            "ratio_p80": self.ratio_p80,
            "candidate": self.candidate.to_dict(),
            "baseline": self.baseline.to_dict(),
        }

    def __str__(self) -> str:
        return (
            f"{self.ratio:.3g}x (20th to 80th percentile {self.ratio_p20:.3g} to "
            f"{self.ratio_p80:.3g}): {_seconds(self.candidate)} against {_seconds(self.baseline)}"
        )

    def _ratios(self) -> list[float]:
        pairs = zip(self.candidate.samples, self.baseline.samples, strict=True)
        return [baseline / candidate for candidate, baseline in pairs]


def compare(
    candidate: Call,
    baseline: Call,
    *,
    repeats: int = 30,
    warmup: int = 3,
    seconds: float | None = None,
    synchronize: Call | None = None,
) -> Comparison:
    """Time two callables without arguments by turns, in `repeats` rounds after `warmup` rounds.

    Each round times both, and every second round in the other order, so that neither always finds
    the caches the other left. A sample of a fast callable is the mean over as many calls as fill 20
    milliseconds, so that most calls find the caches as their own kind left them: a service calls
    one network again and again. Garbage collection is off meanwhile. A Clocked callable is timed by
    what it returns. seconds: stop after about that long, never before five rounds. synchronize:
    called before each reading of the clock, such as torch.cuda.synchronize.
    """
    first, second = interleave(
        [candidate, baseline],
        repeats=repeats,
        warmup=warmup,
        seconds=seconds,
        synchronize=synchronize,
    )
    return Comparison(first, second)


def interleave(
    calls: Sequence[Call],
    *,
    repeats: int,
    warmup: int = 3,
    seconds: float | None = None,
    synchronize: Call | None = None,
) -> list[Timing]:
    """`compare` for any number of callables: one Timing each, in their order."""
    if repeats < 1 or warmup < 1:
        raise ValueError(f"repeats and warmup must be at least 1, got {repeats} and {warmup}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be above 0 or None, got {seconds!r}")
    wait = synchronize or _nothing
    for _ in range(warmup - 1):
        for call in calls:
            call()
    numbers = [_calls_per_sample(call, wait) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    end = None if seconds is None else time.perf_counter() + seconds
    with _no_garbage_collection():
        for i in range(repeats):
            if end is not None and i >= _MIN_ROUNDS and time.perf_counter() >= end:
                break
            order = range(len(calls))
            for j in order if i % 2 == 0 else reversed(order):
                samples[j].append(_sample(calls[j], numbers[j], wait))
    return [Timing(tuple(s)) for s in samples]


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the sorted values lie, interpolated between two."""
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _sample(call: Call, number: int, wait: Call) -> float:
    """Mean seconds per call over `number` calls."""
    if isinstance(call, Clocked):
        return sum(call() for _ in range(number)) / number
    wait()
    start = time.perf_counter()
    for _ in range(number):
        call()
    wait()
    return (time.perf_counter() - start) / number


def _calls_per_sample(call: Call, wait: Call) -> int:
    """How many calls fill the shortest sample; measuring that is one more warm-up."""
    return max(1, round(_MIN_SAMPLE / max(_sample(call, 1, wait), 1e-9)))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _nothing() -> None:
    pass


def _seconds(timing: Timing) -> str:
    return f"{timing.median * 1e3:.3g} ms ({timing.p20 * 1e3:.3g} to {timing.p80 * 1e3:.3g})"
