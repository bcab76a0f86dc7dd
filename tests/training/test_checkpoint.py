"""Checkpoint files: what goes in comes out, and nothing else ever does."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mpt_fast.training import CheckpointError, checkpoint

STATE = {"epoch": 3, "best": 0.1 + 0.2, "names": ["a", "b"], "tiny": 5e-324}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    four = torch.randn(3, 4, 5, 6, generator=generator)
    return {
        "float": torch.randn(7, generator=generator),
        "last": four.to(memory_format=torch.channels_last),
        "half": four.to(torch.bfloat16),
        "count": torch.tensor(2**60),
        "empty": torch.empty(0, 3),
        "double": torch.tensor([1 / 3, float("inf")], dtype=torch.float64),
    }


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, tensors(), STATE)
    found = checkpoint.read(path)
    assert found.state == STATE
    assert found.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.arange(6.0)}, {"epoch": 1})
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x11
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: ") as caught:
            checkpoint.read(path)
        assert "\n" not in str(caught.value)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: damaged"):
            checkpoint.read(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a training checkpoint of mpt_fast"):
        checkpoint.read(path)
    save_file({"a": torch.zeros(2)}, path, {"format": "mpt_fast checkpoint", "version": "2"})
    with pytest.raises(CheckpointError, match="version 2, and this mpt_fast reads 1"):
        checkpoint.read(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "x.safetensors"
    torch.save(Touch(), path)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()


def test_nan_in_the_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        checkpoint.write(tmp_path / "x.safetensors", {}, {"best": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    checkpoint.atomic_write(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    checkpoint.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["x"]


def test_the_digest_sees_order_of_values() -> None:
    first = checkpoint._digest({"a": torch.tensor([1, 2])}, "")
    assert first != checkpoint._digest({"a": torch.tensor([2, 1])}, "")
    assert first != checkpoint._digest({"b": torch.tensor([1, 2])}, "")
    assert first != checkpoint._digest({"a": torch.tensor([[1, 2]])}, "")
    assert first != checkpoint._digest({"a": torch.tensor([1, 2])}, "x")
    assert first == checkpoint._digest({"a": torch.from_numpy(np.array([1, 2]))}, "")
