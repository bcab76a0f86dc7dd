"""What a data set is: two splits of uint8 images with int64 labels, and their normalisation."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpt_fast.runtime.pixels import scale_and_shift

__all__ = ["DataError", "Dataset", "MissingDataError", "Split", "TensorSplit", "normalize"]


class DataError(ValueError):
    """A data file that cannot be used: the message names the file and the remedy, in one line."""


class MissingDataError(DataError):
    """Data that is not there: the message says where it was looked for and how to get it."""


class Split(ABC):
    """Images and labels of one split; `labels` is int64 [N] on the CPU or the split's device."""

    labels: Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def batch(self, index: Tensor | Sequence[int]) -> Tensor:
        """The images at the positions `index` [n], as uint8 [n, C, H, W]."""

    def batches(
        self, indices: Iterable[Tensor], crop_seed: tuple[int, int] | None = None
    ) -> Iterator[Tensor]:
        """One uint8 [n, C, H, W] per index tensor, in order; a lazy split reads ahead.

        `crop_seed` = (seed, epoch) asks for random resized crops, which only a split that decodes
        its images can give; raises DataError from any other.
        """
        if crop_seed is not None:
            raise DataError(
                "augment 'resized-crop-flip' needs the data set imagefolder; use 'crop-flip'"
            )
        for index in indices:
            yield self.batch(index)

    def to(self, device: torch.device | str) -> "Split":
        """This split with what it keeps in memory on `device`."""
        del device
        return self


class TensorSplit(Split):
    """A split that lies in memory: `images` uint8 [N, C, H, W], `labels` int64 [N].

    Raises DataError if the shapes or dtypes disagree or a label is outside [0, classes).
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(
                f"images must be uint8 [N, C, H, W]; got {images.dtype} {list(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be int64 [{len(images)}]; got {labels.dtype} {list(labels.shape)}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise DataError(
                f"labels must be in [0, {classes}); got {int(labels.min())}..{int(labels.max())}"
            )
        self.images = images
        self.labels = labels
        self.classes = classes
        _, c, h, w = images.shape
        self.image_shape = (c, h, w)

    def batch(self, index: Tensor | Sequence[int]) -> Tensor:
        return self.images.index_select(0, torch.as_tensor(index, device=self.images.device))

    def to(self, device: torch.device | str) -> "TensorSplit":
        return TensorSplit(self.images.to(device), self.labels.to(device), self.classes)


class _Head(Split):
    """The first `count` images of a split."""

    def __init__(self, split: Split, count: int) -> None:
        self._split = split
        self.labels = split.labels[:count]
        self.image_shape = split.image_shape

    def batch(self, index: Tensor | Sequence[int]) -> Tensor:
        return self._split.batch(index)

    def batches(
        self, indices: Iterable[Tensor], crop_seed: tuple[int, int] | None = None
    ) -> Iterator[Tensor]:
        return self._split.batches(indices, crop_seed)

    def to(self, device: torch.device | str) -> "Split":
        return _Head(self._split.to(device), len(self.labels))


@dataclass(frozen=True)
class Dataset:
    """A named data set. `mean` and `std` are per channel, of pixels scaled to [0, 1]."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0:
                raise DataError(f"{self.name}: the {name} split is empty; get a complete copy")
        if self.train.image_shape != self.test.image_shape:
            raise DataError(
                f"{self.name}: train images are {self.train.image_shape} and test images "
                f"{self.test.image_shape}; get both from one source"
            )
        channels = self.image_shape[0]
        if not len(self.mean) == len(self.std) == channels:
            raise DataError(f"{self.name}: mean and std must have {channels} values each")

    def first(self, train_images: int) -> "Dataset":
        """This data set with only so many of its training images, the first ones; 0 means all.

        Raises DataError if it has fewer.
        """
        if train_images == 0:
            return self
        if not 0 < train_images <= len(self.train):
            raise DataError(
                f"{self.name}: train_images {train_images} is not in [1, {len(self.train)}]; "
                "0 takes all"
            )
        return dataclasses.replace(self, train=_Head(self.train, train_images))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 [N, C, H, W] to what the networks are fed: (x/255 - mean)/std, same shape."""
        return normalize(images, self.mean, self.std, dtype)


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """uint8 [N, C, H, W] to `dtype`: x * 1/(255 std) - mean/std, one multiply and one add."""
    scale, shift = (
        torch.tensor(values, dtype=dtype, device=images.device)
        for values in scale_and_shift(mean, std)
    )
    out = images.to(dtype, memory_format=memory_format)
    return out.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
