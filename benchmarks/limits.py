"""Measured limits of one core: vector loads and full adders per second.

    python -m benchmarks.limits

The bit-sliced inner loop needs one vector load at a place that a list names, and one full adder per
kept tap, so a core adds at most min(loads, loads_with_adders) tap-vectors per second.
"""

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mpt_fast.kernels import cpu
from mpt_fast.kernels.cpu.build import ISA_FLAGS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "plain": 16}


def limits(isa: str | None = None) -> dict[str, Any]:
    """Per second: "adders"; "loads" by bytes of the slice they come from. Compiles with $CXX."""
    name = isa or cpu.engine().isas()[0]
    with TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        subprocess.run(
            [os.environ.get("CXX", "g++"), "-std=c++17", "-O3", *ISA_FLAGS.get(f"_{name}.cpp", []),
             f"-DMPT_ISA={name}", f"-DMPT_VECTOR_BYTES={VECTOR_BYTES[name]}",
             f"-I{ROOT / 'kernels'}", str(HERE / "limits.cpp"), "-o", str(program)],
            check=True,
        )  # fmt: skip
        done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return {"isa": name, **json.loads(done.stdout)}


def load_limit(found: dict[str, Any], slice_bytes: float) -> float:
    """Loads per second from a slice of so many bytes: of the next larger measured size."""
    sizes = sorted((int(size), rate) for size, rate in found["loads"].items())
    return next((rate for size, rate in sizes if size >= slice_bytes), sizes[-1][1])


if __name__ == "__main__":
    print(json.dumps(limits(), indent=1))
