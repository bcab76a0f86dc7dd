"""Declared experiments: a YAML file says what is run, a JSON file holds what came out.

A study is one YAML file in this folder, its results are `results/NAME.json`, written anew after
every run, so that a study that is stopped goes on where it was:

    name, title, source (the paper's figure or table), claim (what the paper says of it)
    kind: train | finetune | step_time | speed (see `kinds`)
    base: recipe fields that all runs share
    grid: recipe field -> list of values; the runs are the product of the lists
    also: further grids, each with its own changes to the base, for sides that are compared
    record: what is measured of each finished run besides accuracy and time
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mpt_fast.measure import machine
from mpt_fast.report import write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SCHEMA = "mpt_fast study"
KEYS = ("name", "title", "source", "claim", "size", "kind", "base", "grid", "also", "record")


@dataclass(frozen=True)
class Study:
    """One declared experiment; `settings` are its runs, each a dict of recipe fields."""

    name: str
    title: str
    source: str
    claim: str
    size: str
    kind: str
    base: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    also: tuple[Mapping[str, Any], ...] = ()
    record: tuple[str, ...] = ()
    declared: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, name: str) -> "Study":
        """The study NAME.yaml of this folder; ValueError naming a wrong key."""
        path = HERE / f"{name}.yaml"
        if not path.is_file():
            raise ValueError(f"no study {name!r}; there are {', '.join(names())}")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        unknown = [key for key in values if key not in KEYS]
        if unknown or values.get("name") != name:
            raise ValueError(f"{path.name}: unknown keys {unknown} or another name than the file's")
        return cls(
            **{
                "also": (),
                **values,
                "record": tuple(values.get("record", ())),
                "declared": values,
            }
        )

    def settings(self) -> Iterator[dict[str, Any]]:
        """The fields that tell the runs apart, seed by seed: cutting off leaves whole seeds."""
        parts = [{"grid": self.grid}, *self.also]
        runs = [run for part in parts for run in _product(part.get("set", {}), part["grid"])]
        yield from sorted(runs, key=lambda run: run.get("seed", 0))

    @property
    def results_path(self) -> Path:
        """Where the results lie."""
        return RESULTS / f"{self.name}.json"


def names() -> list[str]:
    """All declared studies."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


class Results:
    """The results of a study, on disk after every run."""

    def __init__(self, study: Study, command: str) -> None:
        self.study = study
        self.command = command
        self.runs: list[dict[str, Any]] = []
        self.machine = machine()
        if study.results_path.is_file():
            stored = json.loads(study.results_path.read_text(encoding="utf-8"))
            if stored["declared"]["base"] != study.declared["base"]:
                raise ValueError(
                    f"{study.results_path.name} holds runs of another base than {study.name}.yaml "
                    "declares; move it away to run the study anew"
                )
            self.runs = stored["runs"]
            self.machine = stored["machine"]

    def missing(self) -> list[dict[str, Any]]:
        """Settings of the runs that are still to be done."""
        done = [run["settings"] for run in self.runs]
        return [settings for settings in self.study.settings() if settings not in done]

    def add(self, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Store one run's result; one from another machine than the page's carries its own."""
        here = machine()
        elsewhere = {} if here == self.machine else {"machine": here}
        self.runs.append({"settings": dict(settings), **result, **elsewhere})
        page = {
            "schema": SCHEMA,
            "name": self.study.name,
            "command": self.command,
            "declared": self.study.declared,
            "planned": len(list(self.study.settings())),
            "machine": self.machine,
            "runs": self.runs,
        }
        write_text(self.study.results_path, json.dumps(page, indent=1) + "\n")


Runner = Callable[[Study, Mapping[str, Any], Path, Path | None], Mapping[str, Any]]
"""Runs one setting of a study, given a scratch folder and the data's; returns what to store."""


def _product(fixed: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield {**fixed, **dict(zip(grid, values, strict=True))}
