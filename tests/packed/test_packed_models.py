"""Every model family, packed, equals its eager self in float64."""

import pytest
import torch
from packed_checks import LAYERWISE, assert_same, check, randomise

import mpt_fast as mpt
from mpt_fast import models

CIFAR = ("conv2", "conv4", "conv6", "conv8", "vgg_small", "wide_vgg_small", "resnet18", "resnet20")
DEEP = ("resnet50", "wide_resnet18", "imagenet_resnet18", "imagenet_resnet50")


@pytest.mark.parametrize("bn", ["frozen", "affine"])
@pytest.mark.parametrize("activation", ["relu", "binary"])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_families(name: str, activation: str, bn: str, backend: str) -> None:
    model = models.build(
        name, activation=activation, bn=bn, width=0.1, image_size=16, config=LAYERWISE
    )
    check(randomise(model), torch.randn(3, 3, 16, 16), backend)


@pytest.mark.parametrize("activation", ["relu", "binary"])
@pytest.mark.parametrize("name", DEEP)
def test_deep_families(name: str, activation: str, backend: str) -> None:
    size = 40 if name.startswith("imagenet") else 12  # odd maps on the way down
    model = models.build(
        name, num_classes=7, activation=activation, bn="affine", width=0.1, config=LAYERWISE
    )
    check(randomise(model), torch.randn(2, 3, size, size), backend)


@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_batch_norm_after_the_addition(activation: str, backend: str) -> None:
    model = models.build(
        "resnet18", activation=activation, bn="affine", v2=True, width=0.1, config=LAYERWISE
    )
    check(randomise(model), torch.randn(2, 3, 12, 12), backend)


@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_fully_connected(activation: str, backend: str) -> None:
    model = models.build(
        "fc", in_channels=1, activation=activation, width=0.2, image_size=14, config=LAYERWISE
    )
    check(randomise(model), torch.randn(9, 1, 14, 14), backend)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_sparsities(activation: str, sparsity: float, backend: str) -> None:
    config = mpt.TicketConfig(sparsity=sparsity, scope="layer")
    model = models.conv2(activation=activation, bn="affine", width=0.25, config=config)
    check(randomise(model), torch.randn(4, 3, 32, 32), backend)


@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_dense_twins_of_signs_and_floats(activation: str, backend: str) -> None:
    model = models.conv2(activation=activation, bn="affine", width=0.1, config=None)
    check(randomise(model), torch.randn(4, 3, 32, 32), backend)


def test_global_ticket_follows_update_masks(backend: str) -> None:
    config = mpt.TicketConfig(sparsity=0.5, scope="global")
    model = randomise(models.conv2(activation="binary", bn="affine", width=0.2, config=config))
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "scores"):
                layer.scores.normal_()
    mpt.update_masks(model)
    check(model, torch.randn(4, 3, 32, 32), backend)


@pytest.mark.parametrize("batch", [0, 1, 63, 64, 65, 200])
def test_any_batch_size(batch: int, backend: str) -> None:
    model = models.conv2(
        activation="binary", bn="affine", width=0.1, image_size=8, config=LAYERWISE
    )
    packed = mpt.pack(randomise(model), torch.randn(1, 3, 8, 8), backend=backend)
    assert_same(packed, model, torch.randn(batch, 3, 8, 8))


@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_float64_images_are_not_rounded(activation: str, backend: str) -> None:
    model = models.conv2(activation=activation, bn="affine", width=0.1, image_size=8)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    check(randomise(model), x, backend)


def test_train_mode_is_packed_as_eval_and_left_alone(backend: str) -> None:
    model = randomise(models.conv2(bn="affine", width=0.1, image_size=8, config=LAYERWISE)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(model, torch.randn(4, 3, 8, 8), backend)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_channels_last_models_and_images(backend: str) -> None:
    model = models.conv2(
        activation="binary", bn="affine", width=0.1, image_size=8, config=LAYERWISE
    )
    model = randomise(model).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    check(model, x, backend)


@pytest.mark.parametrize("activation", ["relu", "binary"])
def test_fine_tuned_tickets(activation: str, backend: str) -> None:
    """The mask stays, signs and gain follow the weights."""
    model = models.conv2(activation=activation, bn="affine", width=0.1, image_size=8)
    mpt.selection.finetune(model)
    with torch.no_grad():
        for layer in mpt.selection.ticket_layers(model).values():
            layer.weight.normal_()
    check(randomise(model), torch.randn(4, 3, 8, 8), backend)


def test_half_precision_parameters(backend: str) -> None:
    model = randomise(models.conv2(activation="binary", bn="affine", width=0.1, config=None))
    check(model.to(torch.bfloat16), torch.randn(4, 3, 32, 32), backend)
