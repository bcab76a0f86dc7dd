"""Packed networks that know their pixels take uint8 images, with the eager network's decisions."""

from pathlib import Path

import pytest
import torch
from packed_checks import LAYERWISE, assert_same, eager, randomise
from torch import nn

import mpt_fast as mpt
from mpt_fast.data.dataset import normalize
from mpt_fast.packed import PackError
from mpt_fast.runtime import InputError

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def network(*activations: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for inputs, activation in zip((3, 8, 8), activations, strict=False):
        conv = mpt.MPTConv2d(inputs, 8, 3, padding=1, config=LAYERWISE)
        layers += [conv, nn.BatchNorm2d(8), activation]
    return randomise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 49, 5)))


def images(count: int = 70) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (count, 3, 7, 7), dtype=torch.uint8, generator=generator)
    noise[: count // 2, :, 2:] = 255  # flat areas, where sums repeat
    return noise


@pytest.mark.parametrize("activation", [mpt.BinaryActivation(), nn.ReLU()], ids=["sign", "relu"])
def test_uint8_images(activation: nn.Module, backend: str, tmp_path: Path) -> None:
    model, x = network(activation, activation), images()
    normalised = normalize(x, MEAN, STD)
    packed = mpt.pack(model, normalised, backend=backend, pixels=(MEAN, STD))
    assert torch.equal(packed(x), packed(normalised))
    assert_same(packed, model, normalised)
    packed.save(tmp_path / "net.mpt")
    loaded = mpt.load(tmp_path / "net.mpt", backend=backend)
    assert torch.equal(loaded(x), packed(x))


def test_signs_of_uint8_images_are_the_eager_ones(backend: str) -> None:
    model, x = network(mpt.BinaryActivation())[:3], images(300)
    packed = mpt.pack(model, x[:1].float(), backend=backend, pixels=(MEAN, STD))
    assert torch.equal(packed(x).double(), eager(model, normalize(x, MEAN, STD)))


def test_uint8_images_of_a_network_that_partly_runs_in_pytorch(backend: str) -> None:
    model, x = network(nn.Hardtanh(), mpt.BinaryActivation()), images(9)
    packed = mpt.pack(model, x.float(), backend=backend, pixels=(MEAN, STD))
    assert packed.plan().unsupported
    assert torch.equal(packed(x), packed(normalize(x, MEAN, STD)))


def test_uint8_images_without_their_normalisation_are_refused(backend: str) -> None:
    packed = mpt.pack(network(nn.ReLU()), images(1).float(), backend=backend)
    with pytest.raises(InputError, match=r"pack it with pixels=\(mean, std\)"):
        packed(images())
    with pytest.raises(InputError, match="int32 tensor; give a float32, float64 or uint8"):
        packed(images().int())


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (((0.5,), (0.5,)), "pixels has 1 channels, the network takes 3"),
        ((MEAN, (0.1, 0.0, 0.1)), "positive"),
        (0.5, "not a pair"),
        ((MEAN,), "not a pair"),
    ],
    ids=str,
)
def test_bad_pixels(pixels: object, message: str) -> None:
    with pytest.raises(PackError, match=message):
        mpt.pack(network(nn.ReLU()), images(1).float(), pixels=pixels)  # type: ignore[arg-type]
