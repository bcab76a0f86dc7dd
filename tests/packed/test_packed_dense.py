"""Ordinary layers with binary, ternary or sparse float weights; pruned layers; refused padding."""

import pytest
import torch
from packed_checks import assert_same, check, randomise
from torch import nn
from torch.nn.utils import prune

import mpt_fast as mpt
from mpt_fast.packed import PackError
from mpt_fast.packed.weights import taps_from_dense


def network(activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        activation(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(16),
        activation(),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )


def set_weights(model: nn.Module, kind: str) -> nn.Module:
    """Every weight becomes what `kind` says; the magnitudes differ between channels."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = layer.weight
                per_channel = (weight.shape[0], *[1] * (weight.ndim - 1))
                if kind != "float":
                    weight.sign_().mul_(torch.rand(per_channel) + 0.05)
                if kind != "binary":
                    weight.mul_(torch.rand_like(weight) < 0.2)
    return randomise(model)


@pytest.mark.parametrize("activation", [mpt.BinaryActivation, nn.ReLU])
@pytest.mark.parametrize("kind", ["binary", "ternary", "float"])
def test_networks_of_ordinary_layers(kind: str, activation: type, backend: str) -> None:
    model = set_weights(network(activation), kind)
    packed = check(model, torch.randn(9, 3, 8, 8), backend)
    taps = [step.taps for step in packed.program.steps if hasattr(step, "taps")]
    assert all(t.binary == (kind != "float") for t in taps)
    kept = sum(int((p != 0).sum()) for n, p in model.named_parameters() if p.ndim > 1)
    assert sum(t.kept for t in taps) == kept
    report = packed.size_report()
    assert report.kept == kept
    assert report.parts["values"] == (4 * kept if kind == "float" else 0)


def test_counted_layers_of_ternary_networks_are_bit_sliced() -> None:
    packed = mpt.pack(
        set_weights(network(mpt.BinaryActivation), "ternary"), torch.randn(1, 3, 8, 8), "reference"
    )
    assert [type(step).op for step in packed.program.steps if hasattr(step, "taps")] == [
        "conv_affine",
        "conv_sign",
        "conv",
    ]


def test_a_channel_that_keeps_nothing(backend: str) -> None:
    model = set_weights(network(mpt.BinaryActivation), "ternary")
    with torch.no_grad():
        for layer in (model[0], model[3], model[8]):
            layer.weight[1] = 0
    check(model, torch.randn(5, 3, 8, 8), backend)


def test_one_odd_magnitude_makes_a_float_layer() -> None:
    weight = torch.tensor([[0.5, -0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    taps, scale = taps_from_dense(weight[:, :, None, None], "layer")
    assert not taps.binary
    assert scale.tolist() == [1.0, 1.0]
    assert taps.value.dtype == "float32"
    assert taps.value.tolist() == [0.5, -0.5, 0.25, 0.25, 0.5]
    wide, _ = taps_from_dense(weight[:, :, None, None] + 1e-12, "layer")
    assert wide.value.dtype == "float64"


@pytest.mark.parametrize("ready", [False, True])
def test_torch_pruning_is_seen_before_and_after_it_is_permanent(ready: bool, backend: str) -> None:
    model = randomise(network(nn.ReLU)).eval()
    for index in (0, 3, 8):
        prune.l1_unstructured(model[index], "weight", amount=0.75)
        if ready:
            prune.remove(model[index], "weight")
    x = torch.randn(3, 3, 8, 8)
    packed = mpt.pack(model, x, backend=backend)
    with torch.no_grad():
        model(x)  # computes the pruned weights without a graph, so that they can be copied
    assert_same(packed, model, x)
    density = packed.size_report().kept / packed.size_report().weights
    assert density == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("where", ["weight", "bias", "mean", "slope"])
def test_parameters_that_are_not_finite_are_refused(where: str) -> None:
    model = randomise(network(nn.ReLU))
    assert model[1].running_mean is not None
    target = {
        "weight": model[3].weight,
        "bias": model[3].bias,
        "mean": model[1].running_mean,
        "slope": model[1].weight,
    }[where]
    with torch.no_grad():
        target.view(-1)[0] = float("nan")
    with pytest.raises(PackError, match=r"^[13]: .*(NaN|finite)") as error:
        mpt.pack(model, torch.randn(1, 3, 8, 8), backend="reference")
    assert "\n" not in str(error.value)
