"""The C++ engine's Python door. Importing this module never imports torch and never fails.

`available()` says whether the extension was built; `engine()` returns it or raises EngineMissing
with the remedy, so that a missing engine is never replaced by something slower in silence.
"""

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

from mpt_fast.kernels.cpu.build import source_digest

_KERNELS = Path(__file__).resolve().parent.parent


class EngineMissing(RuntimeError):  # noqa: N818 - reads as the state it reports
    """The compiled engine is not installed, or it cannot be loaded on this machine."""


class EngineStale(RuntimeError):  # noqa: N818 - reads as the state it reports
    """The compiled engine of a checkout was built from other sources than the checkout has."""


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("mpt_fast.kernels._cpu"), ""
    except ImportError as error:
        return None, str(error)


_module, _reason = _load()


def available() -> bool:
    """True if the compiled engine can be used."""
    return _module is not None


def missing_reason() -> str:
    """Why the engine cannot be used and what to do about it; empty if it can."""
    if _module is not None:
        return ""
    return (
        f"the C++ engine is not installed ({_reason}); install g++ 11 or newer and run "
        "`pip install --force-reinstall --no-deps mpt_fast`, or use backend='reference'"
    )


def engine() -> ModuleType:
    """The compiled module `mpt_fast.kernels._cpu`.

    Raises EngineMissing if it was not built, EngineStale in a checkout whose C++ sources are not
    those it was built from (as after `git pull`): old kernels under new callers would be wrong in
    ways hard to trace, and no other backend takes their place in silence.
    """
    if _module is None:
        raise EngineMissing(missing_reason())
    # An engine from before there were digests has none.
    if _is_stale(_KERNELS, getattr(_module, "source_digest", "")):
        raise EngineStale(
            f"the C++ engine is older or newer than the sources in {_KERNELS}; rebuild it: "
            "python setup.py --quiet build_ext --inplace --force"
        )
    return _module


@functools.cache
def _is_stale(kernels: Path, built_from: str) -> bool:
    """True in a development checkout whose sources differ from the digest compiled in."""
    in_checkout = (kernels.parent / "setup.py").exists()
    return in_checkout and source_digest(kernels) != built_from


def default_threads() -> int:
    """Threads used when none are named: OMP_NUM_THREADS, else this process's processors."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.isdigit() and int(value) > 0:
        return int(value)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
