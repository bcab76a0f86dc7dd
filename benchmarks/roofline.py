"""Kept taps per second of the layer set against the core's measured load and logic limits.

One thread. A tap is one kept weight added for one vector of lanes: one vector load and one full
adder. The limit is the slower of two rates: of loads at the places in a list, from a slice as large
as the one that a vector of outputs reads; and of full adders with their loads from the L1 cache.
"""

from typing import Any

import numpy as np

from benchmarks.limits import VECTOR_BYTES, limits, load_limit
from mpt_fast.benchmark.run import CHAIN, images, layer_clock, layer_program
from mpt_fast.benchmark.suite import LAYERS, SPARSITIES
from mpt_fast.measure import Clocked, interleave
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.program import ConvSign

BATCH = 512


def roofline(seconds: float) -> dict[str, Any]:
    """The limits, and per layer and density its tap-vectors per second and share of the limit."""
    found = limits()
    vector = VECTOR_BYTES[found["isa"]]
    points = []
    for channels, side in LAYERS:
        x = images(BATCH, (1, side, side))
        for sparsity in SPARSITIES:
            program = layer_program(channels, side, 1 - sparsity, True)
            compiled = CompiledProgram(program, "f32")
            clock = Clocked(layer_clock(compiled, x, 1))
            (timing,) = interleave([clock], repeats=30, warmup=1, seconds=seconds)
            steps = [step for step in program.steps if isinstance(step, ConvSign)][-CHAIN:]
            kept = sum(step.taps.kept for step in steps)
            vectors = np.ceil(BATCH / 8 / vector) * side * side
            rate = float(kept * vectors / timing.median)
            slice_bytes = channels * 3 * 3 * compiled.block_lanes(BATCH) // 8
            limit = min(load_limit(found, slice_bytes), found["loads_with_adders"])
            points.append(
                {
                    "layer": f"{channels}@{side}x{side}",
                    "density": round(1 - sparsity, 4),
                    "taps_per_channel": kept / CHAIN / channels,
                    "slice_bytes": slice_bytes,
                    "rate": rate,
                    "limit": limit,
                    "share": rate / limit,
                }
            )
    return {"limits": found, "points": points}
