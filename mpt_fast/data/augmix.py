"""AugMix and Gaussian noise on whole batches: the robust augmentations of biprop's later paper.

AugMix (Hendrycks et al., 2020): x' = m x + (1 - m) sum_i w_i chain_i(x), w ~ Dirichlet(1), m ~
Beta(1, 1), each chain of one to three operations drawn from `OPERATIONS`, none of which is a test
corruption. Operations work on uint8 images and round as Pillow's do; the mixture is float. With
`jsd` each image gives three views (clean, two mixtures) for the Jensen-Shannon consistency loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATIONS", "ChainDraws", "Mixing", "apply_operations", "draw_chains", "mix_chains"]

OPERATIONS = (
    "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y",
    "translate_x", "translate_y",
)  # fmt: skip
VIEWS = 3
"""Views of an image under `jsd`: the image itself and two augmented ones."""
_DEEPEST = 3
_IDENTITY = len(OPERATIONS)


@dataclass(frozen=True)
class Mixing:
    """What happens to the images of a batch after cropping and flipping.

    augmix: mix `width` chains of `depth` operations (-1: 1 to 3, drawn) of `severity` 1 to 10.
    noise_share, noise_std: chance of an image to get N(0, noise_std^2) on pixels in [0, 1]; values
    may leave [0, 1]. jsd: give the clean images and two augmented versions, [3 n, C, H, W].
    """

    augmix: bool = False
    width: int = 3
    depth: int = -1
    severity: int = 3
    noise_std: float = 0.1
    noise_share: float = 0.0
    jsd: bool = False

    @property
    def views(self) -> int:
        """Versions of each image that `apply` gives, one after the other."""
        return VIEWS if self.jsd else 1

    def apply(self, images: Tensor, generator: torch.Generator, rows: slice, count: int) -> Tensor:
        """uint8 [n, C, H, W] to float32 [views * n, C, H, W] of values 0 to 255, view by view.

        The images are the `rows` of a batch of `count`. Random numbers are drawn for all of it and
        on the CPU, so that every device and every division into processes sees the same.
        """
        clean = images.float()
        versions = [self._augmented(images, clean, generator, rows, count)]
        if self.jsd:
            versions += [self._augmented(images, clean, generator, rows, count)]
            versions.insert(0, clean)
        return torch.cat(versions)

    def _augmented(
        self, images: Tensor, clean: Tensor, generator: torch.Generator, rows: slice, count: int
    ) -> Tensor:
        if self.augmix:
            draws = draw_chains(count, self.width, self.depth, self.severity, generator)
            return mix_chains(images, draws.part(rows, images.device))
        noise = torch.randn((count, *images.shape[1:]), generator=generator)
        noisy = torch.rand(count, generator=generator) < self.noise_share
        scale = (noisy[rows] * 255.0 * self.noise_std).view(-1, 1, 1, 1)
        return clean + (noise[rows] * scale).to(images.device)


class ChainDraws(NamedTuple):
    """Random choices of AugMix for n images and k chains.

    operation int64 [n, k, 3] (len(OPERATIONS): none), level float [n, k, 3] in [0.1, severity],
    sign float [n, k, 3] of +-1, weight float [n, k] that sum to 1, mix float [n] in [0, 1].
    """

    operation: Tensor
    level: Tensor
    sign: Tensor
    weight: Tensor
    mix: Tensor

    def part(self, rows: slice, device: torch.device | str) -> "ChainDraws":
        """The draws of some of the images, on `device`."""
        return ChainDraws(*(values[rows].to(device) for values in self))


def draw_chains(
    count: int, width: int, depth: int, severity: int, generator: torch.Generator
) -> ChainDraws:
    """Choices for `count` images; depth -1 draws 1 to 3 operations per chain. On the CPU."""
    deepest = _DEEPEST if depth < 0 else depth
    shape = (count, width, deepest)
    operation = torch.randint(0, len(OPERATIONS), shape, generator=generator)
    level = 0.1 + (severity - 0.1) * torch.rand(shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
    if depth < 0:
        lengths = torch.randint(1, _DEEPEST + 1, (count, width, 1), generator=generator)
        operation[torch.arange(deepest) >= lengths] = _IDENTITY
    weight = -torch.log1p(-torch.rand(count, width, generator=generator, dtype=torch.float64))
    weight = (weight / weight.sum(1, keepdim=True)).float()  # Dirichlet(1): normalised Exp(1)
    return ChainDraws(operation, level, sign, weight, torch.rand(count, generator=generator))


def mix_chains(images: Tensor, draws: ChainDraws) -> Tensor:
    """m x + (1 - m) sum_i w_i chain_i(x): uint8 [n, C, H, W] to float32 of the same shape."""
    mixture = torch.zeros(images.shape, device=images.device)
    for chain in range(draws.operation.shape[1]):
        changed = images
        for step in range(draws.operation.shape[2]):
            choice = (draws.operation, draws.level, draws.sign)
            changed = apply_operations(changed, *(values[:, chain, step] for values in choice))
        mixture += draws.weight[:, chain].view(-1, 1, 1, 1) * changed
    m = draws.mix.view(-1, 1, 1, 1)
    return m * images + (1 - m) * mixture


def apply_operations(images: Tensor, operation: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Apply to each image its own operation of `OPERATIONS` at its level (0 to 10) and sign.

    images uint8 [n, C, H, W]; operation int64 [n]; level, sign float [n]. Loops over the kinds of
    operations, not over the images.
    """
    out = images.clone()
    for kind, name in enumerate(OPERATIONS):
        chosen = torch.nonzero(operation == kind).flatten()
        if len(chosen):
            out[chosen] = _KINDS[name](images[chosen], level[chosen], sign[chosen])
    return out


