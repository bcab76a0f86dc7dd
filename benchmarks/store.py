"""benchmarks/results/cpu: a folder per processor; every figure with what it was measured on."""

import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent / "results" / "cpu"

Cell = dict[str, Any]
Results = dict[str, Any]


def slug(processor: str) -> str:
    """Name of the processor's folder."""
    return re.sub(r"[^a-z0-9]+", "_", processor.lower()).strip("_")


def stored(root: Path = ROOT) -> dict[str, Results]:
    """The results of every processor, by its name."""
    found = {}
    for path in sorted(root.glob("*/results.json")):
        data = json.loads(path.read_text())
        found[_only(_processors(data), path)] = data
    return found


def figures(data: Results) -> list[dict[str, Any]]:
    """Every cell, and every measurement that is no cell."""
    alone = [entry for key, entry in data.items() if key not in ("cells", "measured")]
    return [*data["cells"].values(), *alone]


class Store:
    """One processor's results so far, in `results.json` of its folder; written case by case.

    "cells" stand in tables, "measured" says by case what it was measured under; every other entry
    is one measurement's own. Figures of another processor are refused with a ValueError.
    """

    def __init__(self, processor: str, root: Path = ROOT) -> None:
        self.processor = processor
        self.path = root / slug(processor) / "results.json"
        data = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.data: Results = {"cells": {}, "measured": {}} | data
        self._check(self.data)

    def has(self, key: str, stamp: dict[str, Any]) -> bool:
        """True if the case or measurement `key` was measured under `stamp`."""
        return self.data["measured"].get(key) == stamp

    def add_cells(self, key: str, stamp: dict[str, Any], cells: list[Cell]) -> None:
        """Keeps the cells of a case; a cell at the same place in a table is replaced."""
        places = {" | ".join((cell["table"], cell["row"], cell["column"])): cell for cell in cells}
        self._keep(key, stamp, {"cells": self.data["cells"] | places})

    def add(self, key: str, stamp: dict[str, Any], found: Any) -> None:
        """Keeps a measurement that is no table of ratios."""
        self._keep(key, stamp, {key: found})

    def _keep(self, key: str, stamp: dict[str, Any], entries: Results) -> None:
        data = self.data | entries | {"measured": self.data["measured"] | {key: stamp}}
        self._check(data)
        self.data = data
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.data, indent=1, sort_keys=True) + "\n")
        beside.replace(self.path)

    def _check(self, data: Results) -> None:
        _only(_processors(data) | {self.processor}, self.path)


def _processors(data: Results) -> set[str]:
    """The processors that the figures and the stamps of their cases name."""
    # A part of which only a selection was measured has a stamp that names nothing.
    stamps = {stamp["processor"] for stamp in data["measured"].values() if stamp}
    return {figure["machine"]["cpu"] for figure in figures(data)} | stamps


def _only(processors: set[str], path: Path) -> str:
    if len(processors) != 1:
        names = " and of ".join(sorted(processors)) or "none"
        raise ValueError(f"{path} must hold figures of one processor, not of {names}")
    return processors.pop()
