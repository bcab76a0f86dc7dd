"""Time from a file to the first result, and memory while running, each in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpt_fast.runtime import Program

_STARTUP = """
import json, sys, time
begin = time.perf_counter()
import numpy as np
from mpt_fast import runtime
imported = time.perf_counter()
model = runtime.load(sys.argv[1], threads=int(sys.argv[2]), code=bool(int(sys.argv[3])))
x = np.zeros((1, *model.input_shape), np.float32)
model(x)
print(json.dumps({"import": imported - begin, "load": time.perf_counter() - imported}))
"""

_MEMORY = """
import gc, json, sys
import numpy as np
from mpt_fast import runtime
from mpt_fast.kernels import cpu
from mpt_fast.runtime.synthetic import Synthetic

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

path, (batch, threads, code) = sys.argv[1], map(int, sys.argv[2:])
shape = runtime.read_program(path).input_shape
net = Synthetic((1, 8, 8))
net.sign(net.combine(0, "bits"), 8, 3, 0.5)
runtime.Model(net.program()).run(np.zeros((1, 1, 8, 8), np.float32), threads)  # code and stacks
x = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
gc.collect()
cpu.engine().trim_memory()
before = status("VmRSS")
model = runtime.load(path, threads=threads, code=bool(code))
gc.collect()
loaded = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew here
model.run(x, threads)
print(json.dumps({"loaded": loaded - before, "running": status("VmHWM") - before}))
"""


def startup(
    path: str | os.PathLike, threads: int = 1, repeats: int = 5, code: bool = True
) -> dict[str, float]:
    """Median seconds of a fresh process: "import" of the runtime, "load" to the first result.

    `code` as in `runtime.load`.
    """
    runs = [_run(_STARTUP, Path(path), threads, int(code)) for _ in range(repeats)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def memory(
    path: str | os.PathLike, batch: int, threads: int = 1, code: bool = True
) -> dict[str, Any]:
    """Resident bytes that a network adds to a process that has run another one (Linux).

    "loaded": after it was read and compiled; "running": at the peak of a call with a batch. The
    input is left out, the result counted in. `code` as in `runtime.load`.
    """
    return _run(_MEMORY, Path(path), batch, threads, int(code))


def neighbouring_bytes(program: Program, lanes: int) -> int:
    """Bytes of the largest pair of a step's largest source and its result, for one block.

    Bits take one bit per lane, levels two bytes, sums and f32 four, f64 eight; no borders.
    """
    width = {"bits": 1 / 8, "sums": 4, "f32": 4, "f64": 8, "u8": 2, "i8": 2, "i16": 2}
    size = [v.channels * v.height * v.width * width[v.kind] for v in program.values()]
    return max(
        round(lanes * (max(size[source] for source in step.sources()) + size[number + 1]))
        for number, step in enumerate(program.steps)
    )


def _run(code: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"a measuring process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)
