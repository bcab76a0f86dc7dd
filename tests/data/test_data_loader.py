"""Loader and augmentation: functions of (seed, epoch, step), the same on any number of ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_fast import data
from mpt_fast.data.augment import Draws, crop_flip, draw


def make_split(count: int = 23, shape: tuple[int, int, int] = (2, 5, 7)) -> data.TensorSplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return data.TensorSplit(images, torch.arange(count) % 10, 10)


MEAN, STD = (0.3, 0.6), (0.2, 0.4)


def make_loader(split: data.TensorSplit, batch_size: int, **options: object) -> data.Loader:
    settings = {"mean": MEAN, "std": STD, "train": True, "seed": 5} | options
    return data.Loader(split, batch_size, **settings)  # type: ignore[arg-type]  # test options


def crop_flip_loop(images: np.ndarray, draws: Draws, pad: int) -> np.ndarray:
    """The formula of the docstring, one image at a time."""
    out = np.empty_like(images)
    for n, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        dy, dx = int(draws.dy[n]), int(draws.dx[n])
        cut = padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
        out[n] = cut[:, :, ::-1] if draws.flip[n] else cut
    return out


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 5),
    c=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    pad=st.integers(0, 4),
    mode=st.sampled_from(["flip", "crop", "crop-flip"]),
    seed=st.integers(0, 99),
)
def test_crop_flip_is_the_formula(
    n: int, c: int, h: int, w: int, pad: int, mode: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (n, c, h, w), dtype=torch.uint8, generator=generator)
    draws = draw(mode, n, pad, generator)
    assert draws is not None
    got = crop_flip(images, draws, pad)
    assert np.array_equal(got.numpy(), crop_flip_loop(images.numpy(), draws, pad))


def test_draws_cover_their_ranges() -> None:
    draws = draw("crop-flip", 2000, 4, torch.Generator().manual_seed(0))
    assert draws is not None
    assert set(draws.dy.tolist()) == set(draws.dx.tolist()) == set(range(9))
    assert 900 < int(draws.flip.sum()) < 1100
    only_flip = draw("flip", 50, 4, torch.Generator().manual_seed(0))
    assert only_flip is not None
    assert set(only_flip.dy.tolist()) == {4}
    only_crop = draw("crop", 50, 4, torch.Generator().manual_seed(0))
    assert only_crop is not None
    assert not only_crop.flip.any()
    assert draw("none", 5, 4, torch.Generator()) is None


def test_an_epoch_is_a_permutation_less_the_remainder() -> None:
    split = make_split()
    loader = make_loader(split, 5)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 4
    assert all(len(images) == 5 for images, _ in batches)
    plain = data.normalize(split.images, MEAN, STD)
    seen = torch.cat([images for images, _ in batches])
    matches = [int((plain == image).flatten(1).all(1).nonzero()) for image in seen]
    assert len(set(matches)) == 20
    assert [v % 10 for v in matches] == torch.cat([labels for _, labels in batches]).tolist()
    assert matches != sorted(matches)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    split = make_split()

    def labels(seed: int, epoch: int) -> list[int]:
        loader = make_loader(split, 5, seed=seed)
        return torch.cat([labels for _, labels in loader.epoch(epoch)]).tolist()

    assert labels(5, 0) == labels(5, 0)
    assert labels(5, 0) != labels(5, 1)
    assert labels(5, 0) != labels(6, 0)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
def test_any_step_can_be_produced_alone(augment: str) -> None:
    loader = make_loader(make_split(), 4, augment=augment)
    whole = list(loader.epoch(2))
    rest = list(loader.epoch(2, start_step=3))
    assert len(rest) == len(whole) - 3
    for (a, b), (c, d) in zip(whole[3:], rest, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_same_global_batches(world_size: int) -> None:
    split = make_split()
    alone = list(make_loader(split, 6, augment="crop-flip").epoch(1))
    ranks = [
        list(make_loader(split, 6, augment="crop-flip", rank=r, world_size=world_size).epoch(1))
        for r in range(world_size)
    ]
    assert {len(r) for r in ranks} == {len(alone)}
    for step, (images, labels) in enumerate(alone):
        assert torch.equal(images, torch.cat([r[step][0] for r in ranks]))
        assert torch.equal(labels, torch.cat([r[step][1] for r in ranks]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_evaluation_sees_every_image_once(world_size: int) -> None:
    split = make_split()
    total = 0
    for rank in range(world_size):
        loader = make_loader(
            split, 4, train=False, augment="crop", rank=rank, world_size=world_size
        )
        batches = list(loader.epoch())
        assert len(batches) == len(loader)
        own = torch.cat([images for images, _ in batches]) if batches else torch.empty(0)
        expected = data.normalize(split.images[rank::world_size], MEAN, STD)
        assert torch.equal(own.reshape(expected.shape), expected)
        total += len(own)
    assert total == len(split)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_is_the_formula(dtype: torch.dtype) -> None:
    split = make_split()
    mean, std = torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype)
    expected = (split.images.to(dtype) / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(
        data.normalize(split.images, MEAN, STD, dtype),
        expected,
        rtol=0,
        atol=8 * torch.finfo(dtype).eps,
    )


def test_channels_last_changes_the_layout_only() -> None:
    split = make_split()
    plain = next(iter(make_loader(split, 5).epoch()))[0]
    last = next(iter(make_loader(split, 5, memory_format=torch.channels_last).epoch()))[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_wrong_arguments_are_named() -> None:
    split = make_split()
    with pytest.raises(data.DataError, match="larger than the 23 training images; use at most 23"):
        make_loader(split, 24)
    with pytest.raises(data.DataError, match="does not divide among 2 processes"):
        make_loader(split, 5, world_size=2)
    with pytest.raises(data.DataError, match=r"rank 2 is not in \[0, 2\)"):
        make_loader(split, 4, rank=2, world_size=2)
    with pytest.raises(data.DataError, match="unknown augment 'mixup'; choose one of none, flip"):
        make_loader(split, 5, augment="mixup")
    with pytest.raises(data.DataError, match="batch_size must be at least 1"):
        make_loader(split, 0)
    with pytest.raises(data.DataError, match="needs the data set imagefolder"):
        list(make_loader(split, 5, augment="resized-crop-flip").epoch())


def test_split_checks_what_it_is_given() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(data.DataError, match="images must be uint8"):
        data.TensorSplit(images.float(), torch.zeros(3, dtype=torch.int64), 10)
    with pytest.raises(data.DataError, match=r"labels must be int64 \[3\]"):
        data.TensorSplit(images, torch.zeros(2, dtype=torch.int64), 10)
    with pytest.raises(data.DataError, match=r"labels must be in \[0, 2\); got 0..2"):
        data.TensorSplit(images, torch.tensor([0, 1, 2]), 2)


def test_dataset_checks_its_parts() -> None:
    split = make_split()
    other = make_split(shape=(2, 5, 6))
    with pytest.raises(data.DataError, match="train images are"):
        data.Dataset("x", split, other, ("a",), MEAN, STD)
    with pytest.raises(data.DataError, match="mean and std must have 2 values each"):
        data.Dataset("x", split, split, ("a",), (0.1,), (0.2,))
