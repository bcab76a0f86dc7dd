"""Whole packed networks against their dense twin at its best eager setting."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mpt_fast as mpt
from benchmarks.conftest import Measure
from mpt_fast import models
from mpt_fast.measure import baselines

SPARSITIES = [0.5, 0.8, 0.9, 0.95]


def ticket(name: str, activation: str, sparsity: float) -> nn.Module:
    """A random ticket, each layer pruned alike, with batch norms as if trained."""
    torch.manual_seed(0)
    config = mpt.TicketConfig(sparsity=sparsity, scope="layer")
    model = models.build(name, activation=activation, config=config, bn="affine")
    example = torch.randn(32, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None
    model.train()(example)  # running statistics of these very activations
    return model.eval()


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", ["vgg_small", "resnet18"])
@pytest.mark.parametrize(
    ("activation", "batch"), [("binary", 512), ("binary", 1), ("relu", 64), ("relu", 1)]
)
def test_network(
    measured: Measure, threads: int, name: str, activation: str, batch: int, sparsity: float
) -> None:
    model = ticket(name, activation, sparsity)
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    packed = mpt.pack(model, x[:1], backend="cpu", threads=threads)
    twin = models.dense_twin(name, activation=activation)
    best = baselines(twin, x[:64], seconds=20).best
    dense_input = x.contiguous(memory_format=_format(best.example))

    def dense() -> Tensor:
        with torch.inference_mode():
            return best.model(dense_input)

    def check() -> None:
        images = x[:8]
        with torch.inference_mode():
            expected = copy.deepcopy(model).double()(images.double())
        actual = packed(images).double()
        assert torch.equal(actual.argmax(1), expected.argmax(1))
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()

    measured(
        f"Whole networks, {'binary' if activation == 'binary' else 'float'} activations",
        f"{name}, batch {batch}",
        f"{sparsity:.0%}",
        lambda: packed(x),
        dense,
        check=check,
        baseline_name=f"dense twin, PyTorch fp32 eager, {best.setting}",
        seconds=6,
        file_bytes=packed.size_report().file_bytes,
    )


def _format(example: Tensor) -> torch.memory_format:
    last = example.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not example.is_contiguous() else torch.contiguous_format
