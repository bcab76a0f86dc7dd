"""MNIST's IDX files, plain or gzip-compressed.

Format (big-endian): two zero bytes, a type byte (0x08: unsigned byte), the number of dimensions,
each dimension as a 32-bit count, then the data in C order and nothing after it.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mpt_fast.data.dataset import DataError, TensorSplit

__all__ = ["idx_files", "read_idx", "read_split"]

_UNSIGNED_BYTE = 0x08
_LARGEST = 1 << 31
_KINDS = {"images": ("idx3", 3), "labels": ("idx1", 1)}
_PREFIX = {"train": "train", "test": "t10k"}


def _file(folder: Path, split: str, kind: str) -> Path | None:
    code, _ = _KINDS[kind]
    stem = f"{_PREFIX[split]}-{kind}"
    for name in (f"{stem}-{code}-ubyte", f"{stem}.{code}-ubyte"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """The IDX files of `folder` by (split, kind); fewer than four if some are missing."""
    found = {(s, k): _file(folder, s, k) for s in _PREFIX for k in _KINDS}
    return {key: path for key, path in found.items() if path is not None}


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The unsigned bytes of an IDX file with the given number of dimensions, as uint8.

    Raises DataError on a wrong magic number, a truncated file, or bytes after the end.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get this file again") from None


def _read(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int) -> Tensor:
    header = file.read(4 + 4 * dimensions)
    expected = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if header[:4] != expected:
        raise DataError(
            f"{path}: not an IDX file of {dimensions} dimensions "
            f"(magic {header[:4].hex() or 'none'}, expected {expected.hex()}); get this file again"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: ends inside its header; get this file again")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    count = math.prod(shape)
    if count > _LARGEST:
        raise DataError(f"{path}: claims {count} bytes of data; get this file again")
    content = file.read(count + 1)  # one more shows what should not be there
    if len(content) != count:
        held = f"only {len(content)}" if len(content) < count else "more than that"
        raise DataError(
            f"{path}: its header promises {count} bytes and it holds {held}; get this file again"
        )
    if count == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def read_split(images: Path, labels: Path, classes: int) -> TensorSplit:
    """Images uint8 [N, 1, H, W] and labels int64 [N] from a pair of IDX files."""
    pixels = read_idx(images, 3)
    targets = read_idx(labels, 1)
    if len(pixels) != len(targets):
        raise DataError(
            f"{labels}: {len(targets)} labels for the {len(pixels)} images of {images.name}; "
            "get both files again"
        )
    if len(targets) and int(targets.max()) >= classes:
        raise DataError(
            f"{labels}: label {int(targets.max())} is not below {classes}; get this file again"
        )
    return TensorSplit(pixels.unsqueeze(1), targets.to(torch.int64), classes)
