"""LeNet-300-100 on Fashion-MNIST: what compaction removes, and the loss between two solutions.

    python -m benchmarks.studies.rigl_lenet compaction
    python -m benchmarks.studies.rigl_lenet landscape

compaction: RigL as in the paper's appendix B (99 % and 89.1 % of the two hidden layers pruned, the
last dense, delta_t 100), pixels in [0, 1] so that the empty border is 0, 4 epochs (paper: 200).
landscape: the training loss on 4,096 images between a magnitude-pruned and a static solution of
95 %, 2 epochs each; curves trained for 150 batches. Both write rigl_lenet_results.json.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_fast import sparse
from mpt_fast.data import Loader, load
from mpt_fast.models import lenet_300_100
from mpt_fast.training.checkpoint import atomic_write

RESULTS = Path(__file__).resolve().parent / "rigl_lenet_results.json"
BATCH = 128


def loader(train: bool) -> Loader:
    """Fashion-MNIST as shares of 1."""
    dataset = load("fashion-mnist")
    split = dataset.train if train else dataset.test
    return Loader(split, BATCH, mean=(0.0,), std=(1.0,), train=train)


def fit(kind: str, epochs: int, seed: int, sparsity: float, **options: Any) -> nn.Module:
    """A trained LeNet-300-100, by the method `kind`."""
    torch.manual_seed(seed)
    model = lenet_300_100(config=None)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    batches = loader(True)
    steps = epochs * len(batches)
    if kind == "rigl":
        options |= {"t_end": 3 * steps // 4}
    if kind == "pruning":
        options |= {"t_start": steps // 8, "t_end": 3 * steps // 4, "frequency": 20}
    method = sparse.METHODS[kind](model, optimizer, sparsity, seed=seed, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            method.optimizer_step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    right = total = 0
    with torch.no_grad():
        for images, labels in loader(False).epoch():
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def compaction() -> dict[str, Any]:
    """Widths, size and which pixels live, for one network."""
    custom = {"linear.0": 0.99, "linear.2": 0.891, "linear.4": 0.0}
    model = fit("rigl", 4, 0, 0.99, custom=custom, delta_t=100, alpha=0.3)
    found = sparse.compact(model)
    alive = found.alive.view(28, 28)
    border = torch.ones(28, 28, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    return {
        "widths": list(found.widths),
        "kept": found.kept,
        "size_bytes": found.size_bytes,
        "flops": found.flops,
        "accuracy": accuracy(model),
        "compact_accuracy": accuracy(found.model),
        "alive_border": float(alive[border].float().mean()),
        "alive_inside": float(alive[~border].float().mean()),
        "alive": ["".join("#" if x else "." for x in row) for row in alive.tolist()],
    }


def landscape() -> dict[str, Any]:
    """Losses along the curves of Figure 6."""
    pruned = fit("pruning", 2, 0, 0.95, distribution="erk")
    static = fit("static", 2, 1, 0.95)
    batches = loader(True)

    def some(count: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(batches.epoch(epoch)):
            if index == count:
                return
            yield batch

    points = [i / 10 for i in range(11)]
    found: dict[str, Any] = {"u": points}
    for name, degree, inside in (
        ("line", 1, True),
        ("quadratic, sparse", 2, True),
        ("cubic, sparse", 3, True),
        ("quadratic, dense", 2, False),
    ):
        curve = sparse.fit_curve(
            static,
            pruned.state_dict(),
            static.state_dict(),
            some(150, 7),
            F.cross_entropy,
            degree=degree,
            sparse=inside,
            lr=0.003,
        )
        losses = sparse.curve_losses(static, curve, points, lambda: some(32, 8), F.cross_entropy)
        found[name] = {"losses": losses, "barrier": sparse.barrier(losses)}
        sys.stderr.write(f"{name}: barrier {found[name]['barrier']:.3f}\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("compaction", "landscape"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[arguments.what] = compaction() if arguments.what == "compaction" else landscape()
    atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
