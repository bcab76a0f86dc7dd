"""Image files as network input, with NumPy and Pillow alone.

uint8 pixels go to the network as they are: it knows their normalisation.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mpt_fast.runtime import Pixels

Array = npt.NDArray[Any]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_IDX_UNSIGNED_BYTE = 0x08
_LARGEST_IDX = 1 << 31


def read_images(path: Path, shape: tuple[int, int, int]) -> Iterator[tuple[str, Array]]:
    """Yields (name, [C, H, W]: uint8 pixels, or float32 shares of 1) for every image in a file.

    `shape` is the network's (C, H, W). Pictures are converted to grey or RGB and resized to it.
    `.npy` holds one image [H, W], [C, H, W] or [H, W, C], or several with one more dimension in
    front; IDX files (plain or .gz) hold several grey images. Arrays must already have the
    network's height and width.

    Raises ValueError with one line that names the file and the remedy, OSError for a missing one.
    """
    if not path.exists():
        raise FileNotFoundError(2, "No such file", str(path))
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the images in it ({path}/*.png)")
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        yield path.name, _read_picture(path, shape)
        return
    if suffix == ".npy":
        images = _read_npy(path, shape)
    elif "ubyte" in path.name or ".idx" in path.name:
        images = _read_idx(path, shape)
    else:
        raise ValueError(
            f"{path}: unknown kind of image file; give {', '.join(sorted(PICTURES))}, .npy or IDX"
        )
    for index, image in enumerate(images):
        yield (f"{path.name}[{index}]" if len(images) > 1 else path.name), image


def network_input(images: Sequence[Array], pixels: Pixels | None, invert: bool = False) -> Array:
    """What a packed network takes for `images` [C, H, W]: uint8, or float32 where it must be.

    `pixels` None: shares of 1 as they are. `invert` swaps dark and light.
    """
    if invert:
        images = [255 - image if image.dtype == np.uint8 else 1 - image for image in images]
    if pixels is None:
        return np.stack([_as_shares(image) for image in images])
    if all(image.dtype == np.uint8 for image in images):
        return np.stack(images)
    return np.stack([pixels.normalize(image) for image in images])


def _as_shares(pixels: Array) -> Array:
    return pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)


def softmax(logits: Array) -> Array:
    """Class probabilities [N, classes], float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _read_picture(path: Path, shape: tuple[int, int, int]) -> Array:
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(
            f"{path}: the network takes {channels} channels and pictures have 1 or 3; "
            "give an .npy array"
        )
    try:
        with Image.open(path) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({type(error).__name__})") from None
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _read_npy(path: Path, shape: tuple[int, int, int]) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable .npy array ({' '.join(str(error).split())})"
        ) from None
    channels, height, width = shape
    if channels in (1, 3) and array.shape[-3:] == (height, width, channels) != shape:
        array = np.moveaxis(array, -1, -3)
    elif channels == 1 and array.shape[-2:] == (height, width) and array.shape[-3:] != shape:
        array = array[..., None, :, :]
    if array.shape[-3:] != shape or array.ndim not in (3, 4):
        raise ValueError(
            f"{path}: shape {array.shape} does not hold images of {channels} x {height} x {width}; "
            "resize them first"
        )
    return _checked(path, array.reshape(-1, *shape))


def _checked(path: Path, pixels: Array) -> Array:
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"{path}: pixels of {pixels.dtype}; give uint8 0..255 or floats 0..1")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"{path}: float pixels outside 0..1; give uint8 0..255 or floats 0..1")
    return pixels.astype(np.float32)


def _read_idx(path: Path, shape: tuple[int, int, int]) -> Array:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(16)
            if header[:4] != bytes((0, 0, _IDX_UNSIGNED_BYTE, 3)) or len(header) < 16:
                raise ValueError(f"{path}: not an IDX file of images; give one named *-images-*")
            counts = struct.unpack(">3I", header[4:])
            length = math.prod(counts)
            content = stream.read(length + 1) if length <= _LARGEST_IDX else b""
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); get this file again") from None
    if len(content) != length:
        raise ValueError(
            f"{path}: its header promises {length} bytes of pixels; get this file again"
        )
    if shape != (1, *counts[1:]):
        raise ValueError(
            f"{path}: images of 1 x {counts[1]} x {counts[2]}, the network takes "
            f"{' x '.join(map(str, shape))}; give images of that size"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(counts[0], *shape)
