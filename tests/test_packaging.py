"""The package imports from outside the checkout, installed as a wheel and editable."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBE = (
    "import mpt_fast, mpt_fast.kernels, sys; from mpt_fast.kernels import cpu; cpu.engine(); "
    "import mpt_fast.nn, mpt_fast.packed, mpt_fast.training, mpt_fast.cli; "
    "print(mpt_fast.__file__); print(mpt_fast.kernels.__file__)"
)


def run_python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_editable_install_imports_from_elsewhere(tmp_path: Path) -> None:
    result = run_python(PROBE, tmp_path)
    assert result.returncode == 0, result.stderr
    package, kernels = map(Path, result.stdout.split())
    assert package == ROOT / "mpt_fast" / "__init__.py"
    assert kernels == ROOT / "kernels" / "__init__.py"


def test_kernels_is_not_a_top_level_package() -> None:
    result = run_python("import kernels", ROOT)
    assert result.returncode != 0
    assert "imported as mpt_fast.kernels" in result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiles the engine
def test_wheel_imports_from_elsewhere(tmp_path: Path) -> None:
    # --no-build-isolation: setuptools and pybind11 come from this environment, not from an index.
    # Objects under build/ that are up to date are not compiled again; build/lib would bring files
    # that no longer exist into the wheel.
    for stale in (ROOT / "build").glob("lib*"):
        shutil.rmtree(stale)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mpt_fast/py.typed" in names
    assert "mpt_fast/kernels/select_topk/cpu.h" in names
    assert not [n for n in names if n.startswith(("kernels/", "tests/", "benchmarks/"))]
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    result = run_python(PROBE, tmp_path, PYTHONPATH=str(target))
    assert result.returncode == 0, result.stderr
    for line in result.stdout.split():
        assert Path(line).is_relative_to(target)
