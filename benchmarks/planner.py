"""How well the cost model predicts layers and networks it was not fitted on.

    python -m benchmarks.planner

The relative error of a step is (predicted - measured) / measured; measured is the least of a few
runs, as in the fit. Steps under 20 microseconds are left out: there the clock itself is felt.
"""

import statistics
import time
from typing import Any

import numpy as np

import mpt_fast as mpt
from mpt_fast.benchmark.run import images, ticket
from mpt_fast.measure.timing import percentile
from mpt_fast.runtime import Program, calibration, kernels, planner
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.synthetic import Synthetic

REPEATS = 7
SHORTEST = 20e-6
MATTERS = 0.02  # of a network's time


def layers() -> list[tuple[str, Program, int]]:
    """(what, program, batch): shapes, densities and kernel sizes that calibration does not have."""
    found = []
    for channels, side, size in ((48, 12, 3), (96, 10, 3), (192, 6, 3), (384, 4, 3), (64, 8, 5)):
        bits = Synthetic((channels, side, side), seed=7)
        source = bits.combine(0, "bits")
        real = Synthetic((channels, side, side), seed=8)
        levels = Synthetic((channels, side, side), seed=9)
        level = levels.combine(0, "i8")
        for density in (0.35, 0.15, 0.07, 0.03):
            bits.sign(source, channels, size, density)
            real.real(0, channels, size, density)
            levels.levels(level, channels, size, density)
        bits.sums(source, channels, 1, 0.25)
        bits.pool(source, 2)
        real.pool(0, 2)
        real.real(0, channels, size, 0.12, binary=False)
        levels.combine(level, "f32")
        found += [
            ("layers", bits.program(), 512),
            ("layers", real.program(), 48),
            ("layers", levels.program(), 96),
        ]
    return found


def networks() -> list[tuple[str, Program, int]]:
    """The same of whole networks, at batches that go in the lanes image by image: the others have
    no prediction."""
    found = []
    x = images(64, (3, 32, 32))
    for name in ("vgg_small", "resnet18"):
        for kind, batches in (("binary", (512, 64)), ("relu", (64, 32))):
            packed = mpt.pack(ticket(name, kind, 0.9), x[:1], "cpu")
            found += [(f"{name} {kind}", packed.program, batch) for batch in batches]
        packed = mpt.pack(
            ticket(name, "relu", 0.9), x[:1], "cpu", activations="int8", calibration=x
        )
        found += [(f"{name} int8", packed.program, batch) for batch in (64, 32)]
    return found


def errors(
    program: Program, batch: int, costs: calibration.Costs
) -> list[tuple[str, float, float]]:
    """(case, predicted, measured) of every step that takes long enough, on one thread."""
    compiled = CompiledProgram(program, program.input_kind)
    blocks = calibration.blocks(compiled, batch)
    predicted = planner.choices(program, compiled.computed_by(), blocks, costs)
    x = np.random.default_rng(0).standard_normal((batch, *program.input)).astype(np.float32)
    times = []
    for _ in range(REPEATS + 1):
        compiled(x, 1)
        times.append(compiled.step_times())
    measured = np.min(times[1:], axis=0).tolist()
    return [
        (choice.case, choice.seconds, seconds)
        for choice, seconds in zip(predicted, measured, strict=True)
        if choice.seconds and seconds >= SHORTEST
    ]


def report() -> dict[str, Any]:
    """Most seconds of a layout's fit, and by group of programs the errors of steps and wholes."""
    programs = [*layers(), *networks()]  # made before anything is timed: machines have their moods
    isa = CompiledProgram(programs[0][1], "f32").isa
    fits = []
    costs: dict[str, tuple[float, ...]] = {}
    for layout in kernels.LAYOUTS:
        start = time.perf_counter()
        costs |= calibration.fit(calibration.measure(isa, 1, layout))
        fits.append(time.perf_counter() - start)
    found: dict[str, Any] = {"fit_seconds": max(fits), "isa": isa}
    groups: dict[str, list[float]] = {}
    wholes = []
    for name, program, batch in programs:
        steps = errors(program, batch, costs)
        total = sum(measured for _, _, measured in steps)
        for case, predicted, measured in steps:
            group = f"held-out {case}" if name == "layers" else "steps of networks"
            if name != "layers" and measured >= MATTERS * total:
                groups.setdefault(f"steps of networks, {MATTERS:.0%} or more of one", []).append(
                    predicted / measured - 1
                )
            groups.setdefault(group, []).append(predicted / measured - 1)
        if name != "layers":
            wholes.append(sum(predicted for _, predicted, _ in steps) / total - 1)
    groups["whole networks"] = wholes
    found["errors"] = {
        group: {
            "count": len(values),
            "median": statistics.median(map(abs, values)),
            "p90": percentile([abs(v) for v in values], 0.9),
            "worst": max(values, key=abs),
        }
        for group, values in groups.items()
    }
    return found


def table(found: dict[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    lines = ["| | steps | median error | 90th percentile | worst |", "|---|---|---|---|---|"]
    for group, error in sorted(found["errors"].items()):
        lines.append(
            f"| {group} | {error['count']} | {error['median']:.0%} | {error['p90']:.0%} "
            f"| {error['worst']:+.0%} |"
        )
    return lines


if __name__ == "__main__":
    result = report()
    print(f"fitted in {result['fit_seconds']:.2f} s ({result['isa']})\n")
    print("\n".join(table(result)))
