"""What the 8-bit pixels of an image stand for in the network that a packed file holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class PixelError(ValueError):
    """A pixel normalisation is not usable; one line, with the remedy."""


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Per channel `scale` and `shift` with u*scale + shift = (u/255 - mean)/std for u in 0..255."""
    scale = [1.0 / (255.0 * s) for s in std]
    return scale, [-m / s for m, s in zip(mean, std, strict=True)]


@dataclass(frozen=True)
class Pixels:
    """x = u*scale + shift, each product and sum rounded to float32, for a pixel u of 0..255.

    `mean` and `std` are per channel, of pixels scaled to [0, 1]; scale and shift are
    `scale_and_shift` rounded to float32: bit for bit what `mpt_fast.data` feeds a network.
    Raises PixelError unless both have one finite number per channel and every std is positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            mean, std = (tuple(float(v) for v in values) for values in (self.mean, self.std))
        except (TypeError, ValueError):
            raise PixelError("pixels is not (mean, std), one number per channel in each") from None
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if not len(mean) == len(std) >= 1:
            raise PixelError(
                f"pixels has {len(mean)} means and {len(std)} standard deviations; give one of "
                "each per channel"
            )
        if not all(map(math.isfinite, mean)) or not all(0 < s < math.inf for s in std):
            raise PixelError("the mean of a pixel must be finite and its std finite and positive")
        if not np.isfinite(self.table()).all():
            raise PixelError(f"std {min(std)} is too small: a normalised pixel is infinite")

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    def table(self) -> NDArray[np.float32]:
        """float32 [channels, 256]: what every pixel value stands for."""
        return self._affine(np.arange(256, dtype=np.float32)[None], (self.channels, 1))

    def normalize(self, images: NDArray) -> NDArray[np.float32]:
        """What the network is fed: uint8 [..., C, H, W], or float shares of 1 -> float32."""
        pixels = images.astype(np.float32)
        if images.dtype != np.uint8:
            pixels *= np.float32(255)
        return self._affine(pixels, (self.channels, 1, 1))

    def _affine(self, pixels: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            scale, shift = (
                np.asarray(values, np.float64).astype(np.float32).reshape(shape)
                for values in scale_and_shift(self.mean, self.std)
            )
            return pixels * scale + shift
