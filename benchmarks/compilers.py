"""Compiles the engine with every supported compiler found here; a warning is an error.

    python -m benchmarks.compilers [COMPILER ...]

Without names: g++, clang++ and clang++-14, those that are installed (at least one must be).
Nothing is linked or installed. Exit status 1 where a file does not compile without warnings.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

from mpt_fast.kernels.cpu.build import FLAGS, ISA_FLAGS

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = ("g++", "clang++", "clang++-14")
EXTRA = ("tests/engine/kernels_emulated512_avx2.cpp",)


def command(compiler: str, source: str, openmp: bool = True) -> list[str]:
    """Compiles `source` to nowhere, with the flags of setup.py and -Werror."""
    special = [flags for ending, flags in ISA_FLAGS.items() if source.endswith(ending)]
    # pybind11's and Python's headers are not ours to warn about.
    system = [pybind11.get_include(), sysconfig.get_path("include")]
    return [
        compiler, *FLAGS, "-Werror", "-fPIC", *["-fopenmp"] * openmp, "-DMPT_EMULATED512",
        '-DMPT_SOURCE_DIGEST="check"', "-Ikernels", *[f"-isystem{path}" for path in system],
        *[flag for flags in special for flag in flags], "-c", source, "-o", os.devnull,
    ]  # fmt: skip


def compiled(job: list[str]) -> subprocess.CompletedProcess[str]:
    """The compiler's result and words."""
    return subprocess.run(job, cwd=ROOT, capture_output=True, text=True)


def has_openmp(compiler: str) -> bool:
    """Whether its OpenMP headers are installed (clang's come in a package of their own)."""
    probe = [compiler, "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(probe, input="#include <omp.h>", capture_output=True, text=True)
    return done.returncode == 0


def version(compiler: str) -> str:
    """First line of what the compiler says of itself."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return re.sub(r"\s+", " ", done.stdout.splitlines()[0])


def main(names: list[str]) -> int:
    chosen = names or [name for name in COMPILERS if shutil.which(name)]
    missing = [name for name in chosen if not shutil.which(name)]
    if missing or not chosen:
        print(f"not installed: {', '.join(missing or COMPILERS)}", file=sys.stderr)
        return 1
    # clang++ is often a link to the newest clang++-N: one check of each program is enough.
    programs = {Path(str(shutil.which(name))).resolve(): name for name in chosen}
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "kernels").rglob("*.cpp"))
    failed = False
    for name in programs.values():
        start = time.perf_counter()
        openmp = has_openmp(name)
        jobs = [command(name, source, openmp) for source in [*sources, *EXTRA]]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            done = list(pool.map(compiled, jobs))
        bad = [result for result in done if result.returncode]
        failed |= bool(bad)
        for result in bad:
            print(result.stderr, file=sys.stderr)
        print(
            f"{version(name)}{'' if openmp else ' (without OpenMP)'}: "
            f"{len(jobs)} files, {len(bad)} with warnings or errors, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
