"""Text files as windows of bytes."""

from pathlib import Path

import pytest
import torch

from mpt_fast.data.dataset import DataError
from mpt_fast.data.text import TextBatches, load_text


def test_the_end_of_the_file_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(bytes(range(200)) + "é".encode())
    train, test = load_text(file, 0.25)
    assert torch.cat([train, test]).tolist() == [*range(200), 0xC3, 0xA9]
    assert len(test) == 50
    assert train.dtype == torch.int64


def test_batches_are_windows_and_follow_seed_and_step() -> None:
    batches = TextBatches(torch.arange(100), 5, 7, seed=3)
    inputs, targets = batches.step(4)
    assert inputs.shape == targets.shape == (5, 7)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, TextBatches(torch.arange(100), 5, 7, seed=3).step(4)[0])
    assert not torch.equal(inputs, batches.step(5)[0])
    assert not torch.equal(inputs, TextBatches(torch.arange(100), 5, 7, seed=4).step(4)[0])


def test_every_window_can_be_drawn_and_none_beyond_the_end() -> None:
    batches = TextBatches(torch.arange(10), 64, 7)
    seen = {int(x) for t in range(4) for x in batches.step(t)[0][:, 0]}
    assert seen == {0, 1, 2}


def test_whole_covers_the_text_once() -> None:
    got = list(TextBatches(torch.arange(32), 2, 10).whole())
    assert [len(x) for x, _ in got] == [2, 1]
    assert torch.cat([x for x, _ in got]).flatten().tolist() == list(range(30))
    assert torch.cat([y for _, y in got]).flatten().tolist() == list(range(1, 31))


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: cannot be read \(No such file"):
        load_text(tmp_path / "nothing")
    (tmp_path / "short").write_bytes(b"ab")
    with pytest.raises(DataError, match="2 bytes are too few"):
        load_text(tmp_path / "short")
    with pytest.raises(DataError, match="held_out must lie in"):
        load_text(tmp_path / "short", 1.0)
    with pytest.raises(DataError, match="no window of 9"):
        TextBatches(torch.arange(9), 1, 9)
    with pytest.raises(DataError, match="at least 1"):
        TextBatches(torch.arange(9), 0, 2)
