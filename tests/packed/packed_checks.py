"""Shared by the packed tests: random networks' parts, and packed against eager in float64."""

import copy

import torch
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast.packed import PackedModel

LAYERWISE = mpt.TicketConfig(sparsity=0.6, scope="layer")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training: means and variances of their own, slopes of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0.0, 0.4, generator=generator)
            module.running_var.uniform_(0.4, 2.0, generator=generator)
        if module.affine:
            with torch.no_grad():
                module.weight.normal_(generator=generator)
                module.bias.normal_(0.0, 0.3, generator=generator)
    return model


def eager(model: nn.Module, x: Tensor) -> Tensor:
    """The model in eval mode and float64: what a packed network has to equal."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def assert_same(packed: PackedModel, model: nn.Module, x: Tensor) -> None:
    """Fail unless packed(x) is eager(model, x): the same winner, logits within 1e-5 of the largest.

    One sign decided otherwise moves a logit by a whole tap, far more than that.
    """
    actual, expected = packed(x), eager(model, x)
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    if not expected.numel():
        return
    error = float((actual.double() - expected).abs().max())
    assert error <= 1e-5 * float(expected.abs().max()), f"logits differ by {error:.3g}"
    if expected.ndim == 2:
        assert torch.equal(actual.argmax(1), expected.argmax(1))


def check(model: nn.Module, x: Tensor, backend: str) -> PackedModel:
    """Packs `model`, with no part left to PyTorch, and compares it with the eager one."""
    packed = mpt.pack(model, x, backend=backend)
    assert not packed.plan().unsupported
    assert_same(packed, model, x)
    return packed
