"""Builds the engine with AddressSanitizer and UndefinedBehaviorSanitizer and runs its tests.

    python -m benchmarks.sanitize [pytest arguments]

The instrumented copy lives under build/sanitize; the installed engine is left alone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
TESTS = ("tests/kernels", "tests/packed", "tests/runtime")


def runtime_library(name: str) -> str:
    """Path of a sanitizer's shared library, which must be loaded before the interpreter."""
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str]) -> int:
    shutil.rmtree(BUILD / "lib", ignore_errors=True)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", f"--build-lib={BUILD / 'lib'}",
         f"--build-temp={BUILD / 'temp'}"],
        cwd=ROOT,
        env=os.environ | {"MPT_FAST_SANITIZE": "address,undefined", "MPT_FAST_REQUIRE_ENGINE": "1"},
        check=True,
    )  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": str(BUILD / "lib"),
        # libstdc++ must be loaded first too, or a C++ exception cannot be intercepted.
        "LD_PRELOAD": f"{runtime_library('libasan.so')} {runtime_library('libstdc++.so')}",
        # The interpreter itself leaks by design; Python's own allocator would hide overruns.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    tests = arguments or [t for t in TESTS if (ROOT / t).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=1800", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
