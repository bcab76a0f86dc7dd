"""The fastest way to run a dense network in eager fp32 PyTorch: what a candidate must beat."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpt_fast.measure.timing import Timing, interleave

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

TOLERANCE = 1e-3
"""Settings add the same numbers in another order. A setting that is wrong (a bad fold, an in-place
operation on a value that is used again) errs by the size of the outputs themselves."""


@dataclass(frozen=True)
class Baseline:
    """A dense network at one setting; calling it runs one forward pass on `example`.

    The example already has the setting's memory format, so that the conversion is not held against
    it.
    """

    setting: str
    model: nn.Module
    example: Tensor

    def __call__(self) -> Tensor:
        with torch.inference_mode():
            return self.model(self.example)


@dataclass(frozen=True)
class Baselines:
    """Every setting that ran, fastest first, with its timing; and why others did not run."""

    candidates: tuple[Baseline, ...]
    timings: tuple[Timing, ...]
    skipped: dict[str, str]

    @property
    def best(self) -> Baseline:
        """The fastest setting."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """The best setting, each setting's timing and the skipped ones, JSON-able."""
        pairs = zip(self.candidates, self.timings, strict=True)
        return {
            "best": self.best.setting,
            "settings": {baseline.setting: timing.to_dict() for baseline, timing in pairs},
            "skipped": dict(self.skipped),
        }


def baselines(
    model: nn.Module,
    example: Tensor,
    *,
    repeats: int = 7,
    seconds: float | None = None,
    fold: bool = True,
) -> Baselines:
    """Time `model` in eval mode on `example` at PyTorch's eager fp32 settings.

    Settings: "NCHW"; "channels_last"; both also with "folded" batch norms, where one directly
    follows a convolution or linear layer (torch.fx). They run by turns with torch's number of
    threads, `repeats` times or for about `seconds` in all. `model` is not changed.
    fold=False leaves the folded settings out: for a model without batch norms.

    example: float32, on the model's device. A setting that cannot be made, or whose result differs
    from the model's by more than 1e-3 of its largest value, is not timed but named in `skipped`.
    """
    if example.dtype != torch.float32:
        raise ValueError(f"example must be float32, got {example.dtype}; the baseline is fp32")
    plain = copy.deepcopy(model).eval()
    with torch.inference_mode():
        expected = plain(example)
    networks = {"": plain}
    skipped: dict[str, str] = {}
    if fold:
        from torch.fx.experimental.optimization import fuse  # slow to import, warns of deprecations

        try:
            networks[", folded"] = fuse(plain)
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            skipped["folded"] = f"cannot be traced: {first_line(error)}"
    ready = []
    for suffix, network in networks.items():
        for layout, memory_format in FORMATS.items():
            if memory_format == torch.channels_last and example.dim() != 4:
                continue
            candidate = Baseline(
                f"{layout}{suffix}",
                _laid_out(network, memory_format),
                example.contiguous(memory_format=memory_format),
            )
            difference = _difference(candidate(), expected)
            if difference > TOLERANCE:
                skipped[candidate.setting] = f"differs from the model by {difference:.1e}"
            else:
                ready.append(candidate)
    if not ready:
        raise RuntimeError(f"no setting repeats the model's result: {skipped}")
    timings = interleave(
        ready, repeats=repeats, seconds=seconds, synchronize=_synchronizer(example.device)
    )
    order = sorted(range(len(ready)), key=lambda i: timings[i].median)
    return Baselines(tuple(ready[i] for i in order), tuple(timings[i] for i in order), skipped)


def _laid_out(network: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """A copy whose convolution weights have that memory format."""
    copied = copy.deepcopy(network)
    for parameter in copied.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return copied


def _difference(result: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude; infinite for a result that is."""
    if result.shape != expected.shape or not bool(torch.isfinite(result).all()):
        return math.inf
    scale = max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
    return float((result - expected).abs().max()) / scale


def _synchronizer(device: torch.device) -> Callable[[], object] | None:
    return torch.cuda.synchronize if device.type == "cuda" else None


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
