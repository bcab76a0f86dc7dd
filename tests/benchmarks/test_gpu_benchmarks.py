"""The compile report and the GPU benchmark, on a machine without a GPU."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import torch

from benchmarks import compile_report
from benchmarks.gpu import checks, merge, networks, steps
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.setting import Setting, require_equal
from mpt_fast.kernels import backend, costs
from mpt_fast.kernels.gpu import RegisterLimit, register_limit
from mpt_fast.kernels.gpu.aot import CompileCase

ROOT = Path(__file__).resolve().parents[2]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


PRODUCT = CompileCase(None, "x", {}, {}, tensor_core=True)

needs_interpreter = pytest.mark.skipif(
    not (backend.interpreted() and backend.triton_available()),
    reason="the kernels of this process are compiled for a GPU, or there is no Triton",
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
@pytest.mark.parametrize(
    ("loads", "popcounts", "failure"),
    [(2, 8, None), (1, 4, None), (1, 8, "8 POPC in 1 turns"), (0, 4, "4 POPC in 0 turns")],
)
def test_a_popcount_loop_is_read_from_machine_code(
    loads: int, popcounts: int, failure: str | None
) -> None:
    body = ["LDG.E.128 R4, [R2.64]"] * loads + ["POPC R1, R2"] * popcounts
    body += ["LOP3.LUT R1, R2, R3, R4, 0x80, !PT"] * popcounts
    listing = [
        f"        /*{16 * i:04x}*/                   {code} ;" for i, code in enumerate(body)
    ]
    sass = "\n".join([".L_x_0:", *listing, "        /*0f00*/               @P0 BRA `(.L_x_0) ;"])
    case = CompileCase(None, "x", {}, {}, checks={"popcount": 4, "loads": 1})
    _, failures = compile_report.loop_counts(case, "sm_90", sass)
    assert [line.partition(" of")[0] for line in failures] == ([failure] if failure else [])
    adders = CompileCase(None, "x", {}, {}, checks={"bitsliced": 64})
    _, failures = compile_report.loop_counts(adders, "sm_90", sass)
    assert failures == ["0 adder loops, expected positive and negative taps"]


@needs_triton
def test_a_product_off_the_tensor_cores_fails() -> None:
    for found, problem in (
        (["HMMA"], "not only warpgroup"),
        (["HGMMA", "HMMA"], "not only warpgroup"),
        ([], "no tensor-core"),
    ):
        failures = compile_report.product_failures(
            PRODUCT, "sm_90", found, "LDGSTS.E.BYPASS.128", {}
        )
        assert any(problem in failure for failure in failures)
    assert compile_report.product_failures(PRODUCT, "sm_90", ["IGMMA"], "LDGSTS.E", {}) == []
    assert compile_report.product_failures(PRODUCT, "sm_80", ["HMMA"], "LDG.E.128", {}) == [
        "operands are not copied asynchronously"
    ]


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = run("benchmarks.gpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["figures"].values()) == {"not measured"}
    assert set(report["checks"].values()) == {"not measured"}
    assert not (tmp_path / "cost_table.json").exists()


@needs_interpreter
def test_the_checks_launch_every_form_of_every_kernel() -> None:
    """What is compiled for a device is compared with float64 on it, before anything is timed."""
    torch.manual_seed(0)
    setting = Setting("cpu", True, math.inf)
    with helpers.launched_forms() as launched:
        for check in checks.CHECKS.values():
            check(setting)
    shipped = {
        helpers.form_of(case.kernel.fn.__name__, case.constants)
        for _, case in compile_report.cases(compile_report.operations())
    }
    assert {name for name, _ in shipped} == {
        name for names in helpers.triton_kernels().values() for name in names
    }
    assert sorted(shipped - launched, key=str) == []


@needs_interpreter
@pytest.mark.slow
def test_a_dry_run_walks_every_check_and_every_case(tmp_path: Path) -> None:
    assert main(["--dry-run", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["checks"].values()) == {"ok"}
    runs = {name: figure for title in report["figures"].values() for name, figure in title.items()}
    assert {figure.get("p50_us", "not measured") for figure in runs.values()} == {"not measured"}
    wanted = (
        "PyTorch bf16",
        "cuDNN",
        "max-autotune",
        "int8 product",
        "2:4",
        "sort",
        "topk",
        "kthvalue",
        "dense",
    )
    for baseline in wanted:
        assert any(name.startswith("baseline") and baseline in name for name in runs), baseline
    # A candidate that could not run would have failed; only a baseline may be missing.
    missing = [name for name, figure in runs.items() if "not_available" in figure]
    assert all("product alone" in name for name in missing), missing
    assert not (tmp_path / "cost_table.json").exists()
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} |" in table for name in runs)


@needs_interpreter
def test_a_mismatch_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(setting: object) -> None:
        require_equal("f", torch.ones(3), torch.zeros(3))

    monkeypatch.setattr(checks, "CHECKS", {"wrong": wrong})
    monkeypatch.setattr(steps, "same_step", lambda setting: lambda: None)
    monkeypatch.setattr(networks, "same_logits", lambda setting: None)
    assert main(["--dry-run", "--output", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["checks"]["wrong"] == "MismatchError: f: 3 of 3 entries differ"
    assert list(report["figures"].values()) == ["not measured: a check failed"]


@needs_triton
def test_merging_cost_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for k, device in enumerate(("A", "A", "B")):
        measured = [costs.Measured(costs.Case("f", (4, k % 2 + 1)), {"triton": 1.0 + k}, "m")]
        names.append(tmp_path / f"{k}.json")
        names[-1].write_text(json.dumps(costs.table(device, "3.9.0", measured)))
    output = tmp_path / "joined.json"
    assert merge.main([*map(str, names[:2]), "--output", str(output)]) == 0
    device, _, measured = costs.parse(json.loads(output.read_text()))
    assert (device, [entry.microseconds["triton"] for entry in measured]) == ("A", [1.0, 2.0])
    output.unlink()
    assert merge.main([*map(str, names), "--output", str(output)]) == 1
    assert "2 devices or Triton versions" in capsys.readouterr().err
    assert not output.exists()


@needs_triton
def test_launch_and_report_limit_registers_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = RegisterLimit(144, {9: 124})
    on_a_gpu = SimpleNamespace(is_cuda=True, device="cuda:0")
    for target, capability, most in (
        ("sm_80", (8, 0), 144),
        ("sm_90", (9, 0), 124),
        ("sm_100", (10, 0), 144),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert register_limit(limit, on_a_gpu) == {"maxnreg": most}
        assert limit.options(compile_report.major_capability(target)) == {"maxnreg": most}
        assert register_limit(RegisterLimit(), on_a_gpu) == {}
    assert limit.options(compile_report.major_capability("gfx942")) == {}
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert register_limit(limit, on_a_gpu) == {}


@needs_triton
def test_the_report_in_the_repository_is_whole_and_passes() -> None:
    rows = json.loads((compile_report.RESULTS / "compile_report.json").read_text())["rows"]
    found = [(row["operation"], row["kernel"], row["configuration"], row["target"]) for row in rows]
    wanted = [
        (operation, case.kernel.fn.__name__, case.name, target)
        for operation, case in compile_report.cases(compile_report.operations())
        for target in compile_report.TARGETS
    ]
    assert sorted(found) == sorted(wanted)
    assert [row for row in rows if row["failures"]] == []


@needs_triton
def test_a_report_in_parts_keeps_its_other_rows(tmp_path: Path) -> None:
    def row(operation: str, target: str) -> compile_report.Row:
        return compile_report.Row(operation, "k", "c", target, 1, 0, 0, "", {"x": 1.0}, ("bad",))

    rows = [row("b", "sm_90"), row("a", "gfx942"), row("a", "sm_80")]
    versions = {"triton": "3.9.0"}
    compile_report.write(tmp_path, rows, versions)
    assert compile_report.read(tmp_path, versions) == [rows[2], rows[1], rows[0]]
    assert compile_report.read(tmp_path, {"triton": "3.6.0"}) == []
    assert compile_report.read(tmp_path / "nowhere", versions) == []
