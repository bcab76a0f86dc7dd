"""Augmentation of whole batches on the device they train on, without a loop over images."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MODES", "Draws", "crop_flip", "draw"]

MODES = ("none", "flip", "crop", "crop-flip", "resized-crop-flip")


class Draws(NamedTuple):
    """What was drawn for each image of a batch: int64 [n] offsets in [0, 2 pad], bool [n] flips."""

    dy: Tensor
    dx: Tensor
    flip: Tensor

    def part(self, rows: slice, device: torch.device | str) -> "Draws":
        """The draws of some of the images, on `device`."""
        return Draws(*(values[rows].to(device) for values in self))


def draw(mode: str, count: int, pad: int, generator: torch.Generator) -> Draws | None:
    """Random offsets and flips for `count` images, on the CPU so that every device sees the same.

    The generator is advanced equally by every mode that draws. None if the mode draws nothing.
    """
    if mode == "none":
        return None
    offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    if mode not in ("crop", "crop-flip"):
        offsets.fill_(pad)
    if mode == "crop":
        flip.fill_(False)
    return Draws(offsets[0], offsets[1], flip)


def crop_flip(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """Pad with zeros, cut out at (dy, dx), mirror where `flip`; [n, C, H, W] to the same shape.

    With P the image padded by `pad` on all sides: out[y, x] = P[y + dy, x' + dx], x' = W-1-x for a
    mirrored image and x otherwise.
    """
    n, channels, height, width = images.shape
    ys = torch.arange(height, device=images.device) + (draws.dy - pad).unsqueeze(1)
    x = torch.arange(width, device=images.device).expand(n, width)
    xs = torch.where(draws.flip.unsqueeze(1), width - 1 - x, x) + (draws.dx - pad).unsqueeze(1)
    outside = ((ys < 0) | (ys >= height)).unsqueeze(2) | ((xs < 0) | (xs >= width)).unsqueeze(1)
    index = ys.clamp(0, height - 1).unsqueeze(2) * width + xs.clamp(0, width - 1).unsqueeze(1)
    index = index.view(n, 1, height * width).expand(n, channels, height * width)
    out = images.flatten(2).gather(2, index).view(n, channels, height, width)
    return out.masked_fill_(outside.unsqueeze(1), 0)
