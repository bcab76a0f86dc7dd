"""What a packed file carries along for its user."""

from pathlib import Path
from typing import Any

import pytest
import torch

import mpt_fast as mpt
from mpt_fast import runtime

ABOUT = {"classes": ["ä", 'b"sha256":"'], "mean": [0.5], "nested": {"a": [1, None, True]}}


@pytest.fixture(scope="module")
def packed() -> Any:
    return mpt.pack(torch.nn.Linear(3, 2), torch.zeros(1, 3), backend="reference")


def test_metadata_comes_back_and_is_counted(packed: Any, tmp_path: Path) -> None:
    plain, about = packed.save(tmp_path / "plain.mpt"), packed.save(tmp_path / "t.mpt", ABOUT)
    assert runtime.read_program(tmp_path / "t.mpt").metadata == ABOUT
    assert runtime.read_program(tmp_path / "plain.mpt").metadata == {}
    assert mpt.load(tmp_path / "t.mpt", backend="reference").metadata == ABOUT
    assert plain.parts["metadata"] == 0 < about.parts["metadata"]
    assert sum(about.parts.values()) == about.file_bytes == (tmp_path / "t.mpt").stat().st_size


def test_saving_a_loaded_file_keeps_its_metadata(packed: Any, tmp_path: Path) -> None:
    packed.save(tmp_path / "a.mpt", ABOUT)
    mpt.load(tmp_path / "a.mpt", backend="reference").save(tmp_path / "b.mpt")
    assert (tmp_path / "b.mpt").read_bytes() == (tmp_path / "a.mpt").read_bytes()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": object()}, "not plain JSON"),
        ({"a": float("nan")}, "not plain JSON"),
        ({"a": (1, 2)}, "lists, not tuples"),
        ({1: "a"}, "keys must be texts"),
        ({"a": "x" * (1 << 20)}, "at most 1048576 fit"),
    ],
)
def test_metadata_that_would_not_come_back_is_refused(
    packed: Any, tmp_path: Path, metadata: Any, message: str
) -> None:
    with pytest.raises(runtime.FileError, match=message):
        packed.save(tmp_path / "t.mpt", metadata)
    assert list(tmp_path.iterdir()) == []
