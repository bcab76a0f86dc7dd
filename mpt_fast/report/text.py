"""Numbers as people read them: one place, so that tables, plots and terminals agree."""

from __future__ import annotations

import math

MISSING = "–"


def count(value: float | None) -> str:
    """12345.6 -> '12,346'; None -> '–'."""
    return MISSING if value is None else f"{round(value):,}"


def threads(number: int) -> str:
    """1 -> '1 thread', 2 -> '2 threads'."""
    return f"{number} thread" + ("" if number == 1 else "s")


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.974 -> '97.4 %'. `fraction` is a share of 1; None -> '–'."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f} %"


def ratio(value: float | None) -> str:
    """Three significant digits and a times sign: 3.04 -> '3.04×', 23.456 -> '23.5×'."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{significant(value)}×"


def significant(value: float, digits: int = 3) -> str:
    """At least `digits` significant digits without an exponent: 1234.5 -> '1,234', 0.0123."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # of the rounded value: 9.996 -> 10.0
    decimals = max(0, digits - 1 - exponent)
    return f"{value:,.{decimals}f}"


def size(number_of_bytes: float | None) -> str:
    """Decimal units, as file managers print them: 45678 -> '45.7 kB'; None -> '–'."""
    if number_of_bytes is None:
        return MISSING
    value = float(number_of_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{significant(value) if unit != 'B' else round(value)} {unit}"
        value /= 1000
    return f"{significant(value)} GB"


def duration(seconds: float | None) -> str:
    """0.0123 -> '12.3 ms', 71 -> '1 min 11 s'; None -> '–'."""
    if seconds is None:
        return MISSING
    if seconds < 0.9995e-3:
        return f"{significant(seconds * 1e6)} µs"
    if seconds < 0.9995:
        return f"{significant(seconds * 1e3)} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
