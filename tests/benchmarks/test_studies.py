"""The runner of declared studies: products, resuming, strictness; and one tiny run of each kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.studies import __main__ as command
from benchmarks.studies import study as module
from benchmarks.studies.kinds import KINDS
from benchmarks.studies.study import Results, Study, names

REPOSITORY = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"
TINY = {"data": "digits", "epochs": 1, "batch_size": 128, "width": 0.125, "threads": 1,
        "amp": "none"}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return tmp_path


def declare(folder: Path, kind: str = "train", **changes: Any) -> Study:
    values = {
        "name": "small", "title": "t", "source": "s", "claim": "c", "size": "z", "kind": kind,
        "base": {**TINY, "model": "conv2"}, "grid": {"seed": [0, 1], "sparsity": [0.3, 0.5]},
        **changes,
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    return Study.load("small")


@pytest.mark.parametrize("name", [path.stem for path in REPOSITORY.glob("*.yaml")])
def test_declared_studies_load(name: str) -> None:
    study = Study.load(name)
    runs = list(study.settings())
    assert runs
    assert study.kind in KINDS
    assert all(runs.count(run) == 1 for run in runs)


def test_settings_are_products_seed_by_seed(folder: Path) -> None:
    study = declare(folder, also=[{"set": {"dense": True}, "grid": {"seed": [0, 1]}}])
    assert list(study.settings()) == [
        {"seed": 0, "sparsity": 0.3}, {"seed": 0, "sparsity": 0.5}, {"dense": True, "seed": 0},
        {"seed": 1, "sparsity": 0.3}, {"seed": 1, "sparsity": 0.5}, {"dense": True, "seed": 1},
    ]  # fmt: skip


def test_results_go_on_where_they_were(folder: Path) -> None:
    study = declare(folder)
    first, *rest = study.settings()
    Results(study, "command").add(first, {"accuracy": 0.5})
    again = Results(study, "command")
    assert again.missing() == rest
    stored = json.loads(study.results_path.read_text())
    assert (stored["planned"], stored["command"]) == (4, "command")
    assert stored["machine"]["cores"] > 0
    changed = declare(folder, base={**TINY, "model": "conv4"})
    with pytest.raises(ValueError, match="another base"):
        Results(changed, "command")


def test_runs_of_another_machine_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = declare(folder)
    first, second, *_ = study.settings()
    Results(study, "command").add(first, {"accuracy": 0.5})
    monkeypatch.setattr(module, "machine", lambda: {"cpu": "another"})
    Results(study, "command").add(second, {"accuracy": 0.5})
    stored = json.loads(study.results_path.read_text())
    assert stored["machine"] != {"cpu": "another"}
    assert [run.get("machine") for run in stored["runs"]] == [None, {"cpu": "another"}]


def test_wrong_declarations_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no study 'other'; there are"):
        Study.load("other")
    with pytest.raises(ValueError, match=r"unknown keys \['grids'\]"):
        declare(folder, grids={})


def test_training_and_records(folder: Path) -> None:
    declare(folder, grid={"seed": [0, 1]}, record=["histogram", "kernels"])
    arguments = ["small", "--scratch", str(folder / "runs")]
    assert command.main([*arguments, "--seconds", "0.0001"]) == 3  # no time for a single run
    assert command.main(arguments) == 0
    found = Results(Study.load("small"), "")
    assert found.missing() == []
    run = found.runs[0]
    assert 0 <= run["accuracy"] <= 1
    assert run["kernels"]["kernel_rate"] >= 1
    histogram = next(iter(run["histogram"].values()))
    assert sum(histogram["counts"]) == 8 * 9  # the first layer's scores, each in a bin
    assert names() == ["small"]


def test_finetuning(folder: Path) -> None:
    base = {**TINY, "model": "conv2", "finetune_epochs": 1}
    grid = {"seed": [0], "part": ["last"], "optimizer": ["sgd"], "schedule": ["cosine"],
            "lr": [0.01], "batch_size": [64]}  # fmt: skip
    declare(folder, "finetune", base=base, grid=grid)
    assert command.main(["small", "--scratch", str(folder / "runs")]) == 0
    (run,) = Results(Study.load("small"), "").runs
    assert {"accuracy", "ticket_accuracy"} <= run.keys()


def test_timings(folder: Path) -> None:
    base = {"model": "conv2", "image": [1, 8, 8], "batch": 4, "sparsity": 0.5, "seconds": 0.01,
            "selections": ["sort", "threshold", "exact"]}  # fmt: skip
    declare(folder, "step_time", base=base, grid={"power": [2.0]})
    assert command.main(["small", "--scratch", str(folder / "runs")]) == 0
    (run,) = Results(Study.load("small"), "").runs
    assert set(run["timings"]) == {"sort", "threshold", "exact"}


def test_speed(folder: Path) -> None:
    base = {"model": "resnet20", "image": [1, 8, 8], "batches": [2], "seconds": 0.05}
    grid = {"activation": ["relu"], "sparsity": [0.9]}
    declare(folder, "speed", base=base, grid=grid)
    assert command.main(["small", "--scratch", str(folder / "runs")]) == 0
    (run,) = Results(Study.load("small"), "").runs
    assert run["counted"]["kernel_rate"] > 1
    assert run["measured"][0]["batch"] == 2


def test_another_data_set_is_another_result(folder: Path) -> None:
    declare(folder, grid={"seed": [0]})
    arguments = ["small", "--set", "epochs=2", "--suffix", "longer"]
    assert command.main([*arguments, "--scratch", str(folder / "runs")]) == 0
    stored = json.loads((folder / "results" / "small-longer.json").read_text())
    assert stored["declared"]["base"]["epochs"] == 2
    assert stored["command"] == "python -m benchmarks.studies small --set epochs=2 --suffix longer"
