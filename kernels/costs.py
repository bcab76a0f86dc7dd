"""The measured cost table: which backend of an operation was the fastest on this GPU.

`python -m benchmarks.gpu` writes the table on a device, `python -m benchmarks.gpu.merge` joins
several; the environment variable MPT_FAST_COST_TABLE names the file. Where it is not set, or the
table was measured on another device or with another Triton, nothing is known: the automatic choice
then never takes Triton.

    {"format": "mpt_fast cost table", "version": 2, "device": "NVIDIA H200", "triton": "3.9.0",
     "cases": [{"operation": "bitsliced_conv2d_sign", "size": [524288, 576, 64, 3456],
                "microseconds": {"reference": 850.0, "triton": 21.0, "triton/int8": 40.0},
                "source": "measured on NVIDIA H200"}]}

`size` holds positive numbers whose meaning each operation fixes (`product`, `elements`). A call is
answered by the nearest measured case, and only if no number of its size is more than REACH times
larger or smaller there. A name is a backend, "triton/<route>" a route of it.
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger("mpt_fast")

VARIABLE = "MPT_FAST_COST_TABLE"
FORMAT = {"format": "mpt_fast cost table", "version": 2}
REACH = 4.0
# What this process measured and no file holds yet, see `supplying`.
_supplied: tuple["Measured", ...] | None = None


class CostTableError(RuntimeError):
    """The file that MPT_FAST_COST_TABLE names cannot be used."""


class Case(NamedTuple):
    """One call of an operation, as far as its cost goes. operation: with the operand's dtype where
    that changes the cost."""

    operation: str
    size: tuple[int, ...]


class Measured(NamedTuple):
    """The times of one case, by backend or backend/route, in microseconds.

    source: where they come from, "measured on <device>"; a packed network also weighs times that
    are its own estimates and never in a file.
    """

    case: Case
    microseconds: Mapping[str, float]
    source: str


def typed(operation: str, dtype: object) -> str:
    """`operation` with the dtype of its operand, for those whose cost depends on it."""
    return f"{operation} {str(dtype).removeprefix('torch.')}"


def product(operation: str, columns: int, weight: Sequence[int], kept: int | None = None) -> Case:
    """A product of a weight of shape (O, C/groups, ...) with `columns` output pixels or rows.

    kept: number of its weights (or kernels) that are listed, where only those cost.
    """
    size = (columns, weight[0], math.prod(weight[1:]))
    return Case(operation, size if kept is None else (*size, kept))


def elements(operation: str, count: int) -> Case:
    """An operation whose cost is that of reading `count` elements."""
    return Case(operation, (count,))


def table(device: str, triton: str, measured: Sequence[Measured]) -> dict[str, Any]:
    """The JSON document of `measured` cases."""
    cases = [
        {
            "operation": case.operation,
            "size": list(case.size),
            "microseconds": dict(microseconds),
            "source": source,
        }
        for case, microseconds, source in measured
    ]
    return {**FORMAT, "device": device, "triton": triton, "cases": cases}


def parse(document: Any) -> tuple[str, str, list[Measured]]:
    """(device, Triton version, cases) of a JSON document; ValueError says what is wrong with it."""
    if not isinstance(document, dict) or any(document.get(k) != v for k, v in FORMAT.items()):
        raise ValueError(f"it is not a {FORMAT['format']} of version {FORMAT['version']}")
    measured = []
    try:
        for row in document["cases"]:
            case = Case(str(row["operation"]), tuple(int(n) for n in row["size"]))
            times = {str(name): float(time) for name, time in row["microseconds"].items()}
            measured.append(Measured(case, times, str(row["source"])))
        device, triton = str(document["device"]), str(document["triton"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a case or field is missing or malformed: {error!r}") from None
    for case, microseconds, _ in measured:
        numbers = [*case.size, *microseconds.values()]
        if not microseconds or any(not (math.isfinite(n) and n > 0) for n in numbers):
            raise ValueError(
                f"{case.operation} {case.size} has sizes or times that are not above 0"
            )
    return device, triton, measured


@functools.cache
def _load(path: str, device: str, triton: str) -> tuple[Measured, ...]:
    """The cases of the file, none where it speaks of another device or Triton."""
    try:
        found, version, measured = parse(json.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:
        raise CostTableError(
            f"{VARIABLE}={path}: {error}; unset it or write the table with python -m benchmarks.gpu"
        ) from None
    if (found, version) != (device, triton):
        logger.warning(
            "%s=%s was measured on %s with Triton %s, this is %s with Triton %s: not used",
            *(VARIABLE, path, found, version, device, triton),
        )
        return ()
    return tuple(measured)


def _here() -> tuple[str, str]:
    """(name of the current GPU, Triton version)."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return device, importlib.metadata.version("triton")


@contextlib.contextmanager
def supplying(measured: Sequence[Measured]) -> Iterator[None]:
    """Within it, `measured` is the table and no file is read: as benchmarks use what they measured.

    For the process, not for one thread.
    """
    global _supplied
    before, _supplied = _supplied, tuple(measured)
    try:
        yield
    finally:
        _supplied = before


def merged(documents: Sequence[Any]) -> dict[str, Any]:
    """One document of several; where two have a case, the later one's.

    ValueError if one is malformed or they speak of different devices or Triton versions.
    """
    found: dict[Case, Measured] = {}
    origins = set()
    for document in documents:
        device, triton, measured = parse(document)
        origins.add((device, triton))
        found |= {entry.case: entry for entry in measured}
    if len(origins) != 1:
        raise ValueError(f"the tables are of {len(origins)} devices or Triton versions: {origins}")
    return table(*origins.pop(), list(found.values()))


def nearest(case: Case) -> Measured | None:
    """The measured case nearest to `case`; None where nothing near was measured.

    Raises CostTableError if MPT_FAST_COST_TABLE names a file that cannot be used.
    """
    path = os.environ.get(VARIABLE)
    size = [int(n) for n in case.size]
    if (_supplied is None and not path) or min(size, default=0) < 1:
        return None
    found, least = None, math.log(REACH)
    for measured in _load(path or "", *_here()) if _supplied is None else _supplied:
        if measured.case.operation == case.operation and len(measured.case.size) == len(size):
            apart = max(abs(math.log(a / b)) for a, b in zip(size, measured.case.size, strict=True))
            if apart <= least:
                found, least = measured, apart
    return found


def ranking(case: Case) -> list[str]:
    """The backends (and routes) that were measured near `case`, fastest first."""
    found = nearest(case)
    times = {} if found is None else found.microseconds
    return sorted(times, key=times.__getitem__)


def route(case: Case, routes: Sequence[str]) -> str:
    """The fastest measured one of Triton's `routes` for `case`; the first where none was measured.

    "triton" alone stands for the first.
    """
    for name in ranking(case):
        backend, _, found = name.partition("/")
        if backend == "triton" and (found or routes[0]) in routes:
            return found or routes[0]
    return routes[0]
