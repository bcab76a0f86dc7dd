"""How a run is computed: mixed precision, threads, deterministic algorithms."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from mpt_fast.training.recipe import RecipeError

__all__ = ["autocast", "computing", "resolve_amp"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM


def resolve_amp(amp: str, device: torch.device) -> str:
    """What a recipe's `amp` means on this device: "none", "bf16" or "fp16".

    "auto" is bf16 where the hardware multiplies it natively: on GPUs that say so, and on CPUs with
    AVX512_BF16, AMX or ARM's BF16 (measured on Conv-4 with AVX512_BF16: 1.8 times the steps per
    second). It is read off the processor and not timed, so that a recipe means the same every time.
    Raises RecipeError for fp16 without a GPU.
    """
    if amp == "fp16" and device.type != "cuda":
        raise RecipeError("amp: fp16 needs a CUDA device; use bf16, none or auto")
    if amp != "auto":
        return amp
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bf16()
    return "bf16" if native else "none"


def _cpu_has_bf16() -> bool:
    """Whether the processor has bf16 instructions; False where the system does not say."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        key, _, values = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return not _CPU_FLAGS.isdisjoint(values.split())
    return False


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The autocast context of a resolved `amp`; disabled for "none"."""
    dtype = _DTYPES.get(amp)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextlib.contextmanager
def computing(threads: int, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Set threads and determinism for a run; afterwards put them and the random state back."""
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    torch.set_num_threads(threads)
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = not deterministic
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
