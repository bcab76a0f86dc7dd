"""`python -m benchmarks.gpu`: the Triton backend on the GPU of this machine, under 8 minutes.

First every operation is compared with its reference in float64 on the device; a mismatch ends the
run with exit status 1 and nothing is timed. Then the products of ticket layers, training steps (on
the products' routes that were the fastest just before), selection, whole packed networks, layers
and elementwise operations are timed against what a user would otherwise run.
Candidate and baseline alternate; each figure is the median of CUDA-event times with the 20th and
80th percentile. Writes into the folder `--output`:

    gpu.json          every check and figure
    gpu.md            the same as tables
    cost_table.json   for MPT_FAST_COST_TABLE, see mpt_fast.kernels.costs; python -m
                      benchmarks.gpu.merge joins those of several runs

Where there is no GPU every figure is the text "not measured": nothing is ever estimated.
`--dry-run` walks every check and every case on the CPU in Triton's interpreter, at tiny sizes and
without a clock, which shows that the program is whole; it measures nothing and writes no table of
costs.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent.parent / "results"
# Compilation of what is timed is most of it. What does not fit any more is "not measured".
MINUTES = 7.0
# What must be left of them for a training step, whose network compiles anew.
STEP_SECONDS = 120.0


def run_checks(setting: Any) -> dict[str, str]:
    """ "ok" or what went wrong, by check."""
    from benchmarks.gpu.checks import CHECKS
    from benchmarks.gpu.networks import same_logits
    from benchmarks.gpu.steps import same_step

    outcomes: dict[str, str] = {}
    everything = {
        **CHECKS,
        "training step": lambda _: same_step(setting)(),
        "packed networks": same_logits,
    }
    for name, check in everything.items():
        try:
            check(setting)
            outcomes[name] = "ok"
        except Exception as error:  # a crash of a kernel is as much a failure as a mismatch
            outcomes[name] = f"{type(error).__name__}: {error}"
        print(f"check {name}: {outcomes[name]}", flush=True)
    return outcomes


def run_timings(setting: Any) -> tuple[dict[str, Any], list[Any], dict[str, str]]:
    """(figures by title and run, cases of the cost table, what went wrong by case).

    A case compares its result with the reference before it is timed.
    """
    from benchmarks.gpu.cases import products_of_training, timings
    from benchmarks.gpu.setting import NOT_MEASURED
    from benchmarks.gpu.steps import DRY_NETWORKS, NETWORKS, step_timing
    from mpt_fast.kernels import costs

    figures: dict[str, Any] = {}
    measured: list[Any] = []
    wrong: dict[str, str] = {}
    skipped = 0
    steps = [
        functools.partial(step_timing, setting, network)
        for network in (DRY_NETWORKS if setting.dry else NETWORKS)
    ]
    # Compiling a whole network's kernels is one piece of work that nothing stops half-way.
    planned = [(make, 0.0) for make in products_of_training(setting)]
    planned += [(make, STEP_SECONDS) for make in steps]
    planned += [(make, 0.0) for make in timings(setting)]
    for make, seconds in planned:
        if setting.late(seconds):
            skipped += 1
            continue
        try:
            with costs.supplying(measured):
                timing = make()
                found = setting.clock(timing.runs, timing.rounds, timing.graphs)
        except Exception as error:  # as in run_checks; the other cases are still worth their time
            wrong[f"case {len(figures) + len(wrong)}"] = f"{type(error).__name__}: {error}"
            print(f"case failed: {error}", flush=True)
            continue
        figures[timing.title] = found
        for case, names in timing.table.items():
            times = {name: found[run].get("p50_us") for name, run in names.items()}
            clocked = {name: value for name, value in times.items() if isinstance(value, float)}
            if clocked:
                source = f"measured on {torch.cuda.get_device_name()}"
                measured.append(costs.Measured(case, clocked, source))
        print(f"timed {timing.title}", flush=True)
    if skipped:
        figures["further cases"] = f"{NOT_MEASURED}: {skipped} out of time"
    return figures, measured, wrong


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    device = report["device"] or "no GPU"
    lines = [f"# Triton on {device}", "", "| check | outcome |", "|---|---|"]
    lines += [f"| {name} | {outcome} |" for name, outcome in report["checks"].items()]
    for title, runs in report["figures"].items():
        lines += ["", f"## {title}", ""]
        if isinstance(runs, str):
            lines.append(runs)
            continue
        lines += ["| run | median, µs | 20 %–80 % | launch |", "|---|---|---|---|"]
        for name, figure in runs.items():
            if "not_available" in figure:
                lines.append(f"| {name} | not available: {figure['not_available']} | | |")
                continue
            median = figure["p50_us"]
            shown = median if isinstance(median, str) else f"{median:.1f}"
            spread = f"{figure['p20_us']:.1f}–{figure['p80_us']:.1f}" if "p20_us" in figure else ""
            lines.append(f"| {name} | {shown} | {spread} | {figure['launch']} |")
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in the interpreter")
    chosen = parser.parse_args(arguments)
    if chosen.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
    from benchmarks.gpu.setting import NOT_MEASURED, Setting

    report: dict[str, Any] = {"torch": torch.__version__, "device": None, "dry_run": chosen.dry_run}
    measured: list[Any] = []
    if not (chosen.dry_run or torch.cuda.is_available()):
        report |= {"checks": {"every check": NOT_MEASURED}, "figures": {"all": NOT_MEASURED}}
        print("no GPU: nothing measured")
    else:
        import triton

        report["triton"] = triton.__version__
        if not chosen.dry_run:
            report["device"] = torch.cuda.get_device_name()
        device = "cpu" if chosen.dry_run else "cuda"
        torch.manual_seed(0)
        setting = Setting(device, chosen.dry_run, time.monotonic() + 60 * MINUTES)
        report["checks"] = run_checks(setting)
        report["figures"] = {"all": f"{NOT_MEASURED}: a check failed"}
        if set(report["checks"].values()) == {"ok"}:
            report["figures"], measured, wrong = run_timings(setting)
            report["checks"] |= wrong
    chosen.output.mkdir(parents=True, exist_ok=True)
    _write(chosen.output / "gpu.json", json.dumps(report, indent=1) + "\n")
    _write(chosen.output / "gpu.md", markdown(report))
    if measured and report["device"]:
        from mpt_fast.kernels import costs

        table = costs.table(report["device"], report["triton"], measured)
        _write(chosen.output / "cost_table.json", json.dumps(table, indent=1) + "\n")
    outcomes = set(report["checks"].values())
    return 0 if outcomes <= {"ok", NOT_MEASURED} else 1


if __name__ == "__main__":
    sys.exit(main())
