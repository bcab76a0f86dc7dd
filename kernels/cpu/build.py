"""What building the engine and checking a build have in common.

This file imports nothing of the package, so that setup.py can read it before there is one.
"""

import hashlib
from pathlib import Path

FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
ISA_FLAGS = {
    "_avx512.cpp": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mbmi2",
        "-mfma",
        "-mavx2",
        "-mprefer-vector-width=512",
    ],
    "_avx2.cpp": ["-mavx2", "-mfma"],
    # Vectors wider than the baseline's registers, but none crosses a function that is not inlined.
    "_emulated512.cpp": ["-Wno-psabi"],
}
"""Flags of the files with these endings; all other files use the compiler's baseline."""


def source_digest(kernels: Path) -> str:
    """Digest of names and contents of every C++ file under the folder `kernels`.

    setup.py compiles it in; a development checkout compares it when it loads the engine.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in kernels.rglob("*") if p.suffix in (".cpp", ".h")):
        digest.update(path.relative_to(kernels).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
