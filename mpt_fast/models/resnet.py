"""Residual networks: CIFAR and ImageNet, plain, wide and bottleneck, one definition.

All end in global average pooling and a linear layer. That corrects ResNet-20/32/44/56/110, whose
original pools 8x8 maps by 4 and returns 40 logits for 10 classes; TicketConfig(compat="biprop")
builds them so, logit 4 c + position for class c, and class y of the labels is read from logit y.
"""

from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from mpt_fast.models.layers import Layers, Options, check_count
from mpt_fast.nn import MaxPool2d

V2 = bool | Literal["twice"]


class ResNetOptions(Options, total=False):
    """Options, and v2: batch norm after the addition instead of before it.

    v1 is conv-bn-act-conv-bn, plus shortcut, act; v2 conv-bn-act-conv, plus shortcut, bn, act;
    "twice" has batch norm before and after the addition, as some of biprop's ImageNet networks: the
    same one in basic blocks, one more in bottlenecks. A projection shortcut is a 1x1 convolution
    with batch norm in all of them.
    """

    v2: V2


@dataclass(frozen=True)
class Plan:
    """What tells one residual network from another.

    block: "basic" is two 3x3 convolutions; "bottleneck" 1x1, 3x3, 1x1 with four times the channels
        behind the last.
    depths: blocks in each stage. planes: channels of each stage before that factor.
    stem: "cifar" a 3x3 convolution; "imagenet" a 7x7 of stride 2 and a 3x3 max pool of stride 2.
    base_width: channels of a bottleneck's 3x3 convolution per 64 planes.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    planes: tuple[float, ...]
    stem: Literal["cifar", "imagenet"]
    base_width: int = 64


class Residual(nn.Module):
    """What both blocks share: the branch's end, the shortcut, the addition and what follows it."""

    def __init__(
        self, layers: Layers, in_channels: int, out_channels: int, stride: int, v2: V2
    ) -> None:
        super().__init__()
        self.v2 = v2
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                layers.conv(in_channels, out_channels, 1, stride), layers.norm(out_channels)
            )

    def join(self, branch: Tensor, x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
        """act(norm(branch) + shortcut(x)); v2: act(norm(branch + shortcut(x)))."""
        if self.v2:
            return act(norm(branch + self.shortcut(x)))
        return act(norm(branch) + self.shortcut(x))


class BasicBlock(Residual):
    """Two 3x3 convolutions; the first has the stride."""

    expansion = 1

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        planes: int,
        inner: int,
        stride: int,
        v2: V2,
    ) -> None:
        super().__init__(layers, in_channels, planes, stride, v2)
        self.conv1 = layers.conv(in_channels, inner, 3, stride)
        self.bn1 = layers.norm(inner)
        self.act1 = layers.act()
        self.conv2 = layers.conv(inner, planes, 3)
        self.bn2 = layers.norm(planes)
        self.act2 = layers.act()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.act1(self.bn1(self.conv1(x))))
        if self.v2 == "twice":
            branch = self.bn2(branch)
        return self.join(branch, x, self.bn2, self.act2)


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 has the stride."""

    expansion = 4

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        planes: int,
        inner: int,
        stride: int,
        v2: V2,
    ) -> None:
        channels = planes * self.expansion
        super().__init__(layers, in_channels, channels, stride, v2)
        self.conv1 = layers.conv(in_channels, inner, 1)
        self.bn1 = layers.norm(inner)
        self.act1 = layers.act()
        self.conv2 = layers.conv(inner, inner, 3, stride)
        self.bn2 = layers.norm(inner)
        self.act2 = layers.act()
        self.conv3 = layers.conv(inner, channels, 1)
        self.bn3 = layers.norm(channels)
        self.act3 = layers.act()
        if v2 == "twice":
            self.bn4 = layers.norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.conv3(self.act2(self.bn2(self.conv2(out))))
        if self.v2 == "twice":
            return self.join(self.bn3(out), x, self.bn4, self.act3)
        return self.join(out, x, self.bn3, self.act3)


class ResNet(nn.Module):
    """Stem, three or four stages of blocks, global average, linear: [N, C, H, W] -> [N, classes].

    A max pool in the stem stands before the activation. Both are monotone, so the values are those
    of either order, and a pool before a sign is a pool of numbers as well as of bits.
    """

    def __init__(
        self, layers: Layers, plan: Plan, num_classes: int, in_channels: int, v2: V2 = False
    ) -> None:
        super().__init__()
        if v2 not in (False, True, "twice"):
            raise ValueError(f"v2 must be False, True or 'twice', got {v2!r}")
        block = BasicBlock if plan.block == "basic" else Bottleneck
        before = layers.scaled(plan.planes[0])
        self.v2 = v2
        if plan.stem == "imagenet":
            self.conv1 = layers.conv(check_count("in_channels", in_channels), before, 7, 2)
            self.maxpool: nn.Module = MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = layers.conv(check_count("in_channels", in_channels), before, 3)
            self.maxpool = nn.Identity()
        self.bn1 = layers.norm(before)
        self.act1 = layers.act()
        stages: list[nn.Module] = []
        for i, (depth, planes) in enumerate(zip(plan.depths, plan.planes, strict=True)):
            channels = layers.scaled(planes)
            inner = channels * plan.base_width // 64
            stage: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(block(layers, before, channels, inner, stride, v2))
                before = channels * block.expansion
            stages.append(nn.Sequential(*stage))
        pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        if len(stages) == 3:
            stages.append(nn.Identity())
            if layers.as_biprop:
                pool = nn.AvgPool2d(4)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = pool
        self.fc = layers.linear(before, check_count("num_classes", num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(self.maxpool(x)) if self.v2 else self.maxpool(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.act1(x)))))
        x = self.avgpool(x)
        if isinstance(self.avgpool, nn.AvgPool2d):  # logits of all positions, position fastest
            return self.fc(x.flatten(2).transpose(1, 2)).transpose(1, 2).flatten(1)
        return self.fc(torch.flatten(x, 1))


def resnet(
    plan: Plan,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    v2: V2 = False,
    **options: Unpack[Options],
) -> ResNet:
    """The residual network of a `Plan`. Any image size will do; `image_size` is only checked."""
    layers = Layers(**options)
    return layers.finish(ResNet(layers, plan, num_classes, in_channels, v2))


DEPTHS: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}
"""Block and blocks per stage of the four-stage networks."""


def wide_planes(widen: float) -> tuple[float, ...]:
    """64, 64(w+1), 128(w+1), 256(w+1): a WideResNet's stages, an ordinary one's for w = 1."""
    if isinstance(widen, bool) or not isinstance(widen, (int, float)):
        raise TypeError(f"widen must be a number above 0, got {widen!r}")
    if not 0 < widen < float("inf"):
        raise ValueError(f"widen must be finite and above 0, got {widen!r}")
    return (64, 64 * (widen + 1), 128 * (widen + 1), 256 * (widen + 1))


def four_stages(
    depth: int,
    stem: Literal["cifar", "imagenet"],
    widen: float = 1.0,
    base_width: int = 64,
) -> Plan:
    """The plan of ResNet-`depth` (18, 34, 50, 101); `widen` as in `wide_planes`."""
    block, depths = DEPTHS[depth]
    return Plan(block, depths, wide_planes(widen), stem, base_width)


def three_stages(depth: int) -> Plan:
    """The plan of CIFAR ResNet-`depth`, depth = 6 n + 2: n blocks each of 16, 32, 64 planes."""
    return Plan("basic", ((depth - 2) // 6,) * 3, (16, 32, 64), "cifar")


def resnet18(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-18. 11 164 352 weights at the defaults."""
    return resnet(four_stages(18, "cifar"), num_classes, in_channels, **options)


