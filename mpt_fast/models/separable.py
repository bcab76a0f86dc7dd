"""MobileNet-v1: depthwise and pointwise convolutions by turns (Howard et al., 2017)."""

from typing import Unpack

import torch
from torch import Tensor, nn

from mpt_fast.models.layers import Layers, Options, check_count

# (channels, stride) of each depthwise 3x3 and pointwise 1x1 pair.
_PAIRS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """Stem, pairs, global average, linear: [N, C, H, W] -> [N, classes]."""

    def __init__(self, features: nn.Sequential, fc: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


def mobilenet_v1(
    num_classes: int = 1000, in_channels: int = 3, **options: Unpack[Options]
) -> MobileNetV1:
    """MobileNet-v1 for ImageNet. 4 209 088 weights at the defaults, 44 640 of them depthwise.

    Sparse training leaves the depthwise convolutions dense. Any image size will do.
    """
    options.setdefault("image_size", 224)
    layers = Layers(**options)
    before = layers.scaled(32)
    parts = [
        layers.conv(check_count("in_channels", in_channels), before, 3, 2),
        layers.norm(before),
        layers.act(),
    ]
    for planes, stride in _PAIRS:
        channels = layers.scaled(planes)
        parts += [
            layers.conv(before, before, 3, stride, groups=before),
            layers.norm(before),
            layers.act(),
            layers.conv(before, channels, 1),
            layers.norm(channels),
            layers.act(),
        ]
        before = channels
    fc = layers.linear(before, check_count("num_classes", num_classes))
    return layers.finish(MobileNetV1(nn.Sequential(*parts), fc))
