"""How time grows: the packed side alone, over density, batch, width and threads.

Each point is the median of a few calls; the curves are plotted by plots.py.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import mpt_fast as mpt
from mpt_fast import models
from mpt_fast.benchmark.run import CHAIN, images, layer_clock, layer_program, ticket
from mpt_fast.measure import Clocked, interleave
from mpt_fast.runtime.engine import CompiledProgram

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
BATCHES = (1, 4, 16, 64, 256, 1024)
WIDTHS = (0.25, 0.5, 1.0, 2.0)
NETWORK, SPARSITY = "vgg_small", 0.9
KINDS = {"binary": 512, "relu": 64}  # activation: batch

Curve = dict[str, Any]


def sweeps(seconds: float) -> dict[str, list[Curve]]:
    """Curves by plot: label, x, and y in seconds per image; about `seconds` per point."""
    return {
        "density": [_density(kind, seconds) for kind in KINDS],
        "batch": [_batch(kind, seconds) for kind in KINDS],
        "width": [_width(kind, seconds) for kind in KINDS],
        "threads": [_threads(kind, seconds) for kind in KINDS],
    }


def _time(call: Callable[[], Any], seconds: float) -> float:
    return interleave([call], repeats=30, warmup=1, seconds=seconds)[0].median


def _density(kind: str, seconds: float) -> Curve:
    channels, side = 128, 16
    x = images(KINDS[kind], (1, side, side))
    y = []
    for density in DENSITIES:
        compiled = CompiledProgram(layer_program(channels, side, density, kind == "binary"), "f32")
        y.append(_time(Clocked(layer_clock(compiled, x, 1)), seconds) / CHAIN / len(x))
    return {"label": f"{kind} layer {channels}@{side}x{side}", "x": DENSITIES, "y": y}


def _batch(kind: str, seconds: float) -> Curve:
    packed = mpt.pack(ticket(NETWORK, kind, SPARSITY), images(1, (3, 32, 32)), "cpu", threads=1)
    y = []
    for batch in BATCHES:
        x = images(batch, (3, 32, 32))
        y.append(_time(partial(packed, x), seconds) / batch)
    return {"label": f"{kind} {NETWORK}", "x": BATCHES, "y": y}


def _width(kind: str, seconds: float) -> Curve:
    x = images(KINDS[kind], (3, 32, 32))
    y = []
    for width in WIDTHS:
        torch.manual_seed(0)
        config = mpt.TicketConfig(sparsity=SPARSITY, scope="layer")
        model = models.build(NETWORK, activation=kind, width=width, config=config).eval()
        packed = mpt.pack(model, x[:1], "cpu", threads=1)
        y.append(_time(partial(packed, x), seconds) / len(x))
    return {"label": f"{kind} {NETWORK}", "x": WIDTHS, "y": y}


def _threads(kind: str, seconds: float) -> Curve:
    x = images(KINDS[kind], (3, 32, 32))
    model = ticket(NETWORK, kind, SPARSITY)
    y = []
    counts = range(1, len(os.sched_getaffinity(0)) + 1)
    for threads in counts:
        packed = mpt.pack(model, x[:1], "cpu", threads=threads)
        y.append(_time(partial(packed, x), seconds) / len(x))
    return {"label": f"{kind} {NETWORK}", "x": list(counts), "y": y}
