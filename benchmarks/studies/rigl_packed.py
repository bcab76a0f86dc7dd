"""Packed RigL networks against their dense twins in PyTorch, in processor time.

    python -m benchmarks.studies.rigl_packed

Networks with 95 % of their weights pruned, one thread: packed, and dense in NCHW and channels_last,
by turns. Uniform leaves the first layer dense, as RigL's authors do; LeNet-300-100 has ERK, theirs
for it. Processor time rather than the clock, so that it can be taken on a shared machine;
`make bench` has VGG-Small by the clock. Speed does not depend on what the weights are, so they are
not trained. Writes rigl_packed_results.json beside this file, and leaves other machines' rows.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast import models, sparse
from mpt_fast.measure.machine import machine
from mpt_fast.measure.timing import percentile
from mpt_fast.training.checkpoint import atomic_write

RESULTS = Path(__file__).resolve().parent / "rigl_packed_results.json"
SPARSITY, ROUNDS = 0.95, 7
SECONDS = 0.02  # of calls per round
# Network, distribution, batch.
CASES = (
    ("vgg_small", "uniform", 64),
    ("vgg_small", "uniform", 1),
    ("resnet18", "uniform", 64),
    ("resnet18", "uniform", 1),
    ("wrn22_2", "uniform", 64),
    ("wrn22_2", "uniform", 1),
    ("lenet_300_100", "erk", 64),
    ("lenet_300_100", "erk", 1),
)


def network(name: str, distribution: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A pruned network in evaluation mode with batch-norm statistics, and its image's shape."""
    shape = (1, 28, 28) if name == "lenet_300_100" else (3, 32, 32)
    torch.manual_seed(0)
    model = models.build(name, in_channels=shape[0], config=None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options: dict[str, Any] = {"distribution": distribution}
    sparse.Static(model, optimizer, SPARSITY, **options).remove()
    model.train()(torch.randn(8, *shape))
    return model.eval(), shape


def checked(model: nn.Module, packed: nn.Module, x: Tensor) -> None:
    """RuntimeError if the packed network does not compute what the model does in double."""
    expected = copy.deepcopy(model).double()(x[:4].double())
    error = (packed(x[:4]).double() - expected).abs().max() / expected.abs().max()
    if error > 1e-5:
        raise RuntimeError(f"the packed network is wrong by {float(error):.1e}; not timed")


def processor_times(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds per call, one mean of each round; the calls take turns."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.process_time()
        call()
        repeats[name] = max(1, round(SECONDS / max(time.process_time() - start, 1e-6)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(ROUNDS):
        for name in list(calls) if i % 2 else reversed(list(calls)):
            start = time.process_time()
            for _ in range(repeats[name]):
                calls[name]()
            samples[name].append((time.process_time() - start) / repeats[name])
    return samples


@torch.inference_mode()
def measure(name: str, distribution: str, batch: int) -> dict[str, Any]:
    """One row of the results."""
    model, shape = network(name, distribution)
    x = torch.randn(batch, *shape)
    packed = mpt.pack(model, x[:1], backend="cpu", threads=1)
    checked(model, packed, x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    x_last = x.to(memory_format=torch.channels_last)
    samples = processor_times(
        {
            "packed": lambda: packed(x),
            "dense NCHW": lambda: model(x),
            "dense channels_last": lambda: last(x_last),
        }
    )
    dense = min(("dense NCHW", "dense channels_last"), key=lambda n: statistics.median(samples[n]))
    ratios = [d / p for d, p in zip(samples[dense], samples["packed"], strict=True)]
    facts = machine()
    return {
        "network": name,
        "distribution": distribution,
        "batch": batch,
        "baseline": dense,
        "ratio": percentile(ratios, 0.5),
        "ratio_p20": percentile(ratios, 0.2),
        "ratio_p80": percentile(ratios, 0.8),
        "packed_ms": 1e3 * statistics.median(samples["packed"]),
        "dense_ms": 1e3 * statistics.median(samples[dense]),
        "rounds": ROUNDS,
        "file_bytes": packed.size_report().file_bytes,
        "isa": packed.plan(batch).isa,
        "cpu": facts["cpu"],
        "torch": facts["torch"],
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    for case in CASES:
        row = measure(*case)
        rows = [r for r in rows if _identity(r) != _identity(row)] + [row]
        atomic_write(RESULTS, (json.dumps({"rows": rows}, indent=1) + "\n").encode())
        sys.stderr.write(f"{row}\n")


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("network", "distribution", "batch", "isa", "cpu"))


if __name__ == "__main__":
    main()
