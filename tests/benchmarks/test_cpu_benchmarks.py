"""What keeps and renders the CPU results, and the checks that run on demand."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks import compilers, limits, plots  # noqa: E402
from benchmarks.render import render  # noqa: E402
from benchmarks.store import ROOT as RESULTS  # noqa: E402
from benchmarks.store import Store, slug, stored  # noqa: E402

MACHINE = {"cpu": "Some CPU", "cores": 2, "torch": "2", "python": "3", "mpt_fast": "0"}


def cell(row: str, column: str, ratio: float, **facts: Any) -> dict[str, Any]:
    return {
        "table": "Layers", "row": row, "column": column, "ratio": ratio, "ratio_p20": ratio,
        "ratio_p80": ratio, "baseline": "PyTorch, NCHW", "baseline_seconds": 1.0,
        "candidate_seconds": 1 / ratio, "threads": 1, "machine": MACHINE, "date": "2026-01-02",
    } | facts  # fmt: skip


def results_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cells": dict(enumerate(cells)), "measured": {}}


def page_of(cells: list[dict[str, Any]]) -> str:
    return render({"Some CPU": results_of(cells)})


def test_a_stopped_run_goes_on_and_a_changed_engine_starts_anew(tmp_path: Path) -> None:
    root, stamp = tmp_path / "results" / "cpu", {"processor": "Some CPU", "engine": "a"}
    Store("Some CPU", root).add_cells("case", stamp, [cell("64@32", "90%", 10.0)])
    again = Store("Some CPU", root)
    assert again.has("case", stamp)
    assert not again.has("case", stamp | {"engine": "b"})
    assert not again.has("other", stamp)
    again.add_cells("case of another name", stamp, [cell("64@32", "90%", 20.0)])
    kept = Store("Some CPU", root).data["cells"].values()
    assert [one["ratio"] for one in kept] == [20.0]
    assert [path.name for path in (root / "some_cpu").iterdir()] == ["results.json"]


def test_each_processor_has_its_own_file(tmp_path: Path) -> None:
    intel = "Intel(R) Xeon(R) Processor @ 2.60GHz"
    assert slug(intel) == "intel_r_xeon_r_processor_2_60ghz"
    stamps = {name: {"processor": name} for name in ("Some CPU", intel)}
    for ratio, (name, stamp) in enumerate(stamps.items(), 1):
        own = cell("64@32", "90%", ratio, machine=MACHINE | {"cpu": name})
        Store(name, tmp_path).add_cells("case", stamp, [own])
    assert {path.name for path in tmp_path.iterdir()} == {slug(intel), "some_cpu"}
    found = stored(tmp_path)
    assert {name: [c["ratio"] for c in data["cells"].values()] for name, data in found.items()} == {
        "Some CPU": [1], intel: [2],
    }  # fmt: skip
    assert not Store(intel, tmp_path).has("case", stamps["Some CPU"])


def test_figures_of_two_processors_do_not_mix(tmp_path: Path) -> None:
    store, own = Store("Some CPU", tmp_path), {"processor": "Some CPU"}
    store.add_cells("case", own, [cell("64@32", "90%", 10.0)])
    before = store.path.read_bytes()
    foreign = MACHINE | {"cpu": "Other CPU"}
    with pytest.raises(ValueError, match="not of Other CPU and of Some CPU"):
        store.add_cells("case", {"processor": "Other CPU"}, [cell("64@32", "90%", 20.0)])
    with pytest.raises(ValueError, match="one processor"):
        store.add_cells("case", {}, [cell("64@32", "90%", 20.0, machine=foreign)])
    with pytest.raises(ValueError, match="one processor"):
        store.add("usage", own, {"machine": foreign})
    assert store.has("case", own)
    assert store.path.read_bytes() == before
    with pytest.raises(ValueError, match="one processor"):
        Store("some cpu", tmp_path)  # the same folder
    mixed = store.path.read_text().replace("Some CPU", "Other CPU", 1)
    store.path.write_text(mixed)
    with pytest.raises(ValueError, match="one processor"):
        stored(tmp_path)


def test_tables_have_means_only_over_one_batch_and_one_baseline() -> None:
    cells = [cell("128@16", "90%", 8.0), cell("64@32", "90%", 2.0), cell("64@32", "50%", 1.0)]
    page = page_of(cells)
    assert "| | 50% | 90% |" in page
    assert page.index("| 64@32 |") < page.index("| 128@16 |")
    assert "| geometric mean |  | **4 ×** |" in page  # at 50 % one row is missing
    assert "not measured" in page
    assert "2026-01-02 on Some CPU, 2 cores" in page
    batches = [cell("a, batch 1", "90%", 8.0, batch=1), cell("b, batch 1", "90%", 2.0, batch=1),
               cell("a, batch 64", "90%", 9.0, batch=64)]  # fmt: skip
    page = page_of(batches)
    assert "| geometric mean, batch 1 | **4 ×** |" in page
    assert "batch 64 | **" not in page
    assert "| Layers, batch 1 (2 rows) | Some CPU | 4 × |" in page
    assert "batch 64 (" not in page
    other = [cell("a", "90%", 8.0), cell("b", "90%", 2.0, baseline="torch.sort")]
    assert "geometric mean" not in page_of(other).lower()


def test_pages_name_the_builds_that_figures_are_of() -> None:
    stamps = {"a": {"engine": "0123456789"}, "b": {"engine": "ba9876543210"}, "c": {}}
    stamps["d"] = stamps["b"]
    data = results_of([cell("64@32", "90%", 2.0)]) | {"measured": stamps}
    assert "and measurements: ba987654 (2), 01234567 (1).\n" in render({"Some CPU": data})
    assert "Engine builds" not in page_of([cell("64@32", "90%", 2.0)])


def test_processors_stand_together_in_means_only() -> None:
    older, newer = MACHINE | {"cpu": "A CPU"}, MACHINE | {"cpu": "B(R) CPU @ 2.60GHz"}
    rows = {"64@32": 2.0, "128@16": 8.0}
    sweep = {"machine": older, "date": "2026-01-01", "curves": {}}
    page = render(
        {
            "A CPU": results_of([cell(r, "90%", x, machine=older) for r, x in rows.items()])
            | {"sweeps": sweep},
            "B(R) CPU @ 2.60GHz": results_of(
                [cell(r, "90%", 2 * x, machine=newer, date="2026-02-03") for r, x in rows.items()]
            ),
        }
    )
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# CPU results",
        "## Geometric means, by processor",
        "## B(R) CPU @ 2.60GHz",
        "### Layers: B(R) CPU @ 2.60GHz",
        "## A CPU",
        "### Layers: A CPU",
        "### How time grows: A CPU",
    ]
    assert (
        "| | processor | 90% |\n|---|---|---|\n"
        "| Layers (2 rows) | B(R) CPU @ 2.60GHz | 8 × |\n|  | A CPU | 4 × |\n"
    ) in page
    assert "[B(R) CPU @ 2.60GHz](#br-cpu--260ghz) (2026-02-03), [A CPU](#a-cpu) (2026-" in page
    assert "(results/cpu/a_cpu/growth.png)" in page
    part = [cell(row, "90%", 1.0, machine=newer) for row in (*rows, "256@8")]
    page = render({"A CPU": results_of([cell(r, "90%", 1.0, machine=older) for r in rows]),
                   "B(R) CPU @ 2.60GHz": results_of(part)})  # fmt: skip
    assert "| Layers (2 rows) | A CPU |" in page
    assert "| Layers (3 rows) | B(R) CPU @ 2.60GHz |" in page


def test_other_engines_stand_below_their_row() -> None:
    beside = {"ONNX Runtime int8": 0.25, "torch.compile": "no compiler"}
    page = page_of([cell("vgg", "90%", 8.0, beside=beside)])
    assert "| ↳ ONNX Runtime int8: 4 × | |" in page
    assert "| ↳ torch.compile: no compiler | |" in page


def test_the_committed_page_is_the_rendering_of_the_committed_results() -> None:
    results = stored()
    assert (ROOT / "benchmarks" / "RESULTS.md").read_text() == render(results)
    assert {path.name for path in RESULTS.iterdir()} == set(map(slug, results))


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
