"""The compile report and the GPU benchmark, on a machine without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m module` outside the interpreter, which cannot compile."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_triton
def test_the_popcount_kernels_pass_their_checks(tmp_path: Path) -> None:
    done = run(
        "benchmarks.compile_report",
        *("--operation", "xnor_conv2d", "--target", "sm_90", "--output", str(tmp_path)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "compile_report.json").read_text())["rows"]
    popcounts = [row["counts"]["popc_per_word"] for row in rows if row["counts"]]
    assert popcounts == [1.0, 1.0]
    assert all(row["spills"] == 0 and row["registers"] > 0 for row in rows)
    table = (tmp_path / "compile_report.md").read_text()
    assert table.count("| xnor_conv2d |") == len(rows)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = run("benchmarks.gpu", "--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["figures"].values()) == {"not measured"}
    assert set(report["checks"].values()) == {"not measured"}
