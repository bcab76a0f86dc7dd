"""Numbers as people read them."""

import pytest

from mpt_fast.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (45678, "45.7 kB"), (999_600, "1.00 MB"),
     (1_831_168, "1.83 MB"), (580e6, "580 MB"), (2.5e9, "2.50 GB"), (None, "–")],
)  # fmt: skip
def test_size_uses_decimal_units(value: float | None, shown: str) -> None:
    assert text.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3.04, "3.04×"), (23.456, "23.5×"), (465.4, "465×"), (1234.5, "1,234×"), (9.996, "10.0×"),
     (0.0123, "0.0123×"),
     (float("nan"), "–"), (float("inf"), "–"), (None, "–")],
)  # fmt: skip
def test_ratio_keeps_three_digits(value: float | None, shown: str) -> None:
    assert text.ratio(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1.5e-6, "1.50 µs"), (0.0123, "12.3 ms"), (0.99, "990 ms"), (1.0, "1.0 s"), (59.94, "59.9 s"),
     (59.96, "1 min 0 s"), (71, "1 min 11 s"), (3725, "1 h 2 min"), (None, "–")],
)  # fmt: skip
def test_duration_picks_its_unit(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_counts_and_shares() -> None:
    assert text.count(12345.6) == "12,346"
    assert text.count(None) == "–"
    assert (text.threads(1), text.threads(2)) == ("1 thread", "2 threads")
    assert text.percent(0.9741, 2) == "97.41 %"
    assert text.percent(1.0) == "100.0 %"
    assert text.percent(None) == "–"
    assert text.significant(0) == "0"
