"""Measuring one case: build both sides, check the packed one, time them by turns."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast import models
from mpt_fast.benchmark.suite import Case, Mode
from mpt_fast.measure import (
    Clocked,
    Comparison,
    baselines,
    engines,
    interleave,
    machine,
)
from mpt_fast.packed import run_reference
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.program import ConvAffine, ConvSign, Program
from mpt_fast.runtime.synthetic import Synthetic

CHAIN = 3
"""Layers in a row of a layer case, so that none finds its own output in the cache as its input."""

_LAYERS = slice(-CHAIN - 1, -1)  # of the steps of a layer case
_IMAGE = (3, 32, 32)
_REPEATS = 100  # the time decides

Call = Callable[[], Any]


def run_case(case: Case, mode: Mode) -> list[dict[str, Any]]:
    """One JSON-able cell per sparsity: where it stands, ratio and spread, both sides' seconds.

    Nothing is timed before the packed side has given the results of its float64 reference;
    RuntimeError where it does not.
    """
    with _threads(case.threads):
        if case.kind == "layer":
            return _layer(case, mode)
        if case.kind == "network":
            return _network(case, mode)
        return _scaling(case, mode)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layer(case: Case, mode: Mode) -> list[dict[str, Any]]:
    channels, side = map(int, case.name.split("@"))
    x = images(case.batch, (channels, side, side))
    layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(CHAIN)]
    best = baselines(nn.Sequential(*layers), x, repeats=3, fold=False).best
    packed: list[Call] = []
    facts = []
    for sparsity in case.sparsities:
        program = layer_program(channels, side, 1 - sparsity, case.activation == "binary")
        compiled = CompiledProgram(program, "f32")
        inputs = images(case.batch, program.input)
        _check_program(program, compiled, inputs[:20])
        packed.append(Clocked(layer_clock(compiled, inputs, case.threads)))
        convs = [s for s in program.steps[_LAYERS] if isinstance(s, ConvSign | ConvAffine)]
        kept = sum(step.taps.kept for step in convs)
        facts.append({"kept": kept, "positions": side * side, "isa": compiled.isa})
    return _cells(case, mode, packed, best, f"PyTorch fp32 eager, {best.setting}", facts)


def layer_clock(compiled: CompiledProgram, x: Tensor, threads: int) -> Callable[[], float]:
    """Runs a program of `layer_program`; returns the seconds of its CHAIN convolutions alone."""
    array = x.numpy()

    def clock() -> float:
        compiled(array, threads)
        return sum(compiled.step_times()[_LAYERS])

    return clock


def layer_program(channels: int, side: int, density: float, binary: bool) -> Program:
    """CHAIN 3x3 convolutions, `channels` to `channels`, on bits or on float32.

    They lie as within a network: a dense one from a single channel is before them, and one to a
    single channel behind, so that no conversion of all channels sweeps the caches in between.
    """
    net = Synthetic((1, side, side))
    if binary:
        value = net.sign(net.combine(0, "bits"), channels, 3, 1.0)
        for _ in range(CHAIN):
            value = net.sign(value, channels, 3, density)
        net.sums(value, 1, 1, 1.0)
    else:
        value = net.real(0, channels, 3, 1.0)
        for _ in range(CHAIN):
            value = net.real(value, channels, 3, density)
        net.real(value, 1, 1, 1.0)
    return net.program()


def _check_program(program: Program, compiled: CompiledProgram, x: Tensor) -> None:
    expected = run_reference(program, x).double().numpy()
    actual = compiled(x.numpy(), torch.get_num_threads())
    if np.abs(actual - expected).max() > 1e-5 * np.abs(expected).max():
        raise RuntimeError("the engine differs from its reference; it is not timed")


def _network(case: Case, mode: Mode) -> list[dict[str, Any]]:
    x = images(case.batch, _IMAGE)
    twin = models.dense_twin(case.name, activation=case.activation)
    # The setting is chosen at 64 images, where a choice takes seconds and not minutes.
    best = baselines(twin, x[:64], repeats=3).best
    dense = replace(best, example=x.contiguous(memory_format=_layout(best.example)))
    packed, facts = [], []
    for sparsity in case.sparsities:
        make = _packed_levels if case.levels else _packed
        network = make(case, sparsity, x, case.threads)
        packed.append(lambda network=network: network(x))
        size = network.size_report().file_bytes
        facts.append({"file_bytes": size, "isa": network.plan().isa})
    name = f"dense twin, PyTorch fp32 eager, {best.setting}"
    cells = _cells(case, mode, packed, dense, name, facts)
    if mode.beside and case.batch <= 64:
        beside = _beside(twin, x, mode)
        for cell in cells:
            cell["beside"] = beside
    return cells


def _packed(case: Case, sparsity: float, x: Tensor, threads: int) -> Any:
    model = ticket(case.name, case.activation, sparsity)
    packed = mpt.pack(model, x[:1], backend="cpu", threads=threads)
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(x[:8].double())
    actual = packed(x[:8]).double()
    if not torch.allclose(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max())):
        raise RuntimeError(f"packed {case.name} differs from the eager network; it is not timed")
    return packed


def _packed_levels(case: Case, sparsity: float, x: Tensor, threads: int) -> Any:
    """With 8-bit activations; checked against its reference, to which the levels are equal."""
    model = ticket(case.name, case.activation, sparsity)
    packed = mpt.pack(model, x[:1], "cpu", threads, activations="int8",
                      calibration=images(32, _IMAGE))  # fmt: skip
    expected = run_reference(packed.program, x[:8]).reshape(len(x[:8]), -1)
    actual = packed(x[:8]).double()
    if not torch.allclose(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max())):
        raise RuntimeError(f"packed {case.name} differs from its reference; it is not timed")
    return packed


def ticket(name: str, activation: str, sparsity: float) -> nn.Module:
    """A random ticket, each layer pruned alike, with batch norms as if trained, in eval mode.

    Sparsity 0 keeps every weight. Speed does not depend on what a network has learned.
    """
    torch.manual_seed(0)
    config = mpt.TicketConfig(sparsity=sparsity, scope="layer")
    model = models.build(name, activation=activation, config=config, bn="affine")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None
    model.train()(torch.randn(32, *_IMAGE))  # running statistics of these very activations
    return model.eval()


def _scaling(case: Case, mode: Mode) -> list[dict[str, Any]]:
    """More threads against one, the same packed network on both sides."""
    x = images(case.batch, _IMAGE)
    found = []
    for sparsity in case.sparsities:
        many = _packed(case, sparsity, x, case.threads)
        one = _packed(case, sparsity, x, 1)
        found += _cells(
            case, mode, [partial(many, x)], partial(one, x),
            "the same packed network on one thread", [{}],
        )  # fmt: skip
    return found


def _cells(
    case: Case,
    mode: Mode,
    packed: Sequence[Call],
    dense: Call,
    baseline: str,
    facts: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """All sides by turns, each packed one then paired with the dense one."""
    timings = interleave([*packed, dense], repeats=_REPEATS, warmup=1, seconds=mode.seconds)
    return [
        {
            "table": case.table,
            "row": case.row,
            "column": f"{sparsity:.0%}",
            "sparsity": sparsity,
            "batch": case.batch,
            "baseline": baseline,
            "threads": case.threads,
            "machine": machine(),
            "date": date.today().isoformat(),
            **_ratio(Comparison(timing, timings[-1])),
            **fact,
        }
        for sparsity, timing, fact in zip(case.sparsities, timings, facts, strict=False)
    ]


def _ratio(comparison: Comparison) -> dict[str, Any]:
    return {
        "ratio": comparison.ratio,
        "ratio_p20": comparison.ratio_p20,
        "ratio_p80": comparison.ratio_p80,
        "candidate_seconds": comparison.candidate.median,
        "baseline_seconds": comparison.baseline.median,
        "rounds": len(comparison.candidate.samples),
    }


def _beside(twin: nn.Module, x: Tensor, mode: Mode) -> dict[str, float | str]:
    """Seconds per batch of other engines on the dense twin, or why there are none."""
    found: dict[str, float | str] = {}
    for engine in engines(twin, x, compiled=mode.compiled):
        if engine.run is None:
            found[engine.name] = engine.reason
            continue
        (once,) = interleave([engine.run], repeats=1, warmup=1)
        more = min(_REPEATS, int(mode.seconds / 2 / once.median))
        timing = interleave([engine.run], repeats=more, warmup=1)[0] if more > 1 else once
        found[engine.name] = timing.median
    return found


def images(batch: int, shape: tuple[int, ...]) -> Tensor:
    """The same random images every time, float32 [batch, *shape]."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


def _layout(example: Tensor) -> torch.memory_format:
    last = example.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not example.is_contiguous() else torch.contiguous_format