def _autocontrast(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Stretches every channel to 0..255; a constant channel stays."""
    low = x.flatten(2).amin(2)[..., None, None].float()
    high = x.flatten(2).amax(2)[..., None, None].float()
    scale = 255.0 / (high - low).clamp_min(1)
    stretched = ((x.float() - low) * scale + 1e-4).floor().clamp(0, 255)
    return torch.where(high > low, stretched, x.float()).to(torch.uint8)


def _equalize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Pillow's histogram equalisation of every channel."""
    flat = x.flatten(2).flatten(0, 1).long()
    histogram = torch.zeros(len(flat), 256, dtype=torch.int64, device=x.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    last = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (histogram.sum(1, keepdim=True) - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((step // 2 + before) // step.clamp_min(1)).clamp(0, 255)
    same = torch.arange(256, device=x.device).expand_as(table)
    table = torch.where(step > 0, table, same)
    return table.gather(1, flat).to(torch.uint8).view_as(x)


def _posterize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keeps the 4 - int(4 level / 10) highest bits."""
    dropped = 8 - (4 - (level * 4 / 10).floor().long())
    mask = (255 << dropped) & 255
    return x & mask.to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Inverts the values from 256 - int(256 level / 10) on."""
    threshold = (256 - (level * 256 / 10).floor()).view(-1, 1, 1, 1)
    return torch.where(x.float() < threshold, x, 255 - x)


def _rotate(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """By int(3 level) degrees about the centre, nearest pixel."""
    angle = sign * (level * 30 / 10).floor() * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    centre_x, centre_y = x.shape[3] / 2, x.shape[2] / 2
    shift_x = centre_x - cos * centre_x + sin * centre_y
    shift_y = centre_y - sin * centre_x - cos * centre_y
    return _affine(x, (cos, -sin, shift_x + zero, sin, cos, shift_y + zero), nearest=True)


def _shear_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _affine(x, (one, sign * level * 0.03, zero, zero, one, zero))


def _shear_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _affine(x, (one, zero, zero, sign * level * 0.03, one, zero))


def _translate_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _affine(x, (one, zero, sign * (level * x.shape[3] / 30).floor(), zero, one, zero))


def _translate_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return _affine(x, (one, zero, zero, zero, one, sign * (level * x.shape[2] / 30).floor()))


def _affine(x: Tensor, matrix: tuple[Tensor, ...], nearest: bool = False) -> Tensor:
    """out(u, v) = x(a u + b v + c, d u + e v + f) at pixel centres; black outside, bilinear inside.

    matrix: a to f, each [n], in pixels as Pillow's Image.transform takes them.
    """
    height, width = x.shape[2:]
    a, b, c, d, e, f = (value.view(-1, 1, 1) for value in matrix)
    v = (torch.arange(height, device=x.device) + 0.5).view(1, -1, 1)
    u = (torch.arange(width, device=x.device) + 0.5).view(1, 1, -1)
    column, row = a * u + b * v + c, d * u + e * v + f
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column - 0.5, row - 0.5
    if nearest:
        column, row = (column + 0.5).floor(), (row + 0.5).floor()
    grid = torch.stack(
        (2 * column / max(width - 1, 1) - 1, 2 * row / max(height - 1, 1) - 1), dim=-1
    )
    sampled = F.grid_sample(x.float(), grid, padding_mode="border", align_corners=True)
    return (sampled * inside.unsqueeze(1)).round().to(torch.uint8)


_KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "rotate": _rotate,
    "solarize": _solarize,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
