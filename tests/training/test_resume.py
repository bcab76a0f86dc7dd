"""Runs killed with SIGKILL end, once resumed, with the very bits of a run that was left alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpt_fast.training import CheckpointError, Recipe, RecipeError, Result, checkpoint, train

Make = Callable[..., Recipe]

SCRIPT = Path(__file__).with_name("killed_runs.py")
RUN = {
    "model": "conv2",
    "width": 0.125,
    "data": "digits",
    "activation": "binary",
    "bn": "affine",
    "augment": "crop",
    "sparsity": 0.7,
    "progressive_epochs": 2,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "lr": 0.02,
    "epochs": 3,
    "batch_size": 256,
    "amp": "none",
    "threads": 1,
}
FLOAT = {**RUN, "activation": "relu", "bn": "frozen", "optimizer": "sgd", "amp": "bf16"}
LAYER = {**FLOAT, "scope": "layer", "progressive_epochs": 0, "channels_last": False, "amp": "none"}
THRESHOLD = {**FLOAT, "selection": "threshold", "progressive_epochs": 0, "power": 1.5}
DENSE = {**FLOAT, "dense": True, "progressive_epochs": 0, "grad_clip": 1.0}

# 5 steps an epoch and a checkpoint every 2. Files written atomically: recipe, last (step 0), last
# (2), last (4), best and last (epoch 1), last (7), ...
POINTS = {
    "before the first checkpoint": (RUN, ["renaming:2"]),
    "first step": (RUN, ["step:1"]),
    "between checkpoints": (RUN, ["step:8"]),
    "in a checkpoint within an epoch": (RUN, ["partial:3"]),
    "in the best checkpoint": (RUN, ["partial:5"]),
    "between best and last": (RUN, ["renamed:5"]),
    "in the checkpoint of an epoch": (RUN, ["partial:6"]),
    "before its renaming": (RUN, ["renaming:6"]),
    "after its renaming": (RUN, ["renamed:6"]),
    "before an evaluation": (RUN, ["evaluate:2"]),
    "in the metrics": (RUN, ["metrics:2"]),
    "in the last step": (RUN, ["step:15"]),
    "again and again": (RUN, ["step:3", "partial:1", "renamed:3", "step:1", "metrics:1"]),
    "sgd, float, bf16": (FLOAT, ["step:8"]),
    "layerwise": (LAYER, ["step:8"]),
    "fixed threshold": (THRESHOLD, ["step:8"]),
    "dense": (DENSE, ["step:8"]),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one killed run for each of POINTS; all die in the one process started here."""
    root = tmp_path_factory.mktemp("killed")
    jobs = [
        {
            "folder": str(root / name),
            "point": point,
            "recipe": recipe,
            "resume": number > 0,
            "steps": 2,
        }
        for name, (recipe, points) in POINTS.items()
        for number, point in enumerate(points)
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(jobs)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout)
    assert statuses == [signal.SIGKILL] * len(jobs), "every run must have been killed, not ended"
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Result]:
    """The result of a recipe whose run was never stopped, nor saved within an epoch."""
    results: dict[str, Result] = {}
    root = tmp_path_factory.mktemp("undisturbed")

    def run(recipe: dict[str, Any]) -> Result:
        key = json.dumps(recipe)
        if key not in results:
            folder = root / str(len(results))
            results[key] = train(Recipe.from_dict(recipe), folder, quiet=True, device="cpu")
        return results[key]

    return run


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clocks = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", POINTS)
def test_a_killed_run_ends_with_the_same_bits(
    name: str, killed: Path, undisturbed: Callable[[dict[str, Any]], Result]
) -> None:
    recipe, _ = POINTS[name]
    whole = undisturbed(recipe)
    folder = killed / name
    resumed = train(Recipe.from_dict(recipe), folder, True, quiet=True, device="cpu")
    for kind in ("last", "best"):
        ours = checkpoint.read(folder / f"{kind}.safetensors")
        theirs = checkpoint.read(whole.out_dir / f"{kind}.safetensors")
        assert ours.tensors.keys() == theirs.tensors.keys()
        for key, value in theirs.tensors.items():
            assert torch.equal(bits(ours.tensors[key]), bits(value)), key
        for key in ("epoch", "step", "best", "frozen", "sparsity", "sums"):
            assert ours.state[key] == theirs.state[key], key
    assert timeless(resumed.history) == timeless(whole.history)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert timeless([json.loads(line) for line in lines]) == timeless(whole.history)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4
    assert not list(folder.glob(".*")), "nothing half-written may stay"


