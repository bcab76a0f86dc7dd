"""Image folders in ImageNet's layout, train/<class>/* and val/<class>/*, decoded as used."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mpt_fast.data.dataset import DataError, Split

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FolderSplit", "find_folders", "load_folders"]

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
_RESIZE = 256 / 224  # the shorter side before the centre crop, relative to the crop
_AHEAD = 2  # batches decoded ahead of the one in use
_CROP_TRIES = 10
_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)


class FolderSplit(Split):
    """Files and labels; images are decoded on request by `workers` threads, never kept.

    An image is turned to RGB, its shorter side resized to 256/224 of `size` and the centre
    `size` x `size` cut out; with a crop seed, a random part of 8 to 100 % of its area and ratio
    3/4 to 4/3 is resized instead, drawn from (seed, epoch, position in the split).
    """

    def __init__(self, files: list[Path], labels: list[int], size: int, workers: int = 4) -> None:
        self.files = files
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.size = size
        self.workers = workers
        self.image_shape = (3, size, size)

    def batch(self, index: Tensor | Sequence[int]) -> Tensor:
        return next(self.batches([torch.as_tensor(index)]))

    def batches(
        self, indices: Iterable[Tensor], crop_seed: tuple[int, int] | None = None
    ) -> Iterator[Tensor]:
        pending: deque[list[Future[Tensor]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for index in indices:
                pending.append([pool.submit(self._decode, i, crop_seed) for i in index.tolist()])
                if len(pending) > _AHEAD:
                    yield self._collect(pending.popleft())
            while pending:
                yield self._collect(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, futures: list[Future[Tensor]]) -> Tensor:
        if not futures:
            return torch.empty((0, *self.image_shape), dtype=torch.uint8)
        return torch.stack([future.result() for future in futures])

    def _decode(self, position: int, crop_seed: tuple[int, int] | None) -> Tensor:
        from PIL import Image, UnidentifiedImageError

        path = self.files[position]
        try:
            with Image.open(path) as opened:
                # JPEG decodes straight to a smaller size; twice the crop loses nothing visible.
                opened.draft("RGB", (2 * self.size, 2 * self.size))
                image = opened.convert("RGB")
        except (
            OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not a readable image ({reason}); replace it") from None
        if crop_seed is None:
            image = _centre(image, self.size)
        else:
            draw = np.random.default_rng([*crop_seed, position])
            image = image.resize(
                (self.size, self.size), Image.Resampling.BILINEAR, _random_box(image.size, draw)
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _centre(image: "Image.Image", size: int) -> "Image.Image":
    from PIL import Image

    width, height = image.size
    side = min(width, height) * size / round(size * _RESIZE)  # centre crop, in the file's pixels
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def _random_box(
    size: tuple[int, int], draw: np.random.Generator
) -> tuple[float, float, float, float]:
    """A part of the image with random area and aspect ratio; the largest centre square at worst."""
    width, height = size
    for _ in range(_CROP_TRIES):
        area = width * height * draw.uniform(*_CROP_AREA)
        ratio = math.exp(draw.uniform(math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def find_folders(folder: Path) -> tuple[Path, Path] | None:
    """(train, val or test) below `folder`, or None."""
    train = folder / "train"
    for name in ("val", "test"):
        if train.is_dir() and (folder / name).is_dir():
            return train, folder / name
    return None


def _scan(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in _ENDINGS)
        if not own and (folder / name).is_dir():
            raise DataError(f"{folder / name}: holds no images; add some or remove the folder")
        files += own
        labels += [label] * len(own)
    return files, labels


def load_folders(
    train: Path, test: Path, size: int
) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """(train, test, class names); the classes are the sorted folder names below `train`."""
    try:
        import PIL  # noqa: F401  (only whether it is there; decoding imports what it needs)
    except ImportError:
        raise DataError("imagefolder: Pillow is not installed; pip install pillow") from None
    classes = sorted(p.name for p in train.iterdir() if p.is_dir())
    if not classes:
        raise DataError(f"{train}: holds no class folders; expected {train}/<class>/<image>")
    strange = sorted({p.name for p in test.iterdir() if p.is_dir()} - set(classes))
    if strange:
        raise DataError(
            f"{test}: class {strange[0]!r} is not in {train}; add it there or remove it"
        )
    return (
        FolderSplit(*_scan(train, classes), size),
        FolderSplit(*_scan(test, classes), size),
        tuple(classes),
    )
