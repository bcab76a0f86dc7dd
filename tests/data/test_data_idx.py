"""IDX files: real format in, tensors out; every damage is named."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mpt_fast import data
from mpt_fast.data.idx import read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_family(
    folder: Path, *, packed: bool = True, train: int = 5, test: int = 3
) -> dict[str, np.ndarray]:
    """The four files of an MNIST-like data set; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for prefix, count in (("train", train), ("t10k", test)):
        written[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 6, 4))
        written[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, (count,))
    for name, array in written.items():
        content = idx_bytes(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return written


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_loads_what_was_written(tmp_path: Path, packed: bool, name: str) -> None:
    written = write_family(tmp_path, packed=packed)
    ds = data.load(name, tmp_path)
    assert ds.image_shape == (1, 6, 4)
    assert ds.num_classes == 10
    assert isinstance(ds.train, data.TensorSplit)
    assert isinstance(ds.test, data.TensorSplit)
    assert ds.train.images.dtype == torch.uint8
    assert np.array_equal(ds.train.images[:, 0].numpy(), written["train-images-idx3-ubyte"])
    assert np.array_equal(ds.train.labels.numpy(), written["train-labels-idx1-ubyte"])
    assert np.array_equal(ds.test.images[:, 0].numpy(), written["t10k-images-idx3-ubyte"])
    assert np.array_equal(ds.test.labels.numpy(), written["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("below", ["mnist", "MNIST/raw"])
def test_finds_the_usual_subfolders(tmp_path: Path, below: str) -> None:
    assert not data.available("mnist", tmp_path)
    write_family(tmp_path / below)
    assert data.available("mnist", tmp_path)
    assert len(data.load("mnist", tmp_path).train) == 5


def test_missing_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(data.MissingDataError) as caught:
        data.load("fashion-mnist", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "apt install dataset-fashion-mnist" in message


def test_one_missing_file_is_named(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.MissingDataError, match="has no test labels file"):
        data.load("mnist", tmp_path)


def damage(content: bytes, kind: str) -> bytes:
    match kind:
        case "empty":
            return b""
        case "magic":
            return b"\x00\x00\x09" + content[3:]
        case "dimensions":
            return b"\x00\x00\x08\x01" + content[4:]
        case "header":
            return content[:9]
        case "short":
            return content[:-1]
        case "long":
            return content + b"\x00"
        case "huge":
            return content[:4] + struct.pack(">3I", 2**31, 2, 2) + content[16:]
    raise AssertionError(kind)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("empty", "magic none"),
        ("magic", "not an IDX file of 3 dimensions"),
        ("dimensions", "not an IDX file of 3 dimensions"),
        ("header", "ends inside its header"),
        ("short", "holds only 119"),
        ("long", "more than that"),
        ("huge", "claims"),
    ],
)
def test_damage_is_named(tmp_path: Path, kind: str, expected: str, packed: bool) -> None:
    content = damage(idx_bytes(np.zeros((5, 6, 4))), kind)
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(data.DataError, match=expected) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 5, 30])
def test_truncated_gzip_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.arange(120).reshape(5, 6, 4)))[:cut])
    with pytest.raises(data.DataError, match=r"x\.gz"):
        read_idx(path, 3)


def test_not_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(data.DataError, match="cannot be read"):
        read_idx(path, 3)


def test_label_count_and_range_are_checked(tmp_path: Path) -> None:
    write_family(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(4)))
    with pytest.raises(data.DataError, match="4 labels for the 5 images"):
        data.load("mnist", tmp_path)
    labels.write_bytes(idx_bytes(np.full(5, 10)))
    with pytest.raises(data.DataError, match="label 10 is not below 10"):
        data.load("mnist", tmp_path)


def test_empty_split_is_refused(tmp_path: Path) -> None:
    write_family(tmp_path, test=0)
    with pytest.raises(data.DataError, match="the test split is empty"):
        data.load("mnist", tmp_path)
