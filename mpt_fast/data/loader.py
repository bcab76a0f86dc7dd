"""Batches of normalised images on the training device, a pure function of (seed, epoch, step)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mpt_fast.data.augment import MODES, crop_flip, draw
from mpt_fast.data.augmix import Mixing
from mpt_fast.data.dataset import DataError, Split, normalize

__all__ = ["Loader"]

_ORDER, _AUGMENT, _MIX = 0, 1, 2  # what a generator is for: the streams never coincide


def _generator(*key: int) -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


class Loader:
    """Batches of a split.

    Training (`train=True`): the order of an epoch is a permutation drawn from (seed, epoch), what
    augmentation draws comes from (seed, epoch, step), so that any step can be produced without
    those before it. The images left over after the last full batch are dropped (another
    permutation brings them back), so that all batches have one size and all ranks the same number
    of steps. Evaluation (`train=False`): in order, every image exactly once, the last batch may be
    smaller; ranks take every world_size-th image.

    Args:
        split: where images come from; what it keeps in memory is moved to `device`.
        batch_size: images per step over ALL ranks; rank r takes the r-th of world_size parts.
        mean, std: per channel, for the normalisation (x/255 - mean)/std.
        augment: "none", "flip", "crop" (by up to `pad` pixels over a black border), "crop-flip",
            or "resized-crop-flip" (image folders only). Only training augments.
        mixing: AugMix or noise after `augment` (None: neither). With its `jsd` the images of a
            step are three views [3 n, C, H, W], the clean ones first, for the n labels.
        memory_format, dtype: of the images that come out.

    Raises:
        DataError: a batch larger than the split or not divisible by world_size, an unknown mode.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        train: bool,
        seed: int = 0,
        augment: str = "none",
        pad: int = 4,
        mixing: Mixing | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1; got {batch_size}")
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} is not in [0, {world_size})")
        if augment not in MODES:
            raise DataError(f"unknown augment {augment!r}; choose one of {', '.join(MODES)}")
        if train and batch_size % world_size:
            raise DataError(
                f"batch_size {batch_size} does not divide among {world_size} processes; "
                f"use a multiple of {world_size}"
            )
        if train and batch_size > len(split):
            raise DataError(
                f"batch_size {batch_size} is larger than the {len(split)} training images; "
                f"use at most {len(split)}"
            )
        self.split = split.to(device)
        self.labels = split.labels.to(device)
        self.batch_size = batch_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.train = train
        self.seed = seed
        self.augment = augment if train else "none"
        self.pad = pad
        self.mixing = mixing if train else None
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.memory_format = memory_format
        self.dtype = dtype

    def __len__(self) -> int:
        """Steps per epoch of this rank."""
        if self.train:
            return len(self.split) // self.batch_size
        own = len(range(self.rank, len(self.split), self.world_size))
        return -(-own // self._own_size)

    @property
    def _own_size(self) -> int:
        """Images per step of this rank."""
        return max(1, self.batch_size // self.world_size)

    def _indices(self, epoch: int) -> list[Tensor]:
        """The images of each step of this rank, as int64 index tensors."""
        if self.train:
            order = torch.randperm(len(self.split), generator=_generator(self.seed, _ORDER, epoch))
            steps = order[: len(self) * self.batch_size].view(
                len(self), self.world_size, self._own_size
            )
            return list(steps[:, self.rank])
        own = torch.arange(len(self.split))[self.rank :: self.world_size]
        return list(own.split(self._own_size)) if len(own) else []

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images `dtype` [n, C, H, W], labels int64 [n]) of each step from `start_step` on.

        The images are [3 n, C, H, W] where `mixing` gives three views.
        """
        indices = self._indices(epoch)[start_step:]
        resized = self.augment == "resized-crop-flip"
        crop_seed = (self.seed, epoch) if resized else None
        own = slice(self.rank * self._own_size, (self.rank + 1) * self._own_size)
        batches = self.split.batches(indices, crop_seed)
        for step, (index, images) in enumerate(zip(indices, batches, strict=True), start_step):
            images = images.to(self.device, non_blocking=True)
            draws = draw(
                self.augment,
                self.batch_size,
                self.pad,
                _generator(self.seed, _AUGMENT, epoch, step),
            )
            if draws is not None:
                images = crop_flip(images, draws.part(own, self.device), self.pad)
            if self.mixing is not None:
                generator = _generator(self.seed, _MIX, epoch, step)
                images = self.mixing.apply(images, generator, own, self.batch_size)
            images = normalize(images, self.mean, self.std, self.dtype, self.memory_format)
            yield images, self.labels.index_select(0, index.to(self.device))