def resnet34(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-34. 21 265 088 weights at the defaults."""
    return resnet(four_stages(34, "cifar"), num_classes, in_channels, **options)


def resnet50(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-50."""
    return resnet(four_stages(50, "cifar"), num_classes, in_channels, **options)


def resnet101(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-101."""
    return resnet(four_stages(101, "cifar"), num_classes, in_channels, **options)


def resnet20(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-20: stages of 16, 32 and 64 channels. 270 896 weights at the defaults."""
    return resnet(three_stages(20), num_classes, in_channels, **options)


def resnet32(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-32: stages of 16, 32 and 64 channels."""
    return resnet(three_stages(32), num_classes, in_channels, **options)


def resnet44(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-44: stages of 16, 32 and 64 channels."""
    return resnet(three_stages(44), num_classes, in_channels, **options)


def resnet56(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-56: stages of 16, 32 and 64 channels."""
    return resnet(three_stages(56), num_classes, in_channels, **options)


def resnet110(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """CIFAR ResNet-110: stages of 16, 32 and 64 channels. 1 722 416 weights at the defaults."""
    return resnet(three_stages(110), num_classes, in_channels, **options)


def wide_resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    widen: float = 2.0,
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """CIFAR WideResNet-18: stages 64, 64(w+1), 128(w+1), 256(w+1) for w = widen."""
    return resnet(four_stages(18, "cifar", widen), num_classes, in_channels, **options)


def wide_resnet34(
    num_classes: int = 10,
    in_channels: int = 3,
    widen: float = 2.0,
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """CIFAR WideResNet-34: stages 64, 64(w+1), 128(w+1), 256(w+1) for w = widen."""
    return resnet(four_stages(34, "cifar", widen), num_classes, in_channels, **options)


def wide_resnet50(
    num_classes: int = 10,
    in_channels: int = 3,
    widen: float = 2.0,
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """CIFAR WideResNet-50: stages 64, 64(w+1), 128(w+1), 256(w+1) for w = widen."""
    return resnet(four_stages(50, "cifar", widen), num_classes, in_channels, **options)


def imagenet_resnet18(
    num_classes: int = 1000, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """ImageNet ResNet-18. 11 678 912 weights at the defaults."""
    options.setdefault("image_size", 224)
    return resnet(four_stages(18, "imagenet"), num_classes, in_channels, **options)


def imagenet_resnet34(
    num_classes: int = 1000, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """ImageNet ResNet-34. 21 779 648 weights at the defaults."""
    options.setdefault("image_size", 224)
    return resnet(four_stages(34, "imagenet"), num_classes, in_channels, **options)


def imagenet_resnet50(
    num_classes: int = 1000, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """ImageNet ResNet-50. 25 502 912 weights at the defaults."""
    options.setdefault("image_size", 224)
    return resnet(four_stages(50, "imagenet"), num_classes, in_channels, **options)


def imagenet_resnet101(
    num_classes: int = 1000, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """ImageNet ResNet-101. 44 442 816 weights at the defaults."""
    options.setdefault("image_size", 224)
    return resnet(four_stages(101, "imagenet"), num_classes, in_channels, **options)


def imagenet_wide_resnet50(
    num_classes: int = 1000,
    in_channels: int = 3,
    widen: float = 1.0,
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """ImageNet WideResNet-50-2: 3x3 convolutions twice as wide; `widen` as in `wide_planes`.

    68 814 016 weights at the defaults.
    """
    options.setdefault("image_size", 224)
    return resnet(four_stages(50, "imagenet", widen, 128), num_classes, in_channels, **options)


def imagenet_wide_resnet101(
    num_classes: int = 1000, in_channels: int = 3, **options: Unpack[ResNetOptions]
) -> ResNet:
    """ImageNet WideResNet-101-2: 3x3 convolutions twice as wide.

    126 747 840 weights at the defaults.
    """
    options.setdefault("image_size", 224)
    return resnet(four_stages(101, "imagenet", base_width=128), num_classes, in_channels, **options)


def imagenet_wide_resnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    widen: float = 2.0,
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """ImageNet WideResNet-18: stages 64, 64(w+1), 128(w+1), 256(w+1) for w = widen.

    25 636 032 weights at the defaults.
    """
    options.setdefault("image_size", 224)
    return resnet(four_stages(18, "imagenet", widen), num_classes, in_channels, **options)


def imagenet_wide_resnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    widen: float = 2.0,
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """ImageNet WideResNet-34: stages 64, 64(w+1), 128(w+1), 256(w+1) for w = widen.

    48 270 528 weights at the defaults.
    """
    options.setdefault("image_size", 224)
    return resnet(four_stages(34, "imagenet", widen), num_classes, in_channels, **options)
