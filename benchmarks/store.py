"""benchmarks/results/cpu.json: every figure with what it was measured on; written case by case."""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "cpu.json"

Cell = dict[str, Any]


class Store:
    """The results so far. "cells" stand in tables; every other entry is one measurement's own."""

    def __init__(self, path: Path = RESULTS) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.data.setdefault("cells", {})

    def has(self, key: str, stamp: dict[str, Any]) -> bool:
        """True if the case or measurement `key` was measured under `stamp`."""
        return self.data.get("measured", {}).get(key) == stamp

    def add_cells(self, key: str, stamp: dict[str, Any], cells: list[Cell]) -> None:
        """Keeps the cells of a case; a cell at the same place in a table is replaced."""
        for cell in cells:
            self.data["cells"][" | ".join((cell["table"], cell["row"], cell["column"]))] = cell
        self._keep(key, stamp)

    def add(self, key: str, stamp: dict[str, Any], found: Any) -> None:
        """Keeps a measurement that is no table of ratios."""
        self.data[key] = found
        self._keep(key, stamp)

    def _keep(self, key: str, stamp: dict[str, Any]) -> None:
        self.data.setdefault("measured", {})[key] = stamp
        self.path.parent.mkdir(exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.data, indent=1, sort_keys=True) + "\n")
        beside.replace(self.path)
