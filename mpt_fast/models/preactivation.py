"""WideResNets with activations before the convolutions (Zagoruyko and Komodakis, 2016): WRN-d-k."""

from typing import Unpack

import torch
from torch import Tensor, nn

from mpt_fast.models.layers import Layers, Options, check_count


class WRNOptions(Options, total=False):
    """Options, and dropout: its probability between the two convolutions of a block."""

    dropout: float


class PreactivationBlock(nn.Module):
    """bn-act-conv-bn-act-(dropout)-conv, plus the shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of what the first activation gives.
    """

    def __init__(
        self, layers: Layers, in_channels: int, channels: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        self.bn1 = layers.norm(in_channels)
        self.act1 = layers.act()
        self.conv1 = layers.conv(in_channels, channels, 3, stride)
        self.bn2 = layers.norm(channels)
        self.act2 = layers.act()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = layers.conv(channels, channels, 3)
        self.projects = stride != 1 or in_channels != channels
        self.shortcut = (
            layers.conv(in_channels, channels, 1, stride) if self.projects else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        shortcut = self.shortcut(out if self.projects else x)
        out = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(out)))))
        return out + shortcut


class WideResNet(nn.Module):
    """Stem, three groups of blocks, bn-act, global average, linear."""

    def __init__(
        self,
        layers: Layers,
        depth: int,
        widen: int,
        num_classes: int,
        in_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        before = layers.scaled(16)
        self.conv1 = layers.conv(check_count("in_channels", in_channels), before, 3)
        groups: list[nn.Module] = []
        for index, planes in enumerate((16, 32, 64)):
            channels = layers.scaled(planes * widen)
            blocks: list[nn.Module] = []
            for block in range((depth - 4) // 6):
                stride = 2 if index > 0 and block == 0 else 1
                blocks.append(PreactivationBlock(layers, before, channels, stride, dropout))
                before = channels
            groups.append(nn.Sequential(*blocks))
        self.group1, self.group2, self.group3 = groups
        self.bn = layers.norm(before)
        self.act = layers.act()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = layers.linear(before, check_count("num_classes", num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.act(self.bn(x))), 1))


def wrn(
    depth: int,
    widen: int,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    dropout: float = 0.0,
    **options: Unpack[Options],
) -> WideResNet:
    """WRN-`depth`-`widen`, depth = 6 n + 4: n blocks each of 16, 32 and 64 times `widen` planes."""
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, ...), got {depth}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}")
    layers = Layers(**options)
    return layers.finish(WideResNet(layers, depth, widen, num_classes, in_channels, dropout))


def wrn10_1(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[WRNOptions]
) -> WideResNet:
    """WRN-10-1. 77 360 weights at the defaults."""
    return wrn(10, 1, num_classes, in_channels, **options)


def wrn22_2(
    num_classes: int = 10, in_channels: int = 3, **options: Unpack[WRNOptions]
) -> WideResNet:
    """WRN-22-2, RigL's network for CIFAR-10 (dropout 0.3 there). 1 076 912 weights."""
    return wrn(22, 2, num_classes, in_channels, **options)
