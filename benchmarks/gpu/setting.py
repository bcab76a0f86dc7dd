"""What a run of the benchmark shares: its device, its sizes, its clock and its comparisons."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels import costs

NOT_MEASURED = "not measured"
# Relative RMS error allowed against float64; float32 products may be tf32.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
WARM_UP = 3

Figures = dict[str, dict[str, Any]]
Run = Callable[[], object]


@dataclasses.dataclass
class Timing:
    """Runs that are timed by turns.

    table: cost-table case -> {name in the table: name of the run}. It holds whole calls of an
    operation, launches from Python and preparation included, for that is what is chosen between.
    graphs: replay each run as a CUDA graph; for kernels alone, not for whole calls.
    """

    title: str
    runs: dict[str, Run]
    table: dict[costs.Case, dict[str, str]] = dataclasses.field(default_factory=dict)
    rounds: int = 20
    graphs: bool = True


class MismatchError(RuntimeError):
    """A kernel's result is not the reference's."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run. dry: on the CPU, in Triton's interpreter, at tiny sizes and without a clock.

    deadline: `time.monotonic()` after which no further timing starts; a dry run walks everything.
    """

    device: str
    dry: bool
    deadline: float

    def late(self, seconds: float = 0.0) -> bool:
        """Whether less than `seconds` are left."""
        return not self.dry and time.monotonic() + seconds > self.deadline

    def ternary(self, shape: Sequence[int], density: float) -> Tensor:
        """int8 of {-1, 0, +1}."""
        kept = torch.rand(tuple(shape), device=self.device) < density
        return torch.where(kept, self.normal(*shape).sign(), 0).to(torch.int8)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype)

    def image(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal [N, C, H, W] in channels_last."""
        return self.normal(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def clock(self, runs: dict[str, Run], rounds: int = 20, graphs: bool = True) -> Figures:
        """Each run's median, 20th and 80th percentile in microseconds, taken in turns.

        With `graphs`, a run that can be captured is replayed as a CUDA graph, so that it is not the
        launches from Python that are timed; "launch" says which it was. A baseline that raises is
        "not available" with its reason. Dry runs call everything once and clock nothing.
        """
        figures: Figures = {}
        ready: dict[str, Run] = {}
        for name, run in runs.items():
            try:
                for _ in range(1 if self.dry else WARM_UP):
                    run()
                self._wait()
            except (RuntimeError, TypeError, ValueError) as error:
                if name.startswith("baseline"):
                    reason = str(error).strip().partition("\n")[0][:120]
                    figures[name] = {"not_available": reason or type(error).__name__}
                    continue
                raise
            captured = self._captured(run) if graphs else None
            ready[name] = captured or run
            figures[name] = {"launch": "graph" if captured else "eager"}
        if self.dry:
            return {name: figure | {"p50_us": NOT_MEASURED} for name, figure in figures.items()}
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(rounds):
            for name, run in ready.items():
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                stop.record()
                stop.synchronize()
                times[name].append(1e3 * start.elapsed_time(stop))
        for name, taken in times.items():
            quantiles = torch.tensor(taken).quantile(torch.tensor([0.5, 0.2, 0.8])).tolist()
            figures[name] |= dict(zip(("p50_us", "p20_us", "p80_us"), quantiles, strict=True))
        return figures

    def _wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def _captured(self, run: Run) -> Run | None:
        """The run as a graph's replay; None where it waits for the device, as selection does."""
        if self.dry:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay


def require_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """MismatchError unless rms(got - want) is at most `tolerance` of rms(want), in float64."""
    got, want = got.detach().double(), want.detach().double()
    error = (got - want).square().mean().sqrt()
    relative = float(error / want.square().mean().sqrt().clamp_min(1e-30))
    if not relative <= tolerance:
        raise MismatchError(f"{name}: relative RMS error {relative:.2e}, allowed {tolerance:.0e}")


def require_equal(name: str, got: Tensor, want: Tensor) -> None:
    """MismatchError unless every entry is the same."""
    if not torch.equal(got, want):
        raise MismatchError(f"{name}: {int((got != want).sum())} of {want.numel()} entries differ")
