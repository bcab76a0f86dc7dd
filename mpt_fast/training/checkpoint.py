"""Checkpoints that are either whole or not there: one safetensors file with its state as JSON.

The state and a SHA-256 of everything lie in the file's metadata, so that a truncated or altered
file is noticed before any of it is used. Nothing in the file can run code.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["Checkpoint", "CheckpointError", "atomic_write", "read", "remove_leftovers", "write"]

_FORMAT = "mpt_fast checkpoint"
_VERSION = 1
_LEFTOVER = ".partial"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` by name, on the CPU; `state` is anything JSON holds."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}{_LEFTOVER}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed `atomic_write` left behind."""
    for partial in folder.glob(f".*{_LEFTOVER}"):
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. Tensors may be of any device and memory format."""
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(dict(state), allow_nan=False)
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "state": text,
        "sha256": _digest(stored, text),
    }
    atomic_write(path, save(stored, metadata))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError if it is missing, damaged or of another kind."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train first or name another folder")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged ({reason}); use another checkpoint") from None
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a training checkpoint of mpt_fast; name one")
    if metadata.get("version") != str(_VERSION):
        raise CheckpointError(
            f"{path}: version {metadata.get('version')}, and this mpt_fast reads {_VERSION}; "
            "use the mpt_fast that wrote it"
        )
    text = metadata.get("state", "")
    if metadata.get("sha256") != _digest(tensors, text):
        raise CheckpointError(f"{path}: damaged (checksum differs); use another checkpoint")
    return Checkpoint(tensors, json.loads(text))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{list(value.shape)}:".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
