"""RigL-driven tickets against ordinary ones: accuracy, counted FLOPs, and step time on a CPU.

    python -m benchmarks.studies.rigl_tickets train conv6
    python -m benchmarks.studies.rigl_tickets train fc
    python -m benchmarks.studies.rigl_tickets time

train: on 10,000 images of Fashion-MNIST averaged to 14 x 14, 95 % of each layer pruned, 6 epochs:
half a minute of one core. Few images many times, because the learning rate is constant within an
epoch and has to end near 0, or the masks still jump at the end. Conv-6 has half its width and batch
64, FC (196-300-100-10) batch 128, both batch norms: without them nine layers of 5 % do not train.
time: full Conv-6 on 28 x 28, batch 64, one thread; an ordinary step and whole periods by turns, in
processor time. With MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 in the
environment glibc keeps freed memory for the next step; the table says where it did. Both write
rigl_tickets_results.json beside this file; `--minutes N` stops after the epoch that passes them,
and the next call goes on there.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.studies.rigl import OutOfTimeError, pooled, stop_at
from mpt_fast import TicketConfig, models, update_masks
from mpt_fast.data import load
from mpt_fast.measure.machine import machine
from mpt_fast.measure.timing import percentile
from mpt_fast.sparse import RigLTickets, TicketTrainer, ticket_cost
from mpt_fast.training import Cadence, Recipe, Trainer
from mpt_fast.training.checkpoint import atomic_write
from mpt_fast.training.distributed import World

RESULTS = Path(__file__).resolve().parent / "rigl_tickets_results.json"
CASES = ((4, 1), (1, 1), (2, 1), (4, 2))  # delta_t, select_t; (1, 1) is the ordinary ticket
SEEDS = (0, 1, 2)
IMAGES = 10_000
NETWORKS: dict[str, dict[str, Any]] = {
    "conv6": {"width": 0.5, "lr": 0.03, "batch_size": 64},
    "fc": {"lr": 0.1, "batch_size": 128},
}
RECIPE = {
    "data": "fashion-mnist",
    "options": {"layout": "normed"},
    "bn": "affine",
    "sparsity": 0.95,
    "scope": "layer",
    "weight_init": "signed_constant",
    "epochs": 6,
    "amp": "none",
    "threads": 1,
}
TIMED = ((2, 1), (4, 1), (4, 2), (4, 4), (8, 8))  # delta_t, select_t


def train(network: str, work: Path, minutes: float) -> bool:
    """Train what has no result yet; True when nothing is missing."""
    dataset = pooled(load("fashion-mnist"), 2).first(IMAGES)
    end = time.monotonic() + 60 * minutes
    for seed in SEEDS:
        for delta_t, select_t in CASES:
            key = f"{network}/{delta_t}/{select_t}/{seed}"
            results = _results()
            if key in results.setdefault("runs", {}):
                continue
            if time.monotonic() > end:
                return False
            # Each in the memory format that suits it.
            varied = {"model": network, "seed": seed, "channels_last": delta_t == 1}
            recipe = Recipe.from_dict({**RECIPE, **NETWORKS[network], **varied})
            model = recipe.build(dataset.image_shape, dataset.num_classes)
            folder = work / f"tickets-{key.replace('/', '-')}"
            folder.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {
                "device": torch.device("cpu"),
                "world": World(),
                "cadence": Cadence(),
                "quiet": True,
                "on_epoch": functools.partial(stop_at, end),
            }
            trainer: Trainer
            if delta_t == 1:
                trainer = Trainer(model, dataset, recipe, folder, **options)
            else:
                options |= {"delta_t": delta_t, "select_t": select_t}
                trainer = TicketTrainer(model, dataset, recipe, folder, **options)
            try:
                result = trainer.run(resume=True)
            except OutOfTimeError:
                return False
            counted = ticket_cost(result.model, dataset.image_shape)
            method = "ticket" if delta_t == 1 else "rigl-ticket"
            results["runs"][key] = {
                "network": network,
                "delta_t": delta_t,
                "select_t": select_t,
                "seed": seed,
                "accuracy": result.accuracy,
                "history": [row["test_accuracy"] for row in result.history],
                "seconds": round(result.seconds, 1),
                "training_ratio": counted.training_ratio(method, delta_t=delta_t),
            }
            _write(results)
            sys.stderr.write(f"{key}: {result.accuracy:.2%} in {result.seconds:.0f} s\n")
    return True


def clock(rounds: int = 5, batch: int = 64) -> None:
    """An ordinary step against the mean step of each period, by turns, in processor seconds."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    config = TicketConfig(sparsity=0.95, scope="layer")

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = models.conv6(in_channels=1, image_size=28, config=config)
        scores = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.SGD(scores, 0.1, momentum=0.9, fused=True)

    ordinary, ordinary_optimizer = build()
    ordinary.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    last = images.to(memory_format=torch.channels_last)

    def ordinary_step() -> None:
        update_masks(ordinary)
        _train_step(ordinary, ordinary_optimizer, last, labels)

    def period(tickets: RigLTickets, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(tickets.delta_t):
            tickets.begin_step()
            _train_step(tickets.model, optimizer, images, labels)

    calls: dict[tuple[int, int], Callable[[], None]] = {(1, 1): ordinary_step}
    for delta_t, select_t in TIMED:
        model, optimizer = build()
        tickets = RigLTickets(model, delta_t, select_t=select_t)
        calls[delta_t, select_t] = functools.partial(period, tickets, optimizer)
    samples: dict[tuple[int, int], list[float]] = {key: [] for key in calls}
    for i in range(rounds + 1):
        for key in list(calls) if i % 2 else reversed(list(calls)):
            # Processor time, because the machine may be shared; all run one thread.
            start = time.process_time()
            calls[key]()
            if i > 0:  # the first round warms up
                samples[key].append((time.process_time() - start) / key[0])
    counted = ticket_cost(ordinary, (1, 28, 28))
    facts = machine()
    here = {
        "cpu": facts["cpu"],
        "instruction_sets": facts["instruction_sets"],
        "keeps_memory": "MALLOC_TRIM_THRESHOLD_" in os.environ,
    }
    results = _results()
    rows = [
        row
        for row in results.get("time", [])
        if any(row.get(key, False) != value for key, value in here.items())
    ]
    ordinary_times = samples[1, 1]
    for delta_t, select_t in TIMED:
        driven = samples[delta_t, select_t]
        ratios = [a / b for a, b in zip(ordinary_times, driven, strict=True)]
        rows.append(
            {
                "network": f"conv6, 28x28, batch {batch}, 95 % of each layer",
                "delta_t": delta_t,
                "select_t": select_t,
                "ratio": percentile(ratios, 0.5),
                "ratio_p20": percentile(ratios, 0.2),
                "ratio_p80": percentile(ratios, 0.8),
                "ordinary_ms": 1e3 * percentile(ordinary_times, 0.5),
                "driven_ms": 1e3 * percentile(driven, 0.5),
                "rounds": rounds,
                "training_ratio": counted.training_ratio("rigl-ticket", delta_t=delta_t),
                "torch": facts["torch"],
                **here,
            }
        )
    results["time"] = rows
    _write(results)
    sys.stderr.write(f"{rows}\n")


def _train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def _write(results: dict[str, Any]) -> None:
    atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "time"))
    parser.add_argument("network", nargs="?", choices=tuple(NETWORKS), default="conv6")
    parser.add_argument("--work", type=Path, default=Path("runs/rigl-study"))
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "time":
        clock()
    elif not train(arguments.network, arguments.work, arguments.minutes):
        sys.exit(3)


if __name__ == "__main__":
    main()
