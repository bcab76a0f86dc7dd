"""CIFAR archives in all four official forms; no pickle can run code."""

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mpt_fast import data
from mpt_fast.data.cifar import safe_unpickle

RECORDS = 3


def python2_pickle(table: dict[str, object]) -> bytes:
    """A protocol-2 pickle as Python 2's cPickle wrote CIFAR: byte strings, _reconstruct, BUILD."""

    def emit(value: object) -> bytes:
        match value:
            case str():
                return b"U" + bytes((len(value),)) + value.encode()
            case int():
                return b"K" + bytes((value,))
            case list():
                return b"](" + b"".join(emit(v) for v in value) + b"e"
            case np.ndarray():
                rows, columns = value.shape
                content = value.astype(np.uint8).tobytes()
                return (
                    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt R"
                    b"(K\x01".replace(b" ", b"")
                    + b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
                    + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
                    + b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(content)) + content
                    + b"tb"
                )  # fmt: skip
        raise AssertionError(value)

    return b"\x80\x02}(" + b"".join(emit(k) + emit(v) for k, v in table.items()) + b"u."


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (RECORDS, 3072)).astype(np.uint8)


def labels(seed: int, classes: int) -> list[int]:
    return np.random.default_rng(seed + 100).integers(0, classes, RECORDS).tolist()


def names(name: str, python: bool) -> tuple[list[str], str, str]:
    """(files in the order of seeds, the last is the test file), folder, archive."""
    if name == "cifar10":
        ending = "" if python else ".bin"
        files = [f"data_batch_{i}{ending}" for i in range(1, 6)] + [f"test_batch{ending}"]
        kind = "py" if python else "bin"
        return (
            files,
            f"cifar-10-batches-{kind}",
            f"cifar-10-{'python' if python else 'binary'}.tar.gz",
        )
    kind = "python" if python else "binary"
    ending = "" if python else ".bin"
    return [f"train{ending}", f"test{ending}"], f"cifar-100-{kind}", f"cifar-100-{kind}.tar.gz"


def contents(name: str, python: bool) -> dict[str, bytes]:
    files, _, _ = names(name, python)
    classes = 10 if name == "cifar10" else 100
    made: dict[str, bytes] = {}
    for seed, file in enumerate(files):
        image, label = pixels(seed), labels(seed, classes)
        if python:
            key = "labels" if classes == 10 else "fine_labels"
            table: dict[str, object] = {"batch_label": "x", key: label, "data": image}
            if classes == 100:
                table["coarse_labels"] = [0] * RECORDS
            made[file] = python2_pickle(table)
        else:
            head = [[]] if classes == 10 else [[7]]
            made[file] = b"".join(
                bytes([*head[0], label[i]]) + image[i].tobytes() for i in range(RECORDS)
            )
    if classes == 100:
        fine = [f"fine{i}" for i in range(100)]
        if python:
            made["meta"] = python2_pickle({"fine_label_names": fine})
        else:
            made["fine_label_names.txt"] = ("\n".join(fine) + "\n").encode()
    return made


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)


