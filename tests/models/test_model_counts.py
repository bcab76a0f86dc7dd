"""Weights of every network against the published counts (convolutions and linear layers only)."""

import pytest
import torch
from torch import nn

from mpt_fast import models

PUBLISHED = {
    "conv2": 4_300_992,
    "conv4": 2_425_024,
    "conv6": 2_261_184,
    "conv8": 5_275_840,
    "vgg_small": 4_656_512,
    "wide_vgg_small": 7_249_120,
    "resnet18": 11_164_352,
    "resnet34": 21_265_088,
    "resnet20": 270_896,
    "resnet110": 1_722_416,
    "imagenet_resnet18": 11_678_912,
    "imagenet_resnet34": 21_779_648,
    "imagenet_resnet50": 25_502_912,
    "imagenet_resnet101": 44_442_816,
    "imagenet_wide_resnet50": 68_814_016,
    "imagenet_wide_resnet101": 126_747_840,
    "imagenet_wide_resnet18": 25_636_032,
    "imagenet_wide_resnet34": 48_270_528,
    "lenet_300_100": 266_200,
    "mobilenet_v1": 4_209_088,
    "wrn10_1": 77_360,
    "wrn22_2": 1_076_912,
}


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


def on_meta(name: str, **arguments: object) -> nn.Module:
    """The dense network without memory for its weights."""
    with torch.device("meta"):
        return models.build(name, config=None, **arguments)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_count(name: str) -> None:
    assert weights(on_meta(name)) == PUBLISHED[name]


def test_widened_imagenet_network() -> None:
    assert weights(on_meta("imagenet_wide_resnet34", widen=3.0)) == 85_238_976


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18)])
def test_small_resnets(depth: int, blocks: int) -> None:
    """3*16*9 stem; a stage of c is 2n 3x3 convolutions, its first and its 1x1 from c/2; 64*10."""
    stages = 2 * blocks * 16 * 16 * 9
    for c in (32, 64):
        stages += (2 * blocks - 1) * c * c * 9 + c * c // 2 * 9 + c * c // 2
    assert weights(on_meta(f"resnet{depth}")) == 3 * 16 * 9 + stages + 64 * 10


@pytest.mark.parametrize(("name", "blocks"), [("resnet50", 16), ("resnet101", 33)])
def test_cifar_bottlenecks_differ_from_imagenet_by_stem_and_classes(name: str, blocks: int) -> None:
    model, big = on_meta(name), on_meta(f"imagenet_{name}")
    assert weights(big) - weights(model) == 3 * 64 * (49 - 9) + 2048 * (1000 - 10)
    assert sum(isinstance(m, models.resnet.Bottleneck) for m in model.modules()) == blocks


def test_widen_one_is_the_ordinary_network() -> None:
    assert weights(on_meta("wide_resnet18", widen=1.0)) == PUBLISHED["resnet18"]
    planes = {p.shape[0] for p in on_meta("wide_resnet18", widen=2.0).parameters() if p.dim() == 4}
    assert planes == {64, 192, 384, 768}


def test_fc_is_784_300_100_10() -> None:
    shapes = [tuple(p.shape) for p in on_meta("fc").parameters()]
    assert shapes == [(300, 784), (100, 300), (10, 100)]


@pytest.mark.parametrize("activation", ["relu", "binary"])
@pytest.mark.parametrize("name", ["conv2", "conv4", "conv6", "conv8"])
def test_width_scales_all_but_image_and_classes(name: str, activation: str) -> None:
    half = on_meta(name, width=0.5, activation=activation)
    whole = on_meta(name, activation=activation)
    pairs = list(zip(half.parameters(), whole.parameters(), strict=True))
    for i, (small, large) in enumerate(pairs):
        kept = (i == 0, i == len(pairs) - 1)  # the image's channels, the classes
        if large.dim() > 1:
            expected = [
                large.shape[0] // (1 if kept[1] else 2),
                large.shape[1] // (1 if kept[0] else 2),
            ]
            assert list(small.shape[:2]) == expected


@pytest.mark.parametrize("activation", ["relu", "binary"])
@pytest.mark.parametrize("name", ["conv2", "vgg_small", "resnet20"])
def test_ticket_has_the_count_of_its_dense_network(name: str, activation: str) -> None:
    ticket = models.build(name, activation=activation, width=0.25)
    layers = [m for m in ticket.modules() if hasattr(m, "scores")]
    assert sum(layer.weight.numel() for layer in layers) == weights(on_meta(name, width=0.25))
    assert all(layer.bias is None for layer in layers)
