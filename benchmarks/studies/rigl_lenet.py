"""LeNet-300-100 on Fashion-MNIST: what compaction removes, and the loss between two solutions.

    python -m benchmarks.studies.rigl_lenet compaction
    python -m benchmarks.studies.rigl_lenet landscape
    python -m benchmarks.studies.rigl_lenet escape

compaction: RigL as in the paper's appendix B (99 % and 89.1 % of the two hidden layers pruned, the
last dense, delta_t 100), pixels in [0, 1] so that the empty border is 0, 4 epochs (paper: 200).
landscape: the training loss on 4,096 images between a magnitude-pruned and a static solution of
95 %, 2 epochs each; curves trained for 150 batches. escape: static solutions of 95 % (2 epochs,
three seeds) trained on for 6 epochs, with a learning rate that starts anew, by RigL from their
masks and by static training; the same loss after each epoch. All write rigl_lenet_results.json.
"""

import argparse
import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator
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


def fit(
    kind: str,
    epochs: int,
    seed: int,
    sparsity: float,
    *,
    start: nn.Module | None = None,
    on_epoch: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> nn.Module:
    """A LeNet-300-100 trained by the method `kind`, from `start` or new; options of the method."""
    torch.manual_seed(seed)
    model = copy.deepcopy(start) if start is not None else lenet_300_100(config=None)
    model.train()
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
        if on_epoch is not None:
            on_epoch(model)
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


def some(batches: Loader, count: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of an epoch."""
    return itertools.islice(batches.epoch(epoch), count)


@torch.no_grad()
def training_loss(model: nn.Module, batches: Loader) -> float:
    """The mean loss over 4,096 training images in evaluation mode."""
    was_training = model.training
    model.eval()
    found = [float(F.cross_entropy(model(x), labels)) for x, labels in some(batches, 32, 8)]
    model.train(was_training)
    return sum(found) / len(found)


def escape(seeds: int = 3, epochs: int = 6) -> dict[str, Any]:
    """Second panel of Figure 6: which method leaves a static solution for a better one."""
    batches = loader(True)
    found: dict[str, Any] = {"epochs": epochs, "static": [], "rigl": []}
    for seed in range(seeds):
        start = fit("static", 2, seed, 0.95)
        masks = {n: w.detach() != 0 for n, w in sparse.sparse_parameters(start).items()}
        first = training_loss(start, batches)
        for kind in ("static", "rigl"):
            losses = [first]

            def note(model: nn.Module, to: list[float] = losses) -> None:
                to.append(training_loss(model, batches))

            model = fit(kind, epochs, seed, 0.95, start=start, on_epoch=note, masks=masks)
            found[kind].append({"losses": losses, "accuracy": accuracy(model)})
            sys.stderr.write(f"{kind}, seed {seed}: loss {losses[0]:.3f} to {losses[-1]:.3f}\n")
    return found


def landscape() -> dict[str, Any]:
    """Losses along the curves of Figure 6."""
    pruned = fit("pruning", 2, 0, 0.95, distribution="erk")
    static = fit("static", 2, 1, 0.95)
    batches = loader(True)
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
            some(batches, 150, 7),
            F.cross_entropy,
            degree=degree,
            sparse=inside,
            lr=0.003,
        )
        losses = sparse.curve_losses(
            static, curve, points, lambda: some(batches, 32, 8), F.cross_entropy
        )
        found[name] = {"losses": losses, "barrier": sparse.barrier(losses)}
        sys.stderr.write(f"{name}: barrier {found[name]['barrier']:.3f}\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = {"compaction": compaction, "landscape": landscape, "escape": escape}
    parser.add_argument("what", choices=tuple(kinds))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[arguments.what] = kinds[arguments.what]()
    atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
