"""Networks without shortcuts: Conv-2/4/6/8, FC and VGG-Small, one definition for each family.

`layout` says where batch norms and activations stand. It follows the activation by default, as in
the papers; a dense twin of a binary ticket is the same layout with ReLU (`dense_twin`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from mpt_fast.models.layers import Layers, Options, check_count
from mpt_fast.nn import MaxPool2d

ConvLayout = Literal["plain", "normed"]
VGGLayout = Literal["plain", "staged", "normed"]

CONV_LAYOUTS: dict[str, ConvLayout] = {"relu": "plain", "binary": "normed"}
"""The layout of Conv-2/4/6/8 and FC that each activation stands for."""

VGG_LAYOUTS: dict[str, VGGLayout] = {"relu": "plain", "binary": "staged"}
"""The layout of VGG-Small that each activation stands for."""


class ConvOptions(Options, total=False):
    """Options, and layout: "plain" has no batch norm; "normed" one before every activation."""

    layout: ConvLayout | None


class VGGOptions(Options, total=False):
    """Options, and where the activations are.

    layout "plain": after the first convolution and before the classifier only, one batch norm per
    stage; "staged": after every convolution, one batch norm per stage; "normed": a batch norm
    before every activation. The activation before the classifier is a ReLU in all of them.
    """

    layout: VGGLayout | None


class PlainNet(nn.Module):
    """Convolutions, flatten, linear layers: [N, C, H, W] -> [N, num_classes]."""

    def __init__(self, convs: nn.Sequential, linear: nn.Sequential) -> None:
        super().__init__()
        self.convs = convs
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.convs(x), 1))


def conv_net(
    stages: Sequence[int],
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    layout: ConvLayout | None = None,
    **options: Unpack[Options],
) -> PlainNet:
    """Two 3x3 convolutions and a 2x2 max pool per stage, then linear layers 256, 256, classes.

    layout "plain" is conv-act-conv-act-pool; "normed" is conv-bn-act-conv-pool-bn-act and
    linear-bn-act. A pool that would leave nothing of the map is left out (Conv-8 on 8x8 images).
    """
    layers = Layers(**options)
    normed = _layout(layout, CONV_LAYOUTS[layers.activation], get_args(ConvLayout)) == "normed"
    convs: list[nn.Module] = []
    before, size = check_count("in_channels", in_channels), layers.image_size
    for stage in stages:
        channels = layers.scaled(stage)
        pool, size = _pool(size)
        convs.append(layers.conv(before, channels, 3))
        convs += [layers.norm(channels), layers.act()] if normed else [layers.act()]
        convs.append(layers.conv(channels, channels, 3))
        convs += [pool, layers.norm(channels), layers.act()] if normed else [layers.act(), pool]
        before = channels
    widths = [before * size[0] * size[1], layers.scaled(256), layers.scaled(256)]
    head = _linear_stack(layers, widths, num_classes, normed)
    return layers.finish(PlainNet(nn.Sequential(*convs), head))


def fc(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    layout: ConvLayout | None = None,
    **options: Unpack[Options],
) -> PlainNet:
    """FC: in_channels * H * W - 300 - 100 - classes (784-300-100-10 on 28x28, the default size).

    layout "plain" is linear-act, "normed" linear-bn-act. 266 200 weights at the defaults.
    """
    options.setdefault("image_size", 28)
    layers = Layers(**options)
    normed = _layout(layout, CONV_LAYOUTS[layers.activation], get_args(ConvLayout)) == "normed"
    height, width = layers.image_size
    inputs = check_count("in_channels", in_channels) * height * width
    widths = [inputs, layers.scaled(300), layers.scaled(100)]
    head = _linear_stack(layers, widths, num_classes, normed)
    return layers.finish(PlainNet(nn.Sequential(), head))


def lenet_300_100(
    num_classes: int = 10, in_channels: int = 1, **options: Unpack[Options]
) -> PlainNet:
    """LeNet-300-100: the layers of `fc` with biases, linear-act, as RigL trains it on MNIST."""
    options.setdefault("image_size", 28)
    layers = Layers(**options)
    height, width = layers.image_size
    inputs = check_count("in_channels", in_channels) * height * width
    widths = [inputs, layers.scaled(300), layers.scaled(100)]
    head = _linear_stack(layers, widths, num_classes, normed=False, bias=True)
    return layers.finish(PlainNet(nn.Sequential(), head))


def vgg_small(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    layout: VGGLayout | None = None,
    **options: Unpack[Options],
) -> PlainNet:
    """VGG-Small: two 3x3 convolutions of 128, 256 and 512 channels, one linear layer.

    A stage is conv-[bn]-[act]-conv-pool-bn-[act], see `VGGOptions`. 4 656 512 weights at the
    defaults. Published: "plain" MPT-1/32, "staged" MPT-1/1; `wide_vgg_small` is the 1.25x network.
    """
    layers = Layers(**options)
    kind = _layout(layout, VGG_LAYOUTS[layers.activation], get_args(VGGLayout))
    convs: list[nn.Module] = []
    before, size = check_count("in_channels", in_channels), layers.image_size
    stages = [layers.scaled(channels) for channels in (128, 256, 512)]
    for i, channels in enumerate(stages):
        pool, size = _pool(size)
        convs.append(layers.conv(before, channels, 3))
        if kind == "normed":
            convs.append(layers.norm(channels))
        if kind != "plain" or i == 0:
            convs.append(layers.act())
        convs += [layers.conv(channels, channels, 3), pool, layers.norm(channels)]
        if i == len(stages) - 1:
            convs.append(layers.relu())
        elif kind != "plain":
            convs.append(layers.act())
        before = channels
    head = _linear_stack(layers, [before * size[0] * size[1]], num_classes, normed=False)
    return layers.finish(PlainNet(nn.Sequential(*convs), head))


def wide_vgg_small(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[VGGOptions]
) -> PlainNet:
    """VGG-Small with 1.25 times the channels and layout "normed". 7 249 120 weights."""
    options.setdefault("width", 1.25)
    if options.get("layout") is None:
        options["layout"] = "normed"
    return vgg_small(num_classes, in_channels, **options)


def conv2(num_classes: int = 10, in_channels: int = 3, **options: Unpack[ConvOptions]) -> PlainNet:
    """Conv-2: one stage of 64 channels. 4 300 992 weights at the defaults."""
    return conv_net((64,), num_classes, in_channels, **options)


def conv4(num_classes: int = 10, in_channels: int = 3, **options: Unpack[ConvOptions]) -> PlainNet:
    """Conv-4: stages of 64 and 128 channels. 2 425 024 weights at the defaults."""
    return conv_net((64, 128), num_classes, in_channels, **options)


def conv6(num_classes: int = 10, in_channels: int = 3, **options: Unpack[ConvOptions]) -> PlainNet:
    """Conv-6: stages of 64, 128 and 256 channels. 2 261 184 weights at the defaults."""
    return conv_net((64, 128, 256), num_classes, in_channels, **options)


def conv8(num_classes: int = 10, in_channels: int = 3, **options: Unpack[ConvOptions]) -> PlainNet:
    """Conv-8: stages of 64, 128, 256 and 512 channels. 5 275 840 weights at the defaults."""
    return conv_net((64, 128, 256, 512), num_classes, in_channels, **options)


def _layout(layout: str | None, default: str, choices: tuple[str, ...]) -> str:
    """`layout`, or the default for None; ValueError if it is not one of the choices."""
    if layout is None:
        return default
    if layout not in choices:
        raise ValueError(f"layout must be one of {', '.join(choices)} or None, got {layout!r}")
    return layout


def _pool(size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
    """A 2x2 max pool and the size behind it; nothing where a side is 1 already."""
    if min(size) < 2:
        return nn.Identity(), size
    return MaxPool2d(2), (size[0] // 2, size[1] // 2)


def _linear_stack(
    layers: Layers, widths: Sequence[int], num_classes: int, normed: bool, bias: bool = False
) -> nn.Sequential:
    """Linear layers through `widths`, each followed by its activation, and one to the classes."""
    head: list[nn.Module] = []
    for before, after in pairwise(widths):
        head.append(layers.linear(before, after, bias))
        head += [layers.norm(after, dims=1), layers.act()] if normed else [layers.act()]
    head.append(layers.linear(widths[-1], check_count("num_classes", num_classes), bias))
    return nn.Sequential(*head)
