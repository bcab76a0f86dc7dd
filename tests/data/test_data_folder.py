"""Image folders: lazily decoded, centre or random crops, broken files named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpt_fast import data
from mpt_fast.data.folder import FolderSplit

COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cat": (0, 0, 200)}


def write_tree(root: Path, per_class: int = 2, size: tuple[int, int] = (40, 30)) -> None:
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                Image.new("RGB", size, colour).save(folder / f"{i}.png")


def test_labels_shapes_and_colours(tmp_path: Path) -> None:
    write_tree(tmp_path)
    ds = data.load("imagefolder", tmp_path, image_size=16)
    assert ds.classes == ("ant", "bee", "cat")
    assert ds.image_shape == (3, 16, 16)
    assert ds.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    images = ds.train.batch(torch.tensor([4, 0, 3]))
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    for image, name in zip(images, ("cat", "ant", "bee"), strict=True):
        assert tuple(image[:, 8, 8].tolist()) == COLOURS[name]


def test_nothing_is_decoded_until_asked(tmp_path: Path) -> None:
    write_tree(tmp_path)
    broken = tmp_path / "train" / "bee" / "0.png"
    broken.write_bytes(b"not an image")
    ds = data.load("imagefolder", tmp_path, image_size=16)
    assert len(ds.train.batch(torch.tensor([0]))) == 1
    with pytest.raises(data.DataError, match=r"bee.0\.png: not a readable image") as caught:
        ds.train.batch(torch.tensor([2]))
    assert "\n" not in str(caught.value)


def test_centre_crop_takes_the_centre(tmp_path: Path) -> None:
    write_tree(tmp_path, per_class=1)
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 18:46] = 255  # the centre 28 of 64 columns: what 224/256 of the height 32 covers
    Image.fromarray(pixels).save(tmp_path / "train" / "ant" / "0.png")
    image = data.load("imagefolder", tmp_path, image_size=28).train.batch(torch.tensor([0]))
    assert int(image.min()) == 255


def test_truncated_jpeg_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, per_class=1)
    path = tmp_path / "val" / "cat" / "0.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:600])
    ds = data.load("imagefolder", tmp_path, image_size=16)
    with pytest.raises(data.DataError, match=r"0\.jpg: not a readable image"):
        ds.test.batch(torch.tensor([2]))


def test_reads_ahead_in_order_and_only_a_little(tmp_path: Path) -> None:
    write_tree(tmp_path, per_class=4)
    split = data.load("imagefolder", tmp_path, image_size=8).train
    drawn: list[int] = []

    def indices() -> Iterator[torch.Tensor]:
        for i in (11, 0, 5, 6, 1, 9, 2, 3):
            drawn.append(i)
            yield torch.tensor([i])

    stream = split.batches(indices())
    first = next(stream)
    assert tuple(first[0, :, 4, 4].tolist()) == COLOURS["cat"]
    assert len(drawn) == 3, "two batches ahead of the one in use, no more"
    colours = [tuple(image[0, :, 4, 4].tolist()) for image in stream]
    order = [list(COLOURS.values())[i // 4] for i in drawn]
    assert colours == order[1:]


def test_random_crops_depend_on_seed_epoch_and_image_only(tmp_path: Path) -> None:
    write_tree(tmp_path, per_class=2)
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(noise).save(tmp_path / "train" / "ant" / f"{i}.png")
    split = data.load("imagefolder", tmp_path, image_size=16).train

    def crop(index: list[int], seed: int, epoch: int) -> torch.Tensor:
        return next(iter(split.batches([torch.tensor(index)], (seed, epoch))))

    both = crop([0, 1], 3, 1)
    assert torch.equal(both[1], crop([1], 3, 1)[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, crop([0, 1], 3, 2))
    assert not torch.equal(both, crop([0, 1], 4, 1))


def test_class_folders_are_checked(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "val" / "dog").mkdir()
    with pytest.raises(data.DataError, match=r"class 'dog' is not in"):
        data.load("imagefolder", tmp_path)
    (tmp_path / "val" / "dog").rmdir()
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(data.DataError, match=r"eel: holds no images"):
        data.load("imagefolder", tmp_path)


def test_missing_folder_says_how(tmp_path: Path) -> None:
    with pytest.raises(data.MissingDataError, match=r"train/<class>/"):
        data.load("imagefolder")
    with pytest.raises(data.MissingDataError, match=str(tmp_path)):
        data.load("imagefolder", tmp_path)
    with pytest.raises(data.DataError, match="image_size must be at least 1"):
        data.load("imagefolder", tmp_path, image_size=0)


def test_empty_batch_keeps_its_shape(tmp_path: Path) -> None:
    split = FolderSplit([], [], 8)
    assert split.batch(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)