def test_steps_and_seconds_of_the_cadence_do_not_change_the_result(
    tmp_path: Path, undisturbed: Callable[[dict[str, Any]], Result]
) -> None:
    whole = undisturbed(RUN).model.state_dict()
    for name, cadence in (
        ("steps", {"checkpoint_steps": 1}),
        ("seconds", {"checkpoint_seconds": 1e-9}),
    ):
        run = train(
            Recipe.from_dict(RUN), tmp_path / name, quiet=True, device="cpu", **cadence
        ).model
        state = run.state_dict()
        assert all(torch.equal(bits(state[key]), bits(whole[key])) for key in whole)


def test_checkpoints_are_written_when_they_are_due(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int, int]] = []
    write = checkpoint.write

    def watched(path: Path, tensors: Any, state: Any) -> None:
        written.append((path.stem, state["epoch"], state["step"]))
        write(path, tensors, state)

    monkeypatch.setattr(checkpoint, "write", watched)
    train(tiny(epochs=1), tmp_path / "a", quiet=True, checkpoint_steps=2)
    assert written == [
        ("last", 0, 0),
        ("last", 0, 2),
        ("last", 0, 4),
        ("best", 1, 0),
        ("last", 1, 0),
    ]
    written.clear()
    train(tiny(epochs=1), tmp_path / "b", quiet=True, checkpoint_seconds=0)
    assert written == [("last", 0, 0), ("best", 1, 0), ("last", 1, 0)]
    written.clear()
    train(tiny(epochs=1), tmp_path / "c", quiet=True, checkpoint_seconds=1e-9)
    assert [step for _, _, step in written] == [0, 1, 2, 3, 4, 0, 0]


def test_resuming_a_finished_run_gives_its_result(tmp_path: Path, tiny: Make) -> None:
    first = train(tiny(), tmp_path, quiet=True)
    before = (tmp_path / "last.safetensors").read_bytes()
    again = train(tiny(), tmp_path, True, quiet=True)
    assert (again.accuracy, again.history) == (first.accuracy, first.history)
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_resuming_an_empty_folder_starts(tmp_path: Path, tiny: Make) -> None:
    assert train(tiny(), tmp_path / "new", True, quiet=True).steps == 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lr": 0.2}, r"lr is 0\.2 here and 0\.1 in the run"),
        ({"epochs": 3}, "epochs is 3 here and 2 in the run"),
        ({"dense": True}, "dense is True here and False in the run"),
        ({"schedule": "multistep", "milestones": [1]}, "schedule is 'multistep' here and 'cosine'"),
    ],
)
def test_another_recipe_is_refused(
    tmp_path: Path, tiny: Make, change: dict[str, Any], expected: str
) -> None:
    train(tiny(), tmp_path, quiet=True)
    with pytest.raises(RecipeError, match=f"cannot resume: {expected}"):
        train(tiny(**change), tmp_path, True, quiet=True)
    kept = Recipe.load(tmp_path / "recipe.yaml")
    assert kept == tiny(), "a refused resume must leave the folder as it is"


def test_a_folder_with_a_run_is_refused_without_resume(tmp_path: Path, tiny: Make) -> None:
    train(tiny(), tmp_path, quiet=True)
    with pytest.raises(RecipeError, match="already holds a run; resume it"):
        train(tiny(), tmp_path, quiet=True)


def test_other_data_are_refused(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpt_fast import data

    train(tiny(), tmp_path, quiet=True)
    load = data.load

    def other(*args: Any, **options: Any) -> data.Dataset:
        found = load(*args, **options)
        found.train.labels[0] = (found.train.labels[0] + 1) % 10
        return found

    monkeypatch.setattr(data, "load", other)
    with pytest.raises(RecipeError, match="digits is not the data set the run began with"):
        train(tiny(), tmp_path, True, quiet=True)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, tiny: Make) -> None:
    train(tiny(), tmp_path, quiet=True)
    path = tmp_path / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: damaged \(checksum differs\)"):
        train(tiny(), tmp_path, True, quiet=True)
