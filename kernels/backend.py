"""Which implementation runs an operation: the only place that imports Triton.

An operation's public function takes `backend=None | "reference" | "cpu" | "triton"`. None picks
the best one that can run on the tensor's device; a name that cannot run raises BackendError. No
fallback is silent: the automatic choice is logged once per operation. Triton is chosen
automatically only on a GPU whose measured cost table (`costs`) has it as the fastest for the size
at hand. Triton's interpreter (TRITON_INTERPRET=1) runs the triton backend on CPU tensors where it
is named.
"""

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from types import ModuleType

from mpt_fast.kernels import costs, cpu

logger = logging.getLogger("mpt_fast")

BACKENDS = ("reference", "cpu", "triton")


# What automatic choices take where it can run, see `preferring`.
_preferred: str | None = None


class BackendError(RuntimeError):
    """The requested backend does not exist for this operation or cannot run here."""


@functools.cache
def triton_available() -> bool:
    """True if Triton is installed and has a GPU driver or the interpreter to run in."""
    if importlib.util.find_spec("triton") is None:
        return False
    if interpreted():
        return True
    import torch

    return torch.cuda.is_available()


def interpreted() -> bool:
    """True if kernels run in Triton's interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton() -> ModuleType:
    """The Triton package, with or without a GPU; raises BackendError where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise BackendError("the triton backend needs the triton package: pip install 'triton>=3.6'")
    # Said explicitly, as Triton asks: its default changes in 3.10, and results with it.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton as module

    return module


@contextlib.contextmanager
def preferring(name: str) -> Iterator[None]:
    """Within it, automatic choices take the backend `name` wherever it can run.

    That is how whole models run on a backend, whose layers name none: `preferring("triton")`. For
    the process, not for one thread. Raises BackendError for an unknown name.
    """
    global _preferred
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; choose from {BACKENDS}")
    before, _preferred = _preferred, name
    try:
        yield
    finally:
        _preferred = before


@functools.cache
def _log_choice(operation: str, backend: str, device_type: str) -> None:
    logger.info("%s on %s: backend %s", operation, device_type, backend)


def choose(
    operation: str,
    backend: str | None,
    device_type: str,
    supported: Sequence[str],
    case: costs.Case | None = None,
) -> str:
    """The backend that will run `operation` on a device of `device_type` ("cpu", "cuda", ...).

    `supported` names the backends the operation has, best first for automatic choice; `case` is
    what the measured cost table is asked for. Raises BackendError if `backend` is unknown, is not
    one of them, or cannot run on this machine.
    """
    if backend is None:
        # Triton kernels have been checked in the interpreter and compiled ahead of time, but not
        # yet run on a device: where nobody measured them, they run only where asked for by name.
        unmeasured = [name for name in supported if name != "triton"]
        preferred = [] if _preferred is None else [_preferred]
        for name in (*preferred, *_fastest(case, device_type), *unmeasured):
            if name in supported and _runs(name, device_type):
                _log_choice(operation, name, device_type)
                return name
        raise BackendError(f"{operation}: no backend runs on device {device_type!r}")
    if backend not in BACKENDS:
        raise BackendError(f"{operation}: unknown backend {backend!r}; choose from {BACKENDS}")
    if backend not in supported:
        raise BackendError(
            f"{operation}: no {backend!r} backend; it has {', '.join(map(repr, supported))}"
        )
    if not _runs(backend, device_type):
        if backend == "cpu":
            if device_type == "cpu":
                raise BackendError(f"{operation}: backend 'cpu': {cpu.missing_reason()}")
            raise BackendError(f"{operation}: backend 'cpu' cannot run on a {device_type} tensor")
        raise BackendError(
            f"{operation}: backend 'triton' needs a GPU tensor and the triton package "
            f"(got device {device_type!r})"
        )
    return backend


def _fastest(case: costs.Case | None, device_type: str) -> list[str]:
    """Backends that were measured on this GPU near `case`, fastest first."""
    if case is None or device_type != "cuda":
        return []
    return [name.partition("/")[0] for name in costs.ranking(case)]


def _runs(backend: str, device_type: str) -> bool:
    if backend == "reference":
        return True
    if backend == "cpu":
        return device_type == "cpu" and cpu.available()
    return triton_available() and (device_type == "cuda" or interpreted())
