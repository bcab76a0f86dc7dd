"""8-bit images: what a pixel stands for, in the file, the engine and the checks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from runtime_cases import every_step, forge

from mpt_fast import runtime
from mpt_fast.data.dataset import normalize
from mpt_fast.kernels import cpu
from mpt_fast.runtime import FileError, InputError, PixelError, Pixels, ProgramError

PIXELS = Pixels((0.491, 0.482), (0.247, 0.262))
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 2, 6, 6), dtype=np.uint8)
needs_engine = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")


def test_the_table_is_what_networks_are_trained_on() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, std = (0.5071, 0.0, 0.25), (0.2673, 1 / 255, 3.0)
    expected = normalize(every, mean, std)
    pixels = Pixels(mean, std)
    assert np.array_equal(pixels.table(), expected.reshape(3, 256).numpy())
    assert np.array_equal(pixels.normalize(every.numpy()), expected.numpy())
    exact = (np.arange(256) / 255 - 0.5071) / 0.2673
    np.testing.assert_allclose(pixels.table()[0], exact, rtol=1e-5, atol=1e-6)


def test_shares_of_one_are_normalised_alike() -> None:
    shares = (IMAGES / 255).astype(np.float32)
    np.testing.assert_allclose(
        PIXELS.normalize(shares), PIXELS.normalize(IMAGES), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5), "1 means and 2 standard deviations"),
        ((), (), "0 means"),
        ((float("nan"),), (1.0,), "finite"),
        ((0.5,), (0.0,), "positive"),
        ((0.5,), (-1.0,), "positive"),
        ((0.5,), (float("inf"),), "positive"),
        ((0.5,), (1e-42,), "infinite"),
        ((1e300,), (1.0,), "infinite"),
        (0.5, 1.0, "one number per channel"),
        (("a",), (1.0,), "one number per channel"),
    ],
)
def test_bad_normalisations(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(PixelError, match=message):
        Pixels(mean, std)


def test_pixels_have_the_channels_of_the_network() -> None:
    with pytest.raises(ProgramError, match="pixels are given for 3 channels, the network takes 2"):
        replace(every_step(), pixels=Pixels((0.5,) * 3, (0.5,) * 3))


@needs_engine
@pytest.mark.parametrize("isa", cpu.engine().isas() if cpu.available() else [])
def test_8_bit_images_equal_normalised_ones(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.engine, "ISA", isa)
    model = runtime.Model(replace(every_step(), pixels=PIXELS))
    normalised = PIXELS.normalize(IMAGES)
    for count in (1, 15, 64, 70):
        expected = model(normalised[:count])
        np.testing.assert_array_equal(model(IMAGES[:count]), expected)
    assert model(IMAGES[:0]).shape == (0, 3)


@needs_engine
def test_8_bit_images_need_a_normalisation(tmp_path: Path) -> None:
    model = runtime.Model(every_step())
    with pytest.raises(InputError, match="packed without its pixel normalisation"):
        model(IMAGES)
    with pytest.raises(InputError, match="int16 array; give a float32, float64 or uint8"):
        model(IMAGES.astype(np.int16))
    path = tmp_path / "net.mpt"
    runtime.write_program(replace(every_step(), pixels=PIXELS), path)
    loaded = runtime.load(path)
    assert loaded.pixels == PIXELS
    np.testing.assert_array_equal(loaded(IMAGES), model(PIXELS.normalize(IMAGES)))


def test_a_file_without_pixels_has_none(tmp_path: Path) -> None:
    runtime.write_program(every_step(), tmp_path / "net.mpt")
    assert runtime.read_program(tmp_path / "net.mpt").pixels is None


GOOD = {"mean": [0.5, 0.25], "std": [0.5, 1.0]}
BAD = [
    None,
    [],
    {"mean": [0.5, 0.5]},
    {**GOOD, "gamma": [1.0]},
    {**GOOD, "std": [0.5, 0.0]},
    {**GOOD, "std": [0.5]},
    {**GOOD, "std": [0.5, 1]},
    {**GOOD, "mean": [True, 0.5]},
    {**GOOD, "mean": 0.5},
    {**GOOD, "mean": [1e308, 0.5]},
    {"mean": [0.5] * 3, "std": [0.5] * 3},
]


@pytest.mark.parametrize("pixels", BAD, ids=str)
def test_forged_pixels_are_refused(pixels: object, tmp_path: Path) -> None:
    path = tmp_path / "net.mpt"

    def edit(value: object) -> Callable[[dict[str, Any], dict[str, NDArray]], None]:
        return lambda program, tensors: program.update(pixels=value)

    forge(path, edit(GOOD))
    assert runtime.read_program(path).pixels == Pixels((0.5, 0.25), (0.5, 1.0))
    forge(path, edit(pixels))
    with pytest.raises(FileError, match="pixel") as error:
        runtime.read_program(path)
    assert "\n" not in str(error.value)


@needs_engine
def test_the_engine_checks_its_table() -> None:
    program = cpu.engine().Program(2, 3, 4)
    program.finish(0)
    image = np.zeros((1, 2, 3, 4), np.uint8)
    with pytest.raises(ValueError, match="no pixel table"):
        program.run(image)
    for table in (np.zeros((3, 256), np.float32), np.zeros((2, 256)), np.zeros(512, np.float32)):
        with pytest.raises(ValueError, match="table"):
            program.set_pixels(table)
    table = np.arange(512, dtype=np.float32).reshape(2, 256)
    program.set_pixels(table)
    with pytest.raises(ValueError, match="already set"):
        program.set_pixels(table)
    image[0, 1, 2] = (0, 9, 255, 128)
    result = program.run(image)
    np.testing.assert_array_equal(result[0, 1, 2], np.array([256, 265, 511, 384], np.float32))
    np.testing.assert_array_equal(result[0, 0], np.zeros((3, 4), np.float32))
