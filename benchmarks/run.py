"""Runs the CPU benchmarks and renders their tables.

    python -m benchmarks.run [pytest arguments, such as -k selection]

Results are merged into benchmarks/results/cpu.json, a case of the same name replacing the older
one, and benchmarks/RESULTS.md is rendered from that file alone.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.render import render

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "cpu.json"


def cases_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One entry per benchmark, by test id: what RESULTS.md needs, and when it was measured."""
    cases = {}
    for entry in report["benchmarks"]:
        cases[entry["fullname"]] = entry["extra_info"] | {"date": report["datetime"][:10]}
    return cases


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "report.json"
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--timeout=1800", "--benchmark-only",
             "--benchmark-quiet", f"--benchmark-json={raw}", str(HERE), *arguments],
            cwd=HERE.parent,
        ).returncode  # fmt: skip
        if not raw.exists() or not raw.stat().st_size:
            return code or 1
        report = json.loads(raw.read_text())
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known.update(cases_of(report))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    (HERE / "RESULTS.md").write_text(render(known))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
