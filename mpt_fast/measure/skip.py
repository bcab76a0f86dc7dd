"""The structured skip report: kernels without a weight, counted, beside the clocked packed network.

Efficient-MPT counts the kernels that a mask leaves all zero and what skipping them would save, its
Eq. (4). Here the same count stands beside the speed-up that the packed network really has over
the dense one, by turns in one process.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpt_fast.measure.baseline import baselines
from mpt_fast.measure.rates import AccelerationRate, acceleration_rate
from mpt_fast.measure.timing import Comparison, compare

_CHECKED = 16
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class MeasuredRate:
    """The packed network against the dense one at a batch size; `ratio` above 1 is faster."""

    batch: int
    setting: str
    comparison: Comparison

    @property
    def ratio(self) -> float:
        """Median time of the dense network over that of the packed one."""
        return self.comparison.ratio


@dataclass(frozen=True)
class SkipReport:
    """Counted rates per layer and in total, measured rates, threads; `print` shows a table."""

    counted: AccelerationRate
    measured: tuple[MeasuredRate, ...]
    threads: int

    @property
    def zero_fraction(self) -> float:
        """Share of all kernels W[o, i] that have no weight left."""
        layers = self.counted.layers
        return sum(x.zero_kernels for x in layers) / sum(x.kernels for x in layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "counted": self.counted.to_dict(),
            "zero_fraction": self.zero_fraction,
            "threads": self.threads,
            "measured": [
                {"batch": m.batch, "setting": m.setting, **m.comparison.to_dict()}
                for m in self.measured
            ],
        }

    def __str__(self) -> str:
        lines = [str(self.counted), ""]
        lines += [
            f"measured, batch {m.batch}, threads {self.threads}: {m.ratio:.3g}x the dense network "
            f"({m.setting}; {m.comparison.ratio_p20:.3g} to {m.comparison.ratio_p80:.3g}); "
            f"counted {self.counted.kernel_rate:.3g}x by kernels, "
            f"{self.counted.weight_rate:.3g}x by weights"
            for m in self.measured
        ]
        return "\n".join(lines)


def skip_report(
    model: nn.Module,
    dense: nn.Module,
    input_shape: Sequence[int],
    *,
    batches: Sequence[int] = (512, 1),
    threads: int | None = None,
    seconds: float = 5.0,
) -> SkipReport:
    """Count the all-zero kernels of `model` and time it packed against `dense`, its dense twin.

    model: a ticket in evaluation mode. dense: eager PyTorch, timed at its fastest fp32 setting
    (`baselines`). input_shape: of one image. batches: sizes to time, about `seconds` each; empty
    times nothing. threads: of both sides (None: torch's).

    Raises RuntimeError, before any timing, if the packed network does not answer as the model in
    float64 does.
    """
    from mpt_fast.packed import pack

    counted = acceleration_rate(model, input_shape)
    number = threads or torch.get_num_threads()
    if not batches:
        return SkipReport(counted, (), number)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(max(_CHECKED, *batches), *input_shape, generator=generator)
    packed = pack(model, images[:1], threads=number)
    _check(packed, model, images[:_CHECKED])
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        measured = []
        for batch in batches:
            some = images[:batch].contiguous()
            best = baselines(dense, some, seconds=seconds / 3).best
            timed = compare(lambda x=some: packed(x), best, repeats=200, seconds=2 * seconds / 3)  # type: ignore[misc]  # bound to this batch
            measured.append(MeasuredRate(batch, best.setting, timed))
    finally:
        torch.set_num_threads(before)
    return SkipReport(counted, tuple(measured), number)


def _check(packed: nn.Module, model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = deepcopy(model).double().eval()(images.double())
        error = (packed(images).double() - expected).abs().max() / expected.abs().max()
    if not float(error) <= _TOLERANCE:
        raise RuntimeError(
            f"the packed network differs from the model by {float(error):.1e}; it is not timed"
        )
