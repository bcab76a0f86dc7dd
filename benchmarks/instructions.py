"""Instructions per kept tap and vector of the layer set, counted by valgrind on the AVX2 path.

    python -m benchmarks.instructions [binary] [float]

Unlike a clock, a count is repeatable. Each layer has four rows of its map and one vector of lanes
(float: 16 images); what is counted is inside the kernel's entry point only. valgrind does not run
AVX-512.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mpt_fast.benchmark.suite import LAYERS
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.program import ConvAffine, ConvSign
from mpt_fast.runtime.synthetic import Synthetic

DENSITIES = (0.5, 0.2, 0.1, 0.05)
ROWS = 4
ENTRY = {"binary": "bit_conv_sign", "float": "real_conv"}
BATCH = {"binary": 256, "float": 16}


def programs(kind: str) -> Iterator[tuple[str, float, CompiledProgram, float]]:
    """(layer, density, program, kept taps x vectors written at) of every case."""
    for channels, side in LAYERS:
        for density in DENSITIES:
            net = Synthetic((channels, ROWS, side))
            if kind == "binary":
                net.sign(net.combine(0, "bits"), channels, 3, density)
            else:
                net.real(0, channels, 3, density)
            program = net.program()
            step = program.steps[-1]
            assert isinstance(step, ConvSign | ConvAffine)
            vectors = ROWS * side * (1 if kind == "binary" else 2)
            name = f"{channels}@{ROWS}x{side}"
            yield name, density, CompiledProgram(program, "f32", "avx2"), step.taps.kept * vectors


def work(kind: str) -> None:
    """What runs under valgrind: each case once; `peak_bytes` marks its end."""
    import numpy as np

    for _, _, compiled, _ in programs(kind):
        x = np.zeros((BATCH[kind], *compiled.input_shape), np.float32)
        compiled(x, 1)
        compiled.peak_bytes(1)


def counts(kind: str) -> list[int]:
    """Instructions of every case's kernel."""
    with TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", "--collect-atstart=no",
            f"--toggle-collect=mpt::avx2::{ENTRY[kind]}(*",
            "--dump-after=mpt::Program::peak_bytes(*",
            f"--callgrind-out-file={folder}/out",
            sys.executable, "-m", "benchmarks.instructions", "--work", kind,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"valgrind failed: {done.stderr.strip().splitlines()[-1]}")
        # out.1, out.2, ... in order; `out` itself holds what came after the last dump.
        dumps = sorted(Path(folder).glob("out.*"), key=lambda p: int(p.suffix[1:]))
        totals = [re.search(r"^(?:totals|summary): (\d+)", p.read_text(), re.M) for p in dumps]
    return [int(total.group(1)) for total in totals if total]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--work"]:
        work(arguments[1])
        return 0
    for kind in arguments or list(ENTRY):
        found = counts(kind)
        cases = list(programs(kind))
        if len(found) != len(cases):
            raise RuntimeError(f"{len(found)} counts for {len(cases)} cases")
        print(f"\n{kind}: instructions per kept tap and AVX2 vector, by density\n")
        print("| layer | " + " | ".join(f"{d:g}" for d in DENSITIES) + " |")
        print("|---" * (len(DENSITIES) + 1) + "|")
        per_case = [count / taps for count, (_, _, _, taps) in zip(found, cases, strict=True)]
        for start in range(0, len(cases), len(DENSITIES)):
            row = per_case[start : start + len(DENSITIES)]
            print(f"| {cases[start][0]} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
