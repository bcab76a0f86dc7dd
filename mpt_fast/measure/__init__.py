"""What a ticket saves, counted and clocked, against what a user would otherwise run."""

from mpt_fast.measure.baseline import Baseline, Baselines, baselines
from mpt_fast.measure.engines import Engine, engines
from mpt_fast.measure.machine import machine
from mpt_fast.measure.rates import (
    AccelerationRate,
    LayerRate,
    acceleration_rate,
    count_flops,
    count_macs,
)
from mpt_fast.measure.skip import MeasuredRate, SkipReport, skip_report
from mpt_fast.measure.timing import Clocked, Comparison, Timing, compare, interleave

__all__ = [
    "AccelerationRate",
    "Baseline",
    "Baselines",
    "Clocked",
    "Comparison",
    "Engine",
    "LayerRate",
    "MeasuredRate",
    "SkipReport",
    "Timing",
    "acceleration_rate",
    "baselines",
    "compare",
    "count_flops",
    "count_macs",
    "engines",
    "interleave",
    "machine",
    "skip_report",
]
