"""Trained networks inside random +-1 networks, and how often the mask search succeeds.

    python -m benchmarks.studies.random_binary

trains two networks on Fashion-MNIST, approximates each by pruning a random +-1 network and compares
the predictions on the 10,000 test images; then searches masks in 100 random networks for every
redundancy and compares the share of successes with what was predicted. Writes
random_binary_results.json and .md beside this file. `--quick` is a smaller run that writes nothing.
"""

import argparse
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_fast import runtime
from mpt_fast.data import Dataset, load
from mpt_fast.kernels import cpu
from mpt_fast.measure.machine import machine
from mpt_fast.random_binary import Approximation, MaskNotFound, approximate
from mpt_fast.random_binary.check import observe
from mpt_fast.random_binary.predict import union_bound

HERE = Path(__file__).resolve().parent
COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.studies.random_binary"
BATCH = 128
# (dims, bits, redundancies) of the success table: dense integer weights, every bit at random.
SUCCESS = (
    ((4, 5, 3), 6, (5, 6, 7, 8, 9, 10, 12, 16, 28)),
    ((16, 16, 8), 8, (6, 7, 8, 9, 10, 11, 12, 14, 16)),
)


def note(text: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{text}\n")


def lenet_300_100_10() -> nn.Sequential:
    """The fully connected LeNet on 28 x 28 images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def small_conv() -> nn.Sequential:
    """Two 5 x 5 convolutions with batch norm and average pooling, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 5, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def pixels(images: Tensor) -> Tensor:
    """Images as shares of 1: float32 in [0, 1]."""
    return images.float() / 255


def train(net: nn.Sequential, dataset: Dataset, epochs: int, seed: int) -> float:
    """Adam with a cosine schedule; returns the test accuracy."""
    torch.manual_seed(seed)
    for layer in net:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    images, labels = dataset.train.batch(torch.arange(len(dataset.train))), dataset.train.labels
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(net(pixels(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    test = dataset.test.batch(torch.arange(len(dataset.test)))
    with torch.no_grad():
        return float((net(pixels(test)).argmax(1) == dataset.test.labels).double().mean())


def study_network(
    name: str, net: nn.Sequential, dataset: Dataset, epsilon: float, epochs: int, images: int
) -> dict[str, Any]:
    """Trains, approximates and compares one network."""
    note(f"training {name}")
    accuracy = train(net, dataset, epochs, seed=0)
    note(f"approximating {name}")
    test = pixels(dataset.test.batch(torch.arange(min(images, len(dataset.test)))))
    radius = float(test.flatten(1).norm(dim=1).max().ceil())
    start = time.perf_counter()
    found = approximate(net, epsilon, seed=0, input_shape=(1, 28, 28), radius=radius)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        wanted = net.double()(test.double())
    note(f"comparing predictions of {name}")
    start = time.perf_counter()
    got = evaluate(found, test)
    forward = time.perf_counter() - start
    errors = (got - wanted).norm(dim=1)
    seen = observe(found, net, points=128, steps=10, vertices=128)
    path = HERE / ".random_binary_study.mpt"
    size = found.save(path)
    path.unlink()
    report = found.report
    return {
        "network": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "accuracy": accuracy,
        "accuracy_of_the_random_network": float(
            (got.argmax(1) == dataset.test.labels[: len(test)]).double().mean()
        ),
        "images": len(test),
        "unchanged": int((got.argmax(1) == wanted.argmax(1)).sum()),
        "largest_error_on_images": float(errors.max()),
        "observed_error": seen.largest,
        "seconds": seconds,
        "evaluation_seconds": forward,
        "evaluated_by": "engine" if cpu.available() else "module",
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "file_bytes": size,
        **{k: v for k, v in report.to_dict().items() if k != "layers"},
    }


def evaluate(found: Approximation, test: Tensor) -> Tensor:
    """The pruned network on images, float64 [N, 10]: by the engine, else by the module."""
    if not cpu.available():
        with torch.no_grad():
            return found.module(test).double()
    model = runtime.Model(found.program())
    rows = [model.run(part.numpy(), torch.get_num_threads()) for part in test.split(256)]
    return torch.from_numpy(np.concatenate(rows)).double()


def integer_net(dims: tuple[int, ...], bits: int, seed: int) -> nn.Sequential:
    """Weights N/2**bits with N uniform in -2**bits .. 2**bits, no biases."""
    rng = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(dims):
        layer = nn.Linear(n, m, bias=False).double()
        numbers = rng.integers(-(2**bits), 2**bits + 1, (m, n))
        layer.weight.data = torch.from_numpy(numbers / 2.0**bits)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def study_success(
    dims: tuple[int, ...], bits: int, redundancies: tuple[int, ...], draws: int
) -> list[dict[str, Any]]:
    """Found against predicted success over redundancy: another target and network each draw."""
    rows = []
    for redundancy in redundancies:
        note(f"masks of {dims} with redundancy {redundancy}")
        hits, expected = 0, []
        for draw in range(draws):
            net = integer_net(dims, bits, draw)
            try:
                found = approximate(net, 1e9, redundancy, seed=draw, bits=bits)
            except MaskNotFound as missing:
                expected.append(missing.expected_success)
                continue
            hits += 1
            expected.append(found.report.expected_success)
        depth = 1 + (len(dims) - 1) * (bits + 2)
        rows.append(
            {
                "dims": list(dims),
                "bits": bits,
                "redundancy": redundancy,
                "draws": draws,
                "found": hits,
                "predicted": draws * float(np.mean(expected)),
                "bound": max(0.0, 1 - union_bound(max(dims), depth, redundancy)),
            }
        )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    facts = ", ".join(f"{k} {v}" for k, v in result["machine"].items() if not isinstance(v, list))
    lines = [
        "# Trained networks inside random ±1 networks",
        "",
        f"`{COMMAND}` (seed 0; {facts})",
        "",
        "## Networks trained on Fashion-MNIST",
        "",
        "Inputs are pixels in [0, 1]; the certificate is for every input, of any content, up to "
        "the radius (the largest norm among the test images, rounded up).",
        "",
        "| | " + " | ".join(row["network"] for row in result["networks"]) + " |",
        "|---" * (1 + len(result["networks"])) + "|",
    ]
    table = {
        "parameters": lambda r: f"{r['parameters']:,}",
        "test accuracy, trained": lambda r: f"{100 * r['accuracy']:.2f} %",
        "test accuracy, pruned random": lambda r: (
            f"{100 * r['accuracy_of_the_random_network']:.2f} %"
        ),
        "predictions unchanged": lambda r: f"{r['unchanged']:,} of {r['images']:,}",
        "epsilon": lambda r: f"{r['epsilon']:g}",
        "radius": lambda r: f"{r['radius']:g}",
        "certificate": lambda r: f"{r['certificate']:.4f}",
        "largest error on the images": lambda r: f"{r['largest_error_on_images']:.5f}",
        "largest error found by search": lambda r: f"{r['observed_error']:.5f}",
        "bits per weight": lambda r: f"{r['bits']}",
        "redundancy": lambda r: f"{r['redundancy']}",
        "layers": lambda r: f"{r['depth']}",
        "greatest width": lambda r: f"{r['width']:,}",
        "signs drawn": lambda r: f"{r['edges_drawn']:,}",
        "signs kept": lambda r: (
            f"{r['edges_kept']:,} ({100 * r['edges_kept'] / r['edges_drawn']:.3g} %)"
        ),
        "file (seed and mask)": lambda r: f"{r['file_bytes'] / 1e6:.2f} MB",
        "seconds to approximate": lambda r: f"{r['seconds']:.1f}",
        "seconds to evaluate": lambda r: f"{r['evaluation_seconds']:.1f} ({r['evaluated_by']})",
        "peak memory so far, training included": lambda r: f"{r['peak_gigabytes']:.2f} GB",
    }
    lines += [
        f"| {name} | " + " | ".join(show(row) for row in result["networks"]) + " |"
        for name, show in table.items()
    ]
    lines += [
        "",
        "## Success over redundancy",
        "",
        f"{result['success'][0]['draws']} draws a row, each another target (dense random integer "
        "weights) and another network. *Predicted* follows the number of live copies through the "
        "layers of each draw (`predict.expected_success`); *bound* is what the theorem's union "
        "bound guarantees for all targets of the shape at once.",
        "",
        "| network | p | redundancy | found | predicted | bound |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {'-'.join(map(str, r['dims']))} | {r['bits']} | {r['redundancy']} | "
        f"{r['found']} | {r['predicted']:.1f} | {r['draws'] * r['bound']:.1f} |"
        for r in result["success"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, writes nothing")
    quick = parser.parse_args().quick
    dataset = load("fashion-mnist")
    epochs, images, draws = (1, 512, 5) if quick else (4, 10_000, 100)
    networks = [
        study_network("LeNet-300-100-10", lenet_300_100_10(), dataset, 0.1, epochs, images),
        study_network("small conv net", small_conv(), dataset, 0.1, epochs, images),
    ]
    success = [
        row
        for dims, bits, redundancies in SUCCESS
        for row in study_success(dims, bits, redundancies, draws)
    ]
    result = {"command": COMMAND, "machine": machine(), "networks": networks, "success": success}
    page = markdown(result)
    if not quick:
        (HERE / "random_binary_results.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "random_binary_results.md").write_text(page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
