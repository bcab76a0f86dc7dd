"""compare and interleave on a clock that only the timed calls move: every figure is exact."""

import gc
import json
import math
from collections.abc import Callable, Iterator
from itertools import cycle, repeat

import pytest

from mpt_fast.measure import Comparison, Timing, compare, interleave, timing


class Clock:
    """Stands in for time.perf_counter; `work` makes callables that take known seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += next(seconds)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def test_ratio_is_baseline_over_candidate(clock: Clock) -> None:
    result = compare(clock.work("a", repeat(0.25)), clock.work("b", repeat(1.0)), repeats=4)
    assert (result.candidate.median, result.baseline.median, result.ratio) == (0.25, 1.0, 4.0)
    assert (result.ratio_p20, result.ratio_p80) == (4.0, 4.0)


def test_warm_up_is_not_timed_and_rounds_alternate(clock: Clock) -> None:
    slow_then_steady = iter([9.0, 9.0, 9.0, *[1.0] * 4])
    result = compare(
        clock.work("a", slow_then_steady), clock.work("b", repeat(1.0)), repeats=4, warmup=3
    )
    assert result.candidate.samples == (1.0,) * 4
    assert "".join(clock.log) == "abab" + "ab" + "ab" + "ba" + "ab" + "ba"


def test_fast_calls_are_repeated_within_a_sample(clock: Clock) -> None:
    (fast, slow) = interleave(
        [clock.work("f", repeat(2.0**-12)), clock.work("s", repeat(0.5))], repeats=3, warmup=1
    )
    assert clock.log.count("f") == 1 + 3 * round(0.02 * 2**12)
    assert clock.log.count("s") == 1 + 3
    assert fast.median == 2.0**-12
    assert slow.median == 0.5


def test_seconds_stop_early_but_not_before_five_rounds(clock: Clock) -> None:
    short = compare(
        clock.work("a", repeat(1.0)), clock.work("b", repeat(1.0)), repeats=99, seconds=0.5
    )
    assert len(short.candidate.samples) == 5
    longer = compare(
        clock.work("a", repeat(1.0)), clock.work("b", repeat(1.0)), repeats=99, seconds=15
    )
    assert len(longer.candidate.samples) == 8


def test_spread_pairs_the_rounds(clock: Clock) -> None:
    """Both slow down together: the seconds spread, the ratio does not."""
    load = [1.0, 2.0, 4.0, 8.0]
    result = compare(
        clock.work("a", cycle(load)),
        clock.work("b", cycle([3 * x for x in load])),
        repeats=4,
        warmup=4,
    )
    assert (result.ratio_p20, result.ratio_p80) == (3.0, 3.0)
    assert result.candidate.p20 < result.candidate.p80


def test_synchronize_before_each_reading(clock: Clock) -> None:
    pending = 0.0

    def launch() -> None:
        nonlocal pending
        pending += 0.5

    def wait() -> None:
        nonlocal pending
        clock.now, pending = clock.now + pending, 0.0

    (result,) = interleave([launch], repeats=3, synchronize=wait)
    assert result.samples == (0.5,) * 3


def test_percentiles() -> None:
    samples = Timing((5.0, 1.0, 4.0, 2.0, 3.0, 6.0))
    assert (samples.p20, samples.median, samples.p80) == (2.0, 3.5, 5.0)
    assert timing.percentile([1.0, 2.0], 0.25) == 1.25
    assert timing.percentile([7.0], 0.8) == 7.0
    with pytest.raises(ValueError, match="no values"):
        timing.percentile([], 0.5)


def test_garbage_collection_is_off_only_while_timing() -> None:
    seen: list[bool] = []
    assert gc.isenabled()
    interleave([lambda: seen.append(gc.isenabled())], repeats=2, warmup=1)
    assert not any(seen[1:])
    assert gc.isenabled()

    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interleave([fail], repeats=2)
    assert gc.isenabled()


def test_text_and_dict() -> None:
    result = Comparison(Timing((0.001, 0.001)), Timing((0.012, 0.012)))
    assert str(result) == (
        "12x (20th to 80th percentile 12 to 12): 1 ms (1 to 1) against 12 ms (12 to 12)"
    )
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["ratio"] == 12.0
    assert facts["baseline"] == {"median": 0.012, "p20": 0.012, "p80": 0.012, "samples": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 0}, "repeats and warmup must be at least 1, got 0 and 3"),
        ({"warmup": 0}, "repeats and warmup must be at least 1, got 30 and 0"),
        ({"seconds": 0.0}, "seconds must be above 0 or None, got 0.0"),
        ({"seconds": math.nan}, "seconds must be above 0 or None, got nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(lambda: None, lambda: None, **arguments)  # type: ignore[arg-type]  # on purpose
