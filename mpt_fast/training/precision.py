"""How a run is computed: mixed precision, threads, deterministic algorithms."""

import contextlib
import os
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from mpt_fast.training.recipe import RecipeError

__all__ = ["autocast", "computing", "resolve_amp"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WORTH = 1.1  # bf16 must be this much faster to be chosen: it costs precision
_TRIALS = 3


def resolve_amp(amp: str, device: torch.device) -> str:
    """ "none", "bf16" or "fp16" for a recipe's `amp` on this device.

    "auto" is bf16 on a GPU that computes it, and on a CPU where a measurement of well under a
    second says that a convolution's forward and backward are faster in bf16. Raises RecipeError
    for fp16 without a GPU.
    """
    if amp == "fp16" and device.type != "cuda":
        raise RecipeError("amp: fp16 needs a CUDA device; use bf16, none or auto")
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "none"
    if device.type == "cpu":
        return "bf16" if _cpu_speedup() >= _WORTH else "none"
    return "none"


def _cpu_speedup() -> float:
    """Time in float32 over time in bf16 of one training step of a 64-channel convolution."""
    image = torch.ones(16, 64, 16, 16).to(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3)

    def step(dtype: torch.dtype) -> float:
        x = image.to(dtype).requires_grad_()
        w = weight.to(dtype).requires_grad_()
        start = time.perf_counter()
        F.conv2d(x, w, padding=1).sum().backward()
        return time.perf_counter() - start

    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for trial in range(_TRIALS + 1):
        for dtype in best:
            seconds = step(dtype)
            if trial:  # the first of each prepares kernels
                best[dtype] = min(best[dtype], seconds)
    return best[torch.float32] / best[torch.bfloat16]


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The autocast context of a resolved `amp`; disabled for "none"."""
    dtype = _DTYPES.get(amp)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextlib.contextmanager
def computing(threads: int, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Set threads and determinism for a run, and put them back afterwards."""
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
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
