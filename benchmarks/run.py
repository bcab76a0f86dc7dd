"""Measures everything that RESULTS.md shows and renders it.

    python -m benchmarks.run [--mode quick|standard|full] [--only PART ...] [--fresh] [--render]

Parts: layers, networks, scaling, usage, roofline, sweeps, planner, training (the pytest files).
Results are kept case by case in this processor's folder of benchmarks/results/cpu: a run that was
stopped goes on where it was, and what is there for this engine build and mode is not measured again
unless --fresh. The page shows every processor's. The machine should do nothing else meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mpt_fast as mpt
from benchmarks import planner, plots, roofline, sweeps
from benchmarks.render import render
from benchmarks.store import ROOT, Store, slug, stored
from mpt_fast.benchmark import MODES, Case, cases, scaling_cases
from mpt_fast.benchmark.run import images, run_case, ticket
from mpt_fast.benchmark.usage import memory, neighbouring_bytes, startup
from mpt_fast.kernels import cpu
from mpt_fast.measure import machine
from mpt_fast.runtime.engine import CompiledProgram

HERE = Path(__file__).resolve().parent
PARTS = ("layers", "networks", "scaling", "usage", "roofline", "sweeps", "planner", "training")


def usage() -> list[dict[str, Any]]:
    """Start-up time and memory of the packed ResNet-18, binary and float, and without code."""
    found = []
    for kind, batch, code in (("binary", 512, True), ("relu", 64, True), ("relu", 64, False)):
        packed = mpt.pack(ticket("resnet18", kind, 0.9), images(1, (3, 32, 32)), "cpu", threads=1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.mpt"
            file_bytes = packed.save(path).file_bytes
            times, peak = startup(path, code=code), memory(path, batch, code=code)
        lanes = CompiledProgram(packed.program, "f32").block_lanes(batch)
        found.append(
            {
                "network": f"resnet18 {kind}" + ("" if code else ", code=False"),
                "batch": batch,
                "import_seconds": times["import"],
                "load_seconds": times["load"],
                "loaded_bytes": peak["loaded"],
                "running_bytes": peak["running"],
                "file_bytes": file_bytes,
                "allowed_bytes": file_bytes + 1.5 * neighbouring_bytes(packed.program, lanes),
            }
        )
    return found


def training(arguments: list[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and cells of the pytest-benchmark files."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "report.json"
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--timeout=1800", "--benchmark-only",
             "--benchmark-quiet", f"--benchmark-json={raw}", str(HERE), *arguments],
            cwd=HERE.parent,
        ).returncode  # fmt: skip
        if not raw.exists() or not raw.stat().st_size:
            return code or 1, []
        report = json.loads(raw.read_text())
    day = {"date": report["datetime"][:10]}
    return code, [entry["extra_info"] | day for entry in report["benchmarks"]]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mode", choices=list(MODES), default="standard")
    parser.add_argument("--only", action="append", choices=PARTS, help="only these parts")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--render", action="store_true", help="measure nothing, only render")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    chosen = parser.parse_args(arguments)
    code = 0 if chosen.render else measure(Store(machine()["cpu"]), chosen)
    # From the files: a page depends on nothing that they do not keep, as the order of entries.
    results = stored()
    for processor, data in results.items():
        folder = ROOT / slug(processor)
        if "sweeps" in data:
            plots.growth(data["sweeps"]["curves"], folder / "growth.png")
        if "roofline" in data:
            plots.roofline(data["roofline"], folder / "roofline.png")
    (HERE / "RESULTS.md").write_text(render(results))
    return code


def measure(store: Store, chosen: argparse.Namespace) -> int:
    """Runs what is not there yet; the exit status."""
    mode, parts = MODES[chosen.mode], chosen.only or PARTS
    stamp = {
        "mode": chosen.mode,
        "processor": store.processor,
        "isa": cpu.engine().isas()[0],
        "engine": cpu.engine().source_digest,
    }
    facts = {"machine": machine(), "date": date.today().isoformat(), "mode": chosen.mode}

    def part(key: str, work: Callable[[], None]) -> None:
        if store.has(key, stamp) and not chosen.fresh:
            return
        start = time.perf_counter()
        work()
        print(f"{time.perf_counter() - start:6.1f} s  {key}", flush=True)

    wanted = [c for c in cases(mode) if f"{c.kind}s" in parts]
    if "scaling" in parts and len(os.sched_getaffinity(0)) > 1:
        wanted += scaling_cases(2, max(mode.batches))

    def add_case(case: Case) -> None:
        store.add_cells(case.key, stamp, run_case(case, mode))

    for case in wanted:
        part(case.key, partial(add_case, case))
    torch.set_num_threads(1)
    seconds = mode.seconds / 4
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "usage": lambda: {"networks": usage()},
        "roofline": lambda: roofline.roofline(seconds),
        "sweeps": lambda: {"curves": sweeps.sweeps(seconds)},
        "planner": planner.report,
    }

    def add_other(key: str) -> None:
        store.add(key, stamp, facts | others[key]())

    for key in (key for key in others if key in parts):
        part(key, partial(add_other, key))
    code = 0
    if "training" in parts and (chosen.fresh or not store.has("training", stamp)):
        code, cells = training(chosen.pytest)
        whole = code == 0 and not chosen.pytest  # a selection of the cases is no whole part
        store.add_cells("training", stamp if whole else {}, cells)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
