"""finetune, seed-only files and the skip report on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mpt_fast.training import load_run


def test_finetuning_is_a_run_like_any_other(
    cli: Callable, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    done = cli("finetune", run_folder, "--epochs", 1, "--lr", 0.01, "--out", out, "--json")
    assert (done.status, done.err) == (0, "")
    (row,) = done.json["runs"]
    assert (row["part"], row["optimizer"], row["schedule"]) == ("last", "sgd", "cosine")
    assert (row["lr"], row["batch_size"]) == (0.01, 256)
    assert cli("eval", out, "--json").json["accuracy"] == row["accuracy"]
    assert load_run(out)[1].finetune == "last"


def test_a_sweep_resumes(cli: Callable, run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep = ["finetune", run_folder, "--epochs", 1, "--out", out]
    sweep += ["--lr", 0.1, "--lr", 0.001, "--part", "first", "--part", "all"]
    done = cli(*sweep, "--schedule", "multistep", "--json")
    assert done.status == 0, done.err
    assert len(done.json["runs"]) == 4
    stored = json.loads((out / "sweep.json").read_text())
    assert stored["runs"] == done.json["runs"]
    again = cli(*sweep, "--schedule", "multistep")
    assert again.status == 1
    assert "--resume" in again.err

    # one run is unfinished, and only that one is done again
    lost = out / "first-sgd-multistep-lr0.1-b256"
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/result.json") if p.parent != lost}
    for path in lost.iterdir():
        path.unlink()
    resumed = cli(*sweep, "--schedule", "multistep", "--resume", "--json")
    assert resumed.json["runs"] == done.json["runs"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    table = cli(*sweep, "--schedule", "multistep", "--resume")
    assert "before fine-tuning" in table.out


def test_seed_only_file(cli: Callable, run_folder: Path, packed_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.ticket"
    done = cli("pack", run_folder, "--seed-only", "-o", file, "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["file_bytes"] == file.stat().st_size
    assert (
        cli("eval", file, "--json").json["correct"]
        == (cli("eval", run_folder, "--json").json["correct"])
    )
    assert "Entropy of the masks" in cli("pack", run_folder, "--seed-only", "-o", file).out


def test_skip_report_of_a_run(cli: Callable, run_folder: Path) -> None:
    done = cli("bench", run_folder, "--batch", 4, "--seconds", 0.1, "--json", "--threads", 1)
    assert done.status == 0, done.err
    assert done.json["counted"]["kernel_rate"] >= 1
    assert done.json["measured"][0]["ratio"] > 0
    text = cli("bench", run_folder, "--batch", 4, "--seconds", 0.1, "--threads", 1)
    assert "zero kernels" in text.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "RUN", "--part", "middle"], "part must be one of first, last, all"),
        (["finetune", "nothing"], "No such run or file"),
        (["finetune", "RUN", "--lr", "0"], "lr must be above 0"),
    ],
)
def test_errors(cli: Callable, run_folder: Path, arguments: list[str], words: str) -> None:
    done = cli(*[run_folder if a == "RUN" else a for a in arguments], "--out", "never")
    assert done.status == 1
    assert words in done.err
    assert done.err.count("\n") == 1
