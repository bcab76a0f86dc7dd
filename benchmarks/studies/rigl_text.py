"""A small char-GRU on a text file: sparse methods against the dense network.

    python -m benchmarks.studies.rigl_text /usr/share/common-licenses/GPL-3

75 % pruned, uniform, alpha 0.1, Adam 7e-4 with decay 5e-4, gradients clipped at 10 as in the paper,
but a GRU of 128 units (paper: 512), 32 windows of 64 bytes (512) and 600 steps (200,000), hence
updates every 20 steps (100). Writes rigl_text_results.json beside this file: bits per byte on the
last tenth of the file. Stopped, the next call trains what is missing.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mpt_fast import sparse
from mpt_fast.data.text import TextBatches, load_text
from mpt_fast.models import CharGRU
from mpt_fast.training.checkpoint import atomic_write

RESULTS = Path(__file__).resolve().parent / "rigl_text_results.json"
STEPS = 600
METHODS = ("dense", "static", "set", "rigl", "snfs", "pruning")


def bits_per_byte(model: nn.Module, batches: TextBatches) -> float:
    """Mean cross-entropy in bits over the whole text."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for tokens, targets in batches.whole():
            logits, _ = model(tokens)
            total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten())) * len(tokens)
            count += len(tokens)
    model.train()
    return total / count / math.log(2)


def train(method: str, seed: int, training: TextBatches, test: TextBatches) -> dict[str, Any]:
    """One run: bits per byte at every tenth of the steps."""
    torch.manual_seed(seed)
    model = CharGRU(embedding=64, hidden=128, readout=(128, 64))
    optimizer = torch.optim.Adam(model.parameters(), 7e-4, weight_decay=5e-4)
    options: dict[str, Any] = {"distribution": "uniform", "seed": seed}
    if method in ("rigl", "set", "snfs"):
        options |= {"alpha": 0.1, "delta_t": 20, "t_end": STEPS}
    if method == "pruning":
        options |= {"t_start": STEPS // 4, "t_end": 3 * STEPS // 4, "frequency": 10}
    sparsity = 0.0 if method == "dense" else 0.75
    kind = sparse.METHODS["static" if method == "dense" else method]
    found = kind(model, optimizer, sparsity, **options)
    curve = []
    for t in range(STEPS):
        tokens, targets = training.step(t)
        logits, _ = model(tokens)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        if not found.step():
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        if (t + 1) % (STEPS // 6) == 0:
            curve.append(bits_per_byte(model, test))
    return {"method": method, "seed": seed, "bits_per_byte": curve[-1], "curve": curve,
            "sparsity": found.sparsity}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_text, test_text = load_text(arguments.text)
    test = TextBatches(test_text, 64, 64)
    results: dict[str, Any] = {"text": arguments.text.name, "bytes": len(train_text), "runs": []}
    if RESULTS.is_file():
        found = json.loads(RESULTS.read_text())
        if all(found[key] == results[key] for key in ("text", "bytes")):
            results = found
    done = {(run["method"], run["seed"]) for run in results["runs"]}
    for seed in range(arguments.seeds):
        for method in METHODS:
            if (method, seed) in done:
                continue
            training = TextBatches(train_text, 32, 64, seed)
            results["runs"].append(train(method, seed, training, test))
            sys.stderr.write(f"{results['runs'][-1]}\n")
            atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
