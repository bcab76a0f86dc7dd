"""A packed network with real weights and exact zeros against its dense twin."""

import copy

import pytest
import torch
from torch import Tensor

import mpt_fast as mpt
from benchmarks.conftest import Measure
from mpt_fast import models, sparse
from mpt_fast.measure import baselines


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
@pytest.mark.parametrize("batch", [64, 1])
def test_rigl_network(measured: Measure, threads: int, batch: int, sparsity: float) -> None:
    """A VGG-Small with real weights, as RigL leaves it: exact zeros, each layer alike."""
    torch.manual_seed(0)
    model = models.vgg_small(config=None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse.Static(model, optimizer, sparsity, distribution="uniform", dense_first=True).remove()
    model.train()(torch.randn(32, 3, 32, 32))
    model.eval()
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    packed = mpt.pack(model, x[:1], backend="cpu", threads=threads)
    best = baselines(models.vgg_small(config=None), x[:64], seconds=20).best
    dense_input = x.contiguous(memory_format=_format(best.example))

    def dense() -> Tensor:
        with torch.inference_mode():
            return best.model(dense_input)

    def check() -> None:
        images = x[:8]
        with torch.inference_mode():
            expected = copy.deepcopy(model).double()(images.double())
        assert (packed(images).double() - expected).abs().max() <= 1e-5 * expected.abs().max()

    measured(
        "Whole networks, sparse float weights (RigL, uniform, first layer dense)",
        f"vgg_small, batch {batch}",
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
