"""What a ticket saves, counted and clocked, against what a user would otherwise run."""

from mpt_fast.measure.baseline import Baseline, Baselines, baselines
from mpt_fast.measure.machine import machine
from mpt_fast.measure.rates import (
    AccelerationRate,
    LayerRate,
    acceleration_rate,
    count_flops,
    count_macs,
)
from mpt_fast.measure.timing import Comparison, Timing, compare, interleave

__all__ = [
    "AccelerationRate",
    "Baseline",
    "Baselines",
    "Comparison",
    "LayerRate",
    "Timing",
    "acceleration_rate",
    "baselines",
    "compare",
    "count_flops",
    "count_macs",
    "interleave",
    "machine",
]
