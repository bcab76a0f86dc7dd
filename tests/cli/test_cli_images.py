"""Image files as network input."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpt_fast.cli import images
from mpt_fast.runtime import Pixels

GREY = (1, 4, 6)
COLOUR = (3, 4, 6)
RNG = np.random.default_rng(0)


def read(path: Path, shape: tuple[int, int, int]) -> list[tuple[str, np.ndarray]]:
    return list(images.read_images(path, shape))


def write_idx(path: Path, pixels: np.ndarray, header: bytes | None = None) -> Path:
    content = (header or b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape)) + pixels.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_grey_picture_of_the_right_size_is_read_exactly(tmp_path: Path, kind: str) -> None:
    pixels = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{kind}")
    [(name, image)] = read(tmp_path / f"a.{kind}", GREY)
    assert name == f"a.{kind}"
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels[None])


def test_colour_picture_is_channels_first(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [(_, image)] = read(tmp_path / "a.png", COLOUR)
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


def test_pictures_are_converted_and_resized(tmp_path: Path) -> None:
    pixels = np.full((30, 50, 3), 51, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "big.jpg")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    [(_, grey)] = read(tmp_path / "big.jpg", GREY)
    [(_, colour)] = read(tmp_path / "grey.png", COLOUR)
    np.testing.assert_allclose(grey, np.full(GREY, 51), atol=1)  # JPEG may round one level
    np.testing.assert_array_equal(colour, np.full(COLOUR, 51, np.uint8))


@pytest.mark.parametrize(
    ("array_shape", "network", "count"),
    [
        ((4, 6), GREY, 1),
        ((5, 4, 6), GREY, 5),
        ((1, 4, 6), GREY, 1),
        ((5, 1, 4, 6), GREY, 5),
        ((4, 6, 1), GREY, 1),
        ((3, 4, 6), COLOUR, 1),
        ((4, 6, 3), COLOUR, 1),
        ((2, 4, 6, 3), COLOUR, 2),
        ((2, 3, 4, 6), COLOUR, 2),
    ],
)
def test_arrays_of_every_layout(
    tmp_path: Path, array_shape: tuple[int, ...], network: tuple[int, int, int], count: int
) -> None:
    array = RNG.random(array_shape, dtype=np.float32)
    np.save(tmp_path / "a.npy", array)
    found = read(tmp_path / "a.npy", network)
    assert len(found) == count
    assert [name for name, _ in found] == (
        ["a.npy"] if count == 1 else [f"a.npy[{index}]" for index in range(count)]
    )
    last = array if count == 1 else array[-1]
    if array_shape[-1] in (1, 3) and array_shape[-3:-1] == network[1:]:
        last = np.moveaxis(last, -1, 0)
    np.testing.assert_array_equal(found[-1][1], last.reshape(network))


def test_bytes_and_shares_of_one_mean_the_same(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "floats.npy", pixels / 255)
    [(_, a)], [(_, b)] = read(tmp_path / "bytes.npy", GREY), read(tmp_path / "floats.npy", GREY)
    for pixels_of in (None, Pixels((0.3,), (0.7,))):
        bytes_in, floats_in = (images.network_input([x], pixels_of) for x in (a, b))
        if pixels_of is not None:
            bytes_in = pixels_of.normalize(bytes_in)
        np.testing.assert_allclose(bytes_in, floats_in, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte", "t-images-idx3-ubyte.gz"])
def test_idx_images(tmp_path: Path, name: str) -> None:
    pixels = RNG.integers(0, 256, (3, 4, 6), dtype=np.uint8)
    found = read(write_idx(tmp_path / name, pixels), GREY)
    assert [label for label, _ in found] == [f"{name}[{index}]" for index in range(3)]
    np.testing.assert_array_equal(np.stack([image for _, image in found])[:, 0], pixels)


def bad(tmp_path: Path, name: str) -> Path:
    """A broken file of each kind, by its name."""
    path = tmp_path / name
    pixels = np.zeros((2, 4, 6), np.uint8)
    two_images = b"\0\0\x08\x03" + struct.pack(">3I", 2, 4, 6)
    makers = {
        "text.txt": lambda: path.write_text("x"),
        "broken.png": lambda: path.write_bytes(b"\x89PNG\r\n\x1a\nnothing"),
        "broken.npy": lambda: path.write_bytes(b"not an array"),
        "objects.npy": lambda: np.save(path, np.array([{}], dtype=object)),
        "shape.npy": lambda: np.save(path, np.zeros((7, 7), np.uint8)),
        "int.npy": lambda: np.save(path, np.zeros((4, 6), np.int64)),
        "range.npy": lambda: np.save(path, np.full((4, 6), 2.0)),
        "nan.npy": lambda: np.save(path, np.full((4, 6), np.nan)),
        "short-idx3-ubyte": lambda: write_idx(path, pixels[:1], two_images),
        "labels-idx1-ubyte": lambda: write_idx(path, pixels, b"\0\0\x08\x01" + bytes(12)),
        "size-idx3-ubyte": lambda: write_idx(path, np.zeros((1, 5, 5), np.uint8)),
        "cut-idx3-ubyte.gz": lambda: path.write_bytes(gzip.compress(b"\0\0\x08\x03" * 9)[:-9]),
        "huge-idx3-ubyte": lambda: write_idx(path, pixels, b"\0\0\x08\x03" + b"\xff" * 12),
        "folder": lambda: path.mkdir(),
    }  # fmt: skip
    makers[name]()
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.txt", "unknown kind of image file"),
        ("broken.png", "not a readable picture"),
        ("broken.npy", "not a readable .npy array"),
        ("objects.npy", "not a readable .npy array"),
        ("shape.npy", r"shape \(7, 7\) does not hold images of 1 x 4 x 6"),
        ("int.npy", "pixels of int64"),
        ("range.npy", "outside 0..1"),
        ("nan.npy", "outside 0..1"),
        ("short-idx3-ubyte", "promises 48 bytes"),
        ("labels-idx1-ubyte", "not an IDX file of images"),
        ("size-idx3-ubyte", "images of 1 x 5 x 5, the network takes 1 x 4 x 6"),
        ("cut-idx3-ubyte.gz", "cannot be read"),
        ("huge-idx3-ubyte", "promises"),
        ("folder", "is a folder"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    path = bad(tmp_path, name)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, GREY)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.png", GREY)


def test_pictures_need_one_or_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="takes 2 channels"):
        read(tmp_path / "a.png", (2, 4, 6))


def test_network_input_keeps_bytes_and_inverts_both_kinds() -> None:
    pixels = Pixels((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    batch = RNG.integers(0, 256, (2, 3, 4, 6), dtype=np.uint8)
    kept = images.network_input(list(batch), pixels)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, batch)
    np.testing.assert_array_equal(images.network_input(list(batch), pixels, True), 255 - batch)
    mixed = [batch[0], (batch[1] / 255).astype(np.float32)]
    for invert in (False, True):
        got = images.network_input(mixed, pixels, invert)
        expected = pixels.normalize(255 - batch if invert else batch)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        images.network_input(list(batch), None), batch.astype(np.float32) / 255
    )


def test_softmax_is_a_distribution_even_for_large_logits() -> None:
    chances = images.softmax(np.array([[1000.0, 1000.0, -1000.0], [0.0, np.log(3), -np.inf]]))
    np.testing.assert_allclose(chances, [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]], rtol=1e-12)
