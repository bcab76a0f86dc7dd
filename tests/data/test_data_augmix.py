"""AugMix and noise: each operation against Pillow, the mixture against its formula, determinism."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mpt_fast import data
from mpt_fast.data import Mixing
from mpt_fast.data.augmix import OPERATIONS, ChainDraws, apply_operations, draw_chains, mix_chains

SIZE = 24


def images(count: int = 3, channels: int = 3) -> Tensor:
    """Smooth pictures with a black margin, so that histograms are neither flat nor constant."""
    ys, xs = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    waves = torch.stack(
        [
            torch.sin(xs * (0.2 + 0.1 * i)) + torch.cos(ys * (0.3 + 0.05 * j))
            for i in range(count)
            for j in range(channels)
        ]
    ).view(count, channels, SIZE, SIZE)
    pictures = ((waves + 2) * 50 + torch.randint(0, 9, waves.shape)).to(torch.uint8)
    pictures[..., :2, :] = 0
    return pictures


def by_pillow(name: str, picture: Tensor, level: float, sign: float) -> np.ndarray:
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    if name == "autocontrast":
        out = ImageOps.autocontrast(image)
    elif name == "equalize":
        out = ImageOps.equalize(image)
    elif name == "posterize":
        out = ImageOps.posterize(image, 4 - int(level * 4 / 10))
    elif name == "solarize":
        out = ImageOps.solarize(image, 256 - int(level * 256 / 10))
    elif name == "rotate":
        out = image.rotate(sign * int(level * 30 / 10))
    else:
        shift, shear = sign * int(level * SIZE / 3 / 10), sign * level * 0.3 / 10
        matrix = {
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, shift, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, shift),
        }[name]
        out = image.transform(
            (SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
    return np.asarray(out)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("level", "sign"), [(0.5, 1.0), (3.0, -1.0), (9.9, 1.0)])
def test_operations_are_pillows(name: str, level: float, sign: float) -> None:
    pictures = images()
    kind = torch.full((3,), OPERATIONS.index(name))
    out = apply_operations(pictures, kind, torch.full((3,), level), torch.full((3,), sign))
    assert out.dtype == torch.uint8
    for picture, mine in zip(pictures, out, strict=True):
        theirs = by_pillow(name, picture, level, sign).astype(int)
        difference = np.abs(mine.permute(1, 2, 0).numpy().astype(int) - theirs)
        if name in ("posterize", "solarize", "equalize", "autocontrast"):
            assert difference.max() <= (1 if name == "autocontrast" else 0)
        else:  # a value may round either way, and a pixel on the border of a pixel fall either way
            assert np.mean(difference > 1) < 0.01


def test_each_image_has_its_own_operation() -> None:
    pictures = images(2)
    both = apply_operations(
        pictures,
        torch.tensor([OPERATIONS.index("solarize"), len(OPERATIONS)]),
        torch.tensor([5.0, 5.0]),
        torch.ones(2),
    )
    assert not torch.equal(both[0], pictures[0])
    assert torch.equal(both[1], pictures[1])


def test_mixture_is_its_formula() -> None:
    pictures = images(2)
    draws = draw_chains(2, 3, -1, 3, torch.Generator().manual_seed(1))
    assert torch.allclose(draws.weight.sum(1), torch.ones(2))
    expected = torch.zeros(pictures.shape)
    for i in range(2):
        mixed = torch.zeros(pictures.shape[1:])
        for k in range(3):
            x = pictures[i : i + 1]
            for step in range(3):
                choice = (draws.operation, draws.level, draws.sign)
                x = apply_operations(x, *(v[i : i + 1, k, step] for v in choice))
            mixed += draws.weight[i, k] * x[0].float()
        expected[i] = draws.mix[i] * pictures[i] + (1 - draws.mix[i]) * mixed
    assert torch.allclose(mix_chains(pictures, draws), expected, atol=1e-3)


def test_depths_and_levels() -> None:
    draws = draw_chains(400, 3, -1, 3, torch.Generator().manual_seed(0))
    lengths = (draws.operation < len(OPERATIONS)).sum(2)
    assert set(lengths.unique().tolist()) == {1, 2, 3}
    assert draws.level.min() >= 0.1
    assert draws.level.max() <= 3
    fixed = draw_chains(50, 2, 4, 1, torch.Generator().manual_seed(0))
    assert fixed.operation.shape == (50, 2, 4)
    assert bool((fixed.operation < len(OPERATIONS)).all())


def test_whole_mixture_of_clean_chains_is_the_image() -> None:
    pictures = images(2)
    none = torch.full((2, 3, 3), len(OPERATIONS))
    weight = torch.full((2, 3), 1 / 3)
    draws = ChainDraws(none, torch.ones(2, 3, 3), torch.ones(2, 3, 3), weight, torch.rand(2))
    assert torch.allclose(mix_chains(pictures, draws), pictures.float(), atol=1e-4)


def loader(mixing: Mixing, **options: object) -> data.Loader:
    digits = data.load("digits")
    return data.Loader(
        digits.train, 32, mean=digits.mean, std=digits.std, train=True, mixing=mixing, **options
    )  # type: ignore[arg-type]


def test_noise_has_its_share_and_deviation() -> None:
    mixing = Mixing(noise_share=0.25, noise_std=0.2)
    pictures = images(400, 1)
    noisy = mixing.apply(pictures, torch.Generator().manual_seed(0), slice(0, 400), 400)
    difference = (noisy - pictures) / 255
    touched = difference.flatten(1).abs().amax(1) > 0
    assert 0.18 < float(touched.float().mean()) < 0.32
    assert float(difference[touched].std()) == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("mixing", [Mixing(augmix=True), Mixing(noise_share=0.5)])
def test_batches_depend_on_seed_epoch_and_step_only(mixing: Mixing) -> None:
    whole = [x for x, _ in loader(mixing).epoch(2)]
    later = [x for x, _ in loader(mixing).epoch(2, start_step=5)]
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], later, strict=True))
    ranks = [[x for x, _ in loader(mixing, rank=r, world_size=2).epoch(2)] for r in (0, 1)]
    assert torch.allclose(torch.cat([ranks[0][0], ranks[1][0]]), whole[0], atol=1e-5)
    assert not torch.equal(whole[0], next(iter(loader(mixing, seed=1).epoch(2)))[0])


def test_three_views_begin_with_the_clean_one() -> None:
    views, labels = next(iter(loader(Mixing(augmix=True, jsd=True)).epoch()))
    clean, same = next(iter(loader(Mixing(noise_share=1e-9)).epoch()))
    assert len(views) == 3 * len(labels)
    assert torch.equal(labels, same)
    first, second, third = views.chunk(3)
    assert torch.allclose(first, clean, atol=1e-5)
    assert not torch.allclose(second, clean)
    assert not torch.allclose(second, third)


def test_evaluation_is_never_mixed() -> None:
    digits = data.load("digits")
    options = {"mean": digits.mean, "std": digits.std, "train": False}
    plain = data.Loader(digits.test, 64, **options)  # type: ignore[arg-type]
    mixed = data.Loader(digits.test, 64, mixing=Mixing(augmix=True), **options)  # type: ignore[arg-type]
    assert torch.equal(next(iter(plain.epoch()))[0], next(iter(mixed.epoch()))[0])


def test_first_images_of_a_data_set() -> None:
    digits = data.load("digits")
    few = digits.first(100)
    assert len(few.train) == 100
    assert torch.equal(few.train.batch([0, 99]), digits.train.batch([0, 99]))
    assert len(few.test) == len(digits.test)
    assert digits.first(0) is digits
    with pytest.raises(data.DataError, match=r"train_images 99999 is not in \[1, 1433\]"):
        digits.first(99999)
