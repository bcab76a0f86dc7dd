"""Two gloo processes hold the same masks, those of one process on the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("sparse_processes.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launcher, "2", str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["rigl", "set", "snfs", "snip"])
def test_ranks_agree_with_each_other_and_with_one_process(out: Path, name: str) -> None:
    """The averaged gradient ranks; the mean of two halves' magnitudes would grow other entries."""
    first, second, alone = (
        load_file(out / f"{who}-{name}.safetensors") for who in ("rank0", "rank1", "alone")
    )
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        if key.startswith("mask"):
            assert torch.equal(value, alone[key]), key
        else:
            torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-6)


def test_ticket_ranks_agree_with_each_other_and_with_one_process(out: Path) -> None:
    """At every step, with scores moved by the mean of the ranks' gradients."""
    first, second, alone = (
        load_file(out / f"{who}-ticket.safetensors") for who in ("rank0", "rank1", "alone")
    )
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        if key == "mask":
            assert torch.equal(value, alone[key])
            assert (value[1:] != value[:-1]).any(1).all()  # it moves at every step
        else:
            torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-5)


def test_ticket_ranks_agree_in_bf16(out: Path) -> None:
    first, second = (load_file(out / f"rank{rank}-ticket-bf16.safetensors") for rank in (0, 1))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    other = load_file(out / "rank0-ticket.safetensors")
    assert not torch.equal(first["scores.0"], other["scores.0"])  # it was computed in bf16


def test_gradients_that_were_not_averaged_are_noticed(out: Path) -> None:
    for rank in (0, 1):
        said = json.loads((out / f"rank{rank}.json").read_text())["said"]
        assert "the processes hold different masks; average the gradients" in said
