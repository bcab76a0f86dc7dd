"""Builds the engine with AddressSanitizer and UndefinedBehaviorSanitizer and runs its tests.

    python -m benchmarks.sanitize [--plain] [pytest arguments]

Without --plain: every instruction set of this machine over all tests that reach the engine; where
that leaves out AVX-512, its kernels on 64-byte vectors without their instructions ("emulated512").
With it: the plain-word build alone over the engine's own tests. The instrumented copy lives under
build/; the installed engine is left alone.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mpt_fast.kernels.cpu import engine

ROOT = Path(__file__).resolve().parent.parent
# "cpu" leaves out what runs in Triton's interpreter.
TESTS = ("tests/kernels", "tests/packed", "tests/runtime", "-k", "cpu or runtime")
PLAIN_TESTS = ("tests/kernels/cpu", "tests/runtime")


def runtime_library(name: str) -> str:
    """Path of a sanitizer's shared library, which must be loaded before the interpreter."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    command = [*compiler, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build(isas: str) -> Path:
    """Builds the instrumented package for these instruction sets; returns the folder to import."""
    folder = ROOT / "build" / f"sanitize-{isas.replace(',', '-')}"
    shutil.rmtree(folder / "lib", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "--quiet", "build",
         f"--build-lib={folder / 'lib'}", f"--build-temp={folder / 'temp'}"],
        cwd=ROOT,
        env=os.environ
        | {
            "MPT_FAST_ISAS": isas,
            "MPT_FAST_SANITIZE": "address,undefined",
            "MPT_FAST_REQUIRE_ENGINE": "1",
        },
        check=True,
    )  # fmt: skip
    return folder / "lib"


def main(arguments: list[str]) -> int:
    plain = "--plain" in arguments
    isas = "plain" if plain else "native" if "avx512" in engine().isas() else "native,emulated512"
    environment = os.environ | {
        "PYTHONPATH": str(build(isas)),
        # libstdc++ must be loaded first too, or a C++ exception cannot be intercepted.
        "LD_PRELOAD": f"{runtime_library('libasan.so')} {runtime_library('libstdc++.so')}",
        # The interpreter itself leaks by design; Python's own allocator would hide overruns.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    tests = [a for a in arguments if a != "--plain"] or [*(PLAIN_TESTS if plain else TESTS)]
    # -P: the checkout in the working directory must not hide the instrumented copy.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--timeout=1800", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
