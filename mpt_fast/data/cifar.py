"""CIFAR-10 and CIFAR-100 from the official archives: binary or Python, unpacked or .tar.gz.

Binary record: one label byte (CIFAR-100: coarse, then fine), then 3 x 32 x 32 bytes. Python files
are pickles of a dictionary; they are read by an unpickler that knows four names, all of them inert
stand-ins, so that no file can run code. Archives are read in memory and never extracted.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpt_fast.data.dataset import DataError, TensorSplit

__all__ = ["Source", "find_source", "load_source", "safe_unpickle"]

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_LARGEST_MEMBER = 1 << 29
_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """One of the four official archives."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    python: bool
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.test)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS = {
    "cifar10": (
        _Layout("cifar-10-binary.tar.gz", "cifar-10-batches-bin",
                tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), "batches.meta.txt", False,
                10),
        _Layout("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, ("test_batch",),
                "batches.meta", True, 10),
    ),
    "cifar100": (
        _Layout("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), ("test.bin",),
                "fine_label_names.txt", False, 100),
        _Layout("cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",), "meta", True,
                100),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A complete CIFAR copy: `path` is the folder of its files or the .tar.gz archive."""

    path: Path
    layout: _Layout


def find_source(name: str, folders: Sequence[Path]) -> Source | None:
    """The first copy of `name` ("cifar10" or "cifar100") in or just below one of `folders`."""
    for folder in folders:
        for layout in _LAYOUTS[name]:
            for place in (folder, folder / layout.folder):
                if all((place / file).is_file() for file in layout.files):
                    return Source(place, layout)
            for place in (folder, folder / layout.archive):
                if place.name == layout.archive and place.is_file():
                    return Source(place, layout)
    return None


def load_source(source: Source) -> tuple[TensorSplit, TensorSplit, tuple[str, ...]]:
    """(train, test, class names). Raises DataError naming the file that is wrong."""
    layout = source.layout
    contents = dict(_contents(source))
    for file in layout.files:
        if file not in contents:
            raise DataError(f"{source.path}: has no {file}; get the complete {layout.archive}")

    def split(files: Sequence[str]) -> TensorSplit:
        parse = _parse_python if layout.python else _parse_binary
        parts = [parse(contents[f], f"{source.path}/{f}", layout.classes) for f in files]
        if len({len(labels) for _, labels in parts}) > 1:
            raise DataError(
                f"{source.path}: its batch files differ in length; get {layout.archive} again"
            )
        images = torch.cat([images for images, _ in parts])
        return TensorSplit(images, torch.cat([labels for _, labels in parts]), layout.classes)

    return split(layout.train), split(layout.test), _class_names(source, contents)


def _contents(source: Source) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of the files that are needed, from the folder or the archive."""
    wanted = {*source.layout.files, source.layout.meta}
    path = source.path
    try:
        if path.is_dir():
            for name in sorted(wanted):
                if (path / name).is_file():
                    yield name, (path / name).read_bytes()
            return
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if not (member.isfile() and name in wanted):
                    continue
                if member.size > _LARGEST_MEMBER:
                    raise DataError(f"{path}: {name} claims {member.size} bytes; get it again")
                file = archive.extractfile(member)
                if file is not None:
                    yield name, file.read()
            while stream.read(1 << 20):  # gzip compares its checksum at the end only
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read ({error}); get this archive again") from None


def _parse_binary(content: bytes, name: str, classes: int) -> tuple[Tensor, Tensor]:
    head = 1 if classes == 10 else 2
    record = head + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{name}: {len(content)} bytes is not a whole number of {record}-byte records; "
            "get this file again"
        )
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    labels = rows[:, head - 1].to(torch.int64)
    _check_labels(labels, name, classes)
    return rows[:, head:].reshape(-1, *_SHAPE), labels


def _parse_python(content: bytes, name: str, classes: int) -> tuple[Tensor, Tensor]:
    table = safe_unpickle(content, name)
    key = "labels" if classes == 10 else "fine_labels"
    pixels, targets = _entry(table, "data"), _entry(table, key)
    if not isinstance(pixels, _Array) or not isinstance(targets, list):
        raise DataError(f"{name}: holds no pixel array with a list of {key}; get this file again")
    images = pixels.uint8_rows(name, _PIXELS)
    if not all(type(label) is int and 0 <= label < classes for label in targets):
        raise DataError(f"{name}: a label is not in [0, {classes}); get this file again")
    if len(targets) != len(images):
        raise DataError(
            f"{name}: {len(targets)} labels for {len(images)} images; get this file again"
        )
    return images.view(-1, *_SHAPE), torch.tensor(targets, dtype=torch.int64)


def _check_labels(labels: Tensor, name: str, classes: int) -> None:
    if int(labels.max()) >= classes:
        raise DataError(
            f"{name}: label {int(labels.max())} is not below {classes}; get this file again"
        )


def _class_names(source: Source, contents: dict[str, bytes]) -> tuple[str, ...]:
    layout = source.layout
    if layout.classes == 10:
        return _CIFAR10_CLASSES
    content = contents.get(layout.meta)
    if content is None:  # names are a convenience: the images are usable without them
        return tuple(f"class {i}" for i in range(layout.classes))
    name = f"{source.path}/{layout.meta}"
    if layout.python:
        listed = _entry(safe_unpickle(content, name), "fine_label_names")
        names = [_text(entry) for entry in listed] if isinstance(listed, list) else []
    else:
        names = content.decode("latin-1").split()
    if len(names) != layout.classes:
        raise DataError(f"{name}: lists {len(names)} classes, not {layout.classes}; get it again")
    return tuple(names)


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _entry(table: object, key: str) -> object:
    """table[key], whether the pickle was written with text or with Python 2 byte strings."""
    if not isinstance(table, dict):
        return None
    return table.get(key.encode(), table.get(key))


class _Dtype:
    """Stand-in for numpy.dtype: remembers the type code it was asked for."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about single bytes."""


class _Array:
    """Stand-in for numpy.ndarray: remembers the state it was given and checks it when asked."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def uint8_rows(self, name: str, columns: int) -> Tensor:
        """The array as uint8 [N, columns]; DataError if its state describes anything else."""
        match self.state:
            case (_, (int(rows), int(width)), _Dtype(code="u1"), False | 0, bytes(content)) if (
                width == columns and rows > 0 and len(content) == rows * columns
            ):
                return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(rows, columns)
        raise DataError(
            f"{name}: its pixels are not a C-ordered uint8 array [N, {columns}]; "
            "get this file again"
        )


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """What Python 3 writes for byte strings in old protocols; only its own encoding is known."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("byte string in an unexpected encoding")
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}") from None


def safe_unpickle(content: bytes, name: str) -> object:
    """The object in a CIFAR pickle. No name outside a fixed list of stand-ins can be reached.

    Raises DataError, naming the file `name`, on anything a CIFAR file does not contain.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise nearly every type there is
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name}: not a CIFAR pickle, refused without running it ({reason}); "
            "get this file again"
        ) from None
