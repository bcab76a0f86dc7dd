"""Single 3x3 layers, packed against dense, in chains of three.

The packed time is the engine's own clock of the layers' steps, which leaves out the conversion of
the input and the output; the baseline is the convolutions alone, without batch norm or sign.
"""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.conftest import Record
from mpt_fast.kernels import cpu
from mpt_fast.kernels.taps import Taps
from mpt_fast.measure import Comparison, Timing, interleave

SHAPES = [(64, 32), (128, 16), (256, 8), (512, 4)]
SPARSITIES = [0.5, 0.8, 0.9, 0.95]
CHAIN = 3
ROUNDS = 9


def random_layer(channels: int, sparsity: float, seed: int) -> tuple[Taps, Tensor]:
    """Kept taps and the dense +-1/0 weight."""
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, channels, 3, 3)
    keep = torch.rand(shape, generator=generator) >= sparsity
    code = keep * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)
    return Taps.from_dense(code.to(torch.int8)), code.float()


def dense_chain(x: Tensor, weights: list[Tensor]) -> tuple[str, Callable[[], Tensor]]:
    """The faster of NCHW and channels_last, as a callable."""

    def chain(memory_format: torch.memory_format) -> Callable[[], Tensor]:
        start = x.contiguous(memory_format=memory_format)
        kernels = [w.contiguous(memory_format=memory_format) for w in weights]

        def run() -> Tensor:
            y = start
            with torch.inference_mode():
                for kernel in kernels:
                    y = torch.nn.functional.conv2d(y, kernel, padding=1)
            return y

        return run

    chains = {
        "NCHW": chain(torch.contiguous_format),
        "channels_last": chain(torch.channels_last),
    }
    timings = interleave(list(chains.values()), repeats=3, warmup=1)
    best = min(zip(timings, chains, strict=True), key=lambda pair: pair[0].median)[1]
    return best, chains[best]


def compare_layers(run: Callable[[], list[float]], dense: Callable[[], Tensor]) -> Comparison:
    """Packed layers and dense layers by turns; `run` returns the seconds of each layer's step."""
    packed_samples, dense_samples = [], []
    for _ in range(ROUNDS + 1):
        packed_samples.append(sum(run()))
        start = time.perf_counter()
        dense()
        dense_samples.append(time.perf_counter() - start)
    # the first round warmed up
    return Comparison(Timing(tuple(packed_samples[1:])), Timing(tuple(dense_samples[1:])))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("channels", "side"), SHAPES)
def test_binary_layer(
    record: Record, threads: int, channels: int, side: int, sparsity: float
) -> None:
    batch = 512
    layers = [random_layer(channels, sparsity, seed) for seed in range(CHAIN)]
    program = cpu.engine().Program(channels, side, side)
    one, zero = np.ones(channels), np.zeros(channels)
    value = program.combine([0], [one], [zero], op="sign", kind="bits")
    thresholds = [
        np.random.default_rng(i).integers(-3, 4, channels, dtype=np.int32) for i in range(CHAIN)
    ]
    for (taps, _), threshold in zip(layers, thresholds, strict=True):
        value = program.conv_sign(
            value, taps.indptr.numpy(), taps[1].numpy(), taps.value.numpy(), taps.shape,
            (1, 1), (1, 1), (1, 1), 1, threshold, np.zeros(channels, np.uint8),
        )  # fmt: skip
    program.finish(value)
    x = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    weights = [w / channels for _, w in layers]
    setting, baseline = dense_chain(x, weights)

    def check() -> None:
        images = x[:70]
        y = torch.where(images >= 0, 1.0, -1.0)
        for (_, w), threshold in zip(layers, thresholds, strict=True):
            sums = torch.nn.functional.conv2d(y, w, padding=1)
            y = torch.where(sums >= torch.from_numpy(threshold)[:, None, None], 1.0, -1.0)
        assert np.array_equal(program.run(images.numpy(), threads), y.numpy())

    def run() -> list[float]:
        program.run(x.numpy(), threads)
        return program.step_times()[1 : 1 + CHAIN]

    check()
    record(
        "Binary 3x3 layers, batch 512",
        f"{channels}@{side}x{side}",
        f"{sparsity:.0%}",
        compare_layers(run, baseline),
        run,
        baseline_name=f"PyTorch fp32 eager, {setting}",
        isa=program.isa,
    )


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("channels", "side"), SHAPES)
def test_float_layer(
    record: Record, threads: int, channels: int, side: int, sparsity: float
) -> None:
    batch = 64
    layers = [random_layer(channels, sparsity, seed) for seed in range(CHAIN)]
    program = cpu.engine().Program(channels, side, side)
    value = 0
    scale = np.full(channels, 1.0 / channels)
    for taps, _ in layers:
        value = program.conv_affine(
            value, taps.indptr.numpy(), taps[1].numpy(), taps.value.numpy(), taps.shape,
            (1, 1), (1, 1), (1, 1), 1, scale, np.zeros(channels), op="none",
        )  # fmt: skip
    program.finish(value)
    x = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    setting, baseline = dense_chain(x, [w / channels for _, w in layers])

    def check() -> None:
        expected = x[:20].double()
        for _, w in layers:
            expected = torch.nn.functional.conv2d(expected, w.double() / channels, padding=1)
        actual = torch.from_numpy(program.run(x[:20].numpy(), threads)).double()
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()

    def run() -> list[float]:
        program.run(x.numpy(), threads)
        return program.step_times()[:CHAIN]

    check()
    record(
        "Float 3x3 layers, batch 64",
        f"{channels}@{side}x{side}",
        f"{sparsity:.0%}",
        compare_layers(run, baseline),
        run,
        baseline_name=f"PyTorch fp32 eager, {setting}",
        isa=program.isa,
    )
