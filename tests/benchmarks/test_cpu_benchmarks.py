"""What keeps and renders the CPU results, and the checks that run on demand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks import compilers, limits, plots  # noqa: E402
from benchmarks.render import render  # noqa: E402
from benchmarks.store import Store  # noqa: E402

MACHINE = {"cpu": "Some CPU", "cores": 2, "torch": "2", "python": "3", "mpt_fast": "0"}


def cell(row: str, column: str, ratio: float, **facts: Any) -> dict[str, Any]:
    return {
        "table": "Layers", "row": row, "column": column, "ratio": ratio, "ratio_p20": ratio,
        "ratio_p80": ratio, "baseline": "PyTorch, NCHW", "baseline_seconds": 1.0,
        "candidate_seconds": 1 / ratio, "threads": 1, "machine": MACHINE, "date": "2026-01-02",
    } | facts  # fmt: skip


def test_a_stopped_run_goes_on_and_a_changed_engine_starts_anew(tmp_path: Path) -> None:
    path, stamp = tmp_path / "results" / "cpu.json", {"engine": "a"}
    Store(path).add_cells("case", stamp, [cell("64@32", "90%", 10.0)])
    again = Store(path)
    assert again.has("case", stamp)
    assert not again.has("case", {"engine": "b"})
    assert not again.has("other", stamp)
    again.add_cells("case of another name", stamp, [cell("64@32", "90%", 20.0)])
    assert [kept["ratio"] for kept in Store(path).data["cells"].values()] == [20.0]
    assert [p.name for p in path.parent.iterdir()] == ["cpu.json"]


def test_tables_have_means_only_over_one_batch_and_one_baseline() -> None:
    cells = [cell("128@16", "90%", 8.0), cell("64@32", "90%", 2.0), cell("64@32", "50%", 1.0)]
    page = render({"cells": dict(enumerate(cells))})
    assert "| | 50% | 90% |" in page
    assert page.index("| 64@32 |") < page.index("| 128@16 |")
    assert "| geometric mean |  | **4 ×** |" in page  # at 50 % one row is missing
    assert "not measured" in page
    assert "2026-01-02 on Some CPU, 2 cores" in page
    batches = [cell("a, batch 1", "90%", 8.0, batch=1), cell("b, batch 1", "90%", 2.0, batch=1),
               cell("a, batch 64", "90%", 9.0, batch=64)]  # fmt: skip
    page = render({"cells": dict(enumerate(batches))})
    assert "| geometric mean, batch 1 | **4 ×** |" in page
    assert "batch 64 | **" not in page
    other = [cell("a", "90%", 8.0), cell("b", "90%", 2.0, baseline="torch.sort")]
    assert "geometric mean" not in render({"cells": dict(enumerate(other))})


def test_other_engines_stand_below_their_row() -> None:
    beside = {"ONNX Runtime int8": 0.25, "torch.compile": "no compiler"}
    page = render({"cells": {"": cell("vgg", "90%", 8.0, beside=beside)}})
    assert "| ↳ ONNX Runtime int8: 4 × | |" in page
    assert "| ↳ torch.compile: no compiler | |" in page


def test_the_committed_page_is_the_rendering_of_the_committed_results() -> None:
    data = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())
    assert (ROOT / "benchmarks" / "RESULTS.md").read_text() == render(data)


def test_load_limit_is_that_of_the_next_larger_slice() -> None:
    found = {"loads": {"4096": 3.0, "32768": 2.0, "1048576": 1.0}}
    assert [limits.load_limit(found, size) for size in (1, 4096, 4097, 40_000, 1 << 30)] == [
        3.0, 3.0, 2.0, 1.0, 1.0,
    ]  # fmt: skip


def test_plots_draw_what_they_are_given(tmp_path: Path) -> None:
    curves = [{"label": "binary", "x": [1, 2], "y": [1e-6, 2e-6]}]
    plots.growth(
        dict.fromkeys(("density", "batch", "width", "threads"), curves), tmp_path / "g.png"
    )
    points = [
        {"layer": "64@32", "density": d, "slice_bytes": 20_000, "rate": 1e9} for d in (0.5, 0.1)
    ]
    found = {"vector_bytes": 32, "loads_with_adders": 2e9, "loads": {"4096": 3e9, "65536": 1e9}}
    plots.roofline({"limits": found, "points": points}, tmp_path / "r.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("g.png", "r.png"))


def test_the_compiler_check_fails_on_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    source = tmp_path / "warning.cpp"
    for text, status in (("int f(int unused) { return 1; }", 1), ("int f() { return 1; }", 0)):
        source.write_text(text)
        job = compilers.command("g++", str(source))
        try:
            done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("g++ is not installed")
        assert bool(done.returncode) == bool(status), done.stderr