def write_archive(path: Path, inside: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_loads_what_was_written(tmp_path: Path, name: str, python: bool, archived: bool) -> None:
    files, folder, archive = names(name, python)
    if archived:
        write_archive(tmp_path / archive, folder, contents(name, python))
    else:
        write_folder(tmp_path / folder, contents(name, python))
    ds = data.load(name, tmp_path)
    classes = 10 if name == "cifar10" else 100
    seeds = range(len(files))
    assert isinstance(ds.train, data.TensorSplit)
    assert isinstance(ds.test, data.TensorSplit)
    train = np.concatenate([pixels(s) for s in seeds[:-1]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(ds.train.images.numpy(), train)
    assert ds.train.labels.tolist() == [v for s in seeds[:-1] for v in labels(s, classes)]
    assert np.array_equal(ds.test.images.numpy(), pixels(seeds[-1]).reshape(-1, 3, 32, 32))
    assert ds.test.labels.tolist() == labels(seeds[-1], classes)
    assert ds.num_classes == classes
    assert ds.classes[3] == ("cat" if classes == 10 else "fine3")
    assert ds.image_shape == (3, 32, 32)


@pytest.mark.parametrize("protocol", range(5))  # 5 writes arrays another way, after CIFAR's time
def test_reads_resaved_pickles_of_any_protocol(protocol: int) -> None:
    table = {b"data": pixels(0), b"labels": [1, 2, 3]}
    loaded = safe_unpickle(pickle.dumps(table, protocol), "batch")
    assert isinstance(loaded, dict)
    assert loaded[b"labels"] == [1, 2, 3]
    rows = loaded[b"data"].uint8_rows("batch", 3072)
    assert torch.equal(rows, torch.from_numpy(pixels(0)))


class Touch:
    """Pickles to a call of os.mkdir: harmless, and it shows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    folder = tmp_path / "cifar-10-batches-py"
    files = contents("cifar10", True)
    files["data_batch_2"] = pickle.dumps({b"data": Touch(mark), b"labels": [0]}, protocol)
    write_folder(folder, files)
    with pytest.raises(data.DataError, match=r"data_batch_2.*refused without running.*mkdir"):
        data.load("cifar10", tmp_path)
    assert not mark.exists()
    pickle.loads(files["data_batch_2"])
    assert mark.is_dir(), "the file must be one that an ordinary unpickler would have run"


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\nfromstring\n(S'1'\ntR.",
        b"cnumpy\nsave\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        b"(ios\nsystem\nS'id'\n.",
        b"P1\n.",
    ],
)
def test_no_other_name_can_be_reached(content: bytes) -> None:
    with pytest.raises(data.DataError, match="refused without running it"):
        safe_unpickle(content, "batch")


@pytest.mark.parametrize("cut", [0, 1, 40, 4000])
def test_truncated_pickle_is_named(cut: int) -> None:
    content = python2_pickle({"data": pixels(0), "labels": [1, 2, 3]})
    with pytest.raises(data.DataError, match="batch: not a CIFAR pickle"):
        safe_unpickle(content[:cut], "batch")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1]}, "2 labels for 3 images"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 10]}, r"not in \[0, 10\)"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, True]}, r"not in \[0, 10\)"),
        ({"data": np.zeros((3, 3071), np.uint8), "labels": [0, 1, 2]}, "uint8 array"),
        ({"data": np.zeros((3, 3072), np.float32), "labels": [0, 1, 2]}, "uint8 array"),
        ({"data": np.zeros((3, 3072), object), "labels": [0, 1, 2]}, "uint8 array"),
        ({"data": np.zeros((3072, 3), np.uint8).T, "labels": [0, 1, 2]}, "uint8 array"),
        ({"labels": [0, 1, 2]}, "holds no pixel array"),
        ([1, 2], "holds no pixel array"),
    ],
)  # fmt: skip
def test_wrong_python_batches_are_named(tmp_path: Path, table: object, expected: str) -> None:
    files = contents("cifar10", True)
    files["data_batch_4"] = pickle.dumps(table, 2)
    write_folder(tmp_path, files)
    with pytest.raises(data.DataError, match=rf"data_batch_4: .*{expected}"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "0 bytes is not a whole number of 3073-byte records"),
        (b"\x00" * 3072, "3072 bytes is not a whole number"),
        (b"\x0a" + b"\x00" * 3072, "label 10 is not below 10"),
    ],
)
def test_wrong_binary_batches_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    files = contents("cifar10", False)
    files["data_batch_3.bin"] = content
    write_folder(tmp_path, files)
    with pytest.raises(data.DataError, match=rf"data_batch_3\.bin: {expected}"):
        data.load("cifar10", tmp_path)


def test_batches_cut_at_a_record_are_noticed(tmp_path: Path) -> None:
    files = contents("cifar10", False)
    files["data_batch_3.bin"] = files["data_batch_3.bin"][:3073]
    write_folder(tmp_path, files)
    with pytest.raises(data.DataError, match="differ in length"):
        data.load("cifar10", tmp_path)


def test_wrong_number_of_class_names_is_named(tmp_path: Path) -> None:
    files = contents("cifar100", False) | {"fine_label_names.txt": b"apple\n"}
    write_folder(tmp_path, files)
    with pytest.raises(data.DataError, match=r"fine_label_names\.txt: lists 1 classes"):
        data.load("cifar100", tmp_path)


@pytest.mark.parametrize("damage", ["empty", "start", "end", "altered"])
def test_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    _, folder, archive = names("cifar10", False)
    path = tmp_path / archive
    write_archive(path, folder, contents("cifar10", False))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= damage == "altered"
    parts = {"empty": 0, "start": 100, "end": len(whole) - 30, "altered": len(whole)}
    path.write_bytes(whole[: parts[damage]])
    with pytest.raises(data.DataError, match=r"cifar-10-binary\.tar\.gz: "):
        data.load("cifar10", tmp_path)


def test_incomplete_archive_is_named(tmp_path: Path) -> None:
    _, folder, archive = names("cifar10", False)
    files = contents("cifar10", False)
    del files["test_batch.bin"]
    write_archive(tmp_path / archive, folder, files)
    with pytest.raises(data.DataError, match=r"has no test_batch\.bin"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_says_where_and_how(tmp_path: Path, name: str) -> None:
    assert not data.available(name, tmp_path)
    with pytest.raises(data.MissingDataError, match=r"looked in .*; download https://.*tar\.gz"):
        data.load(name, tmp_path)
