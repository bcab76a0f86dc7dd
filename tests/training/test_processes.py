"""Two processes under torchrun (gloo, localhost) train one network: same masks on every rank."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mpt_fast.training import Recipe, RecipeError, checkpoint, train

SCRIPT = Path(__file__).with_name("run_processes.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that two processes filled, and what they showed."""
    out = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launcher, "2", str(SCRIPT), str(out)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def facts(out: Path, rank: int) -> dict[str, Any]:
    return json.loads((out / f"rank{rank}.json").read_text())


@pytest.mark.parametrize("run", ["float", "binary", "resumed"])
def test_every_rank_holds_the_same_network(finished: tuple[Path, str], run: str) -> None:
    out, _ = finished
    first = load_file(out / f"rank0-{run}.safetensors")
    second = load_file(out / f"rank1-{run}.safetensors")
    assert first.keys() == second.keys()
    assert any(name.endswith(".code") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_two_processes_were_at_work(finished: tuple[Path, str]) -> None:
    out, _ = finished
    assert [facts(out, rank)["world"] for rank in (0, 1)] == [[0, 2], [1, 2]]
    histories = [facts(out, rank)["history"] for rank in (0, 1)]
    for row in (row for history in histories for row in history):
        del row["seconds"], row["images_per_second"]  # each rank has its own clock
    assert histories[0] == histories[1]


def test_the_gradient_is_that_of_the_whole_batch(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = finished
    state = checkpoint.read(out / "float" / "last.safetensors").state
    alone = train(Recipe.from_dict(state["recipe"]), tmp_path / "run", quiet=True, device="cpu")
    ours = facts(out, 0)["history"]
    for row, theirs in zip(alone.history, ours, strict=True):
        assert row["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert row["step"] == theirs["step"]


def test_a_resumed_run_ends_with_the_same_bits(finished: tuple[Path, str]) -> None:
    out, _ = finished
    whole = load_file(out / "rank0-binary.safetensors")
    resumed = load_file(out / "rank0-resumed.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [row["train_loss"] for row in checkpoint.read(
        out / "binary" / "last.safetensors").state["history"]]  # fmt: skip
    assert facts(out, 0)["resumed"] == losses


def test_different_masks_are_noticed_on_every_rank(finished: tuple[Path, str]) -> None:
    out, _ = finished
    for rank in (0, 1):
        assert "the processes hold different masks" in facts(out, rank)["diverged"]


def test_only_one_rank_talks_and_writes(finished: tuple[Path, str]) -> None:
    out, shown = finished
    assert shown.count("epoch 1/2") == 4  # float, binary, interrupted, diverged
    lines = (out / "float" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2


def test_one_process_does_not_resume_two(
    finished: tuple[Path, str], tiny: Callable[..., Recipe]
) -> None:
    out, _ = finished
    with pytest.raises(RecipeError, match="the run has 2 processes and this is 1; start as many"):
        train(tiny(augment="crop"), out / "float", True, quiet=True, device="cpu")
