"""Which layout and kernels run a program: every way is priced by the cost model, the cheapest wins.

A way is one layout of the lanes for the whole program and, in it, one kernel per step. All give
the same result, so a bad estimate costs time and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mpt_fast.runtime.kernels import LAYOUTS, Block, Kernel, Sources, kernels_for
from mpt_fast.runtime.program import Program, Step, Value


class StepChoice(NamedTuple):
    """A step's kernel, its `case`, why it fits, and predicted seconds (None: no cost is known)."""

    kernel: str
    case: str
    why: str
    seconds: float | None


@dataclass(frozen=True)
class Way:
    """One way to run a program: a layout and a kernel per step."""

    layout: str
    steps: tuple[StepChoice, ...]

    @property
    def seconds(self) -> float:
        """Predicted time of all steps whose cost is known."""
        return sum(step.seconds for step in self.steps if step.seconds is not None)

    @property
    def complete(self) -> bool:
        """True if every step's cost is known."""
        return all(step.seconds is not None for step in self.steps)


def ways(
    program: Program,
    blocks: Mapping[str, Sequence[Block]],
    costs: Mapping[str, Sequence[float]],
) -> list[Way]:
    """One way per layout in `blocks` (the blocks a batch is cut into), cheapest first.

    A layout in which some step has no known cost stands behind those that are complete.
    """
    values = program.values()
    found = []
    for layout in LAYOUTS:
        if layout not in blocks:
            continue
        choices = [
            choose_kernel(step, [values[s] for s in step.sources()], result, layout,
                          blocks[layout], costs)
            for step, result in zip(program.steps, values[1:], strict=True)
        ]  # fmt: skip
        found.append(Way(layout, tuple(choices)))
    return sorted(found, key=lambda way: (not way.complete, way.seconds))


def choose_kernel(
    step: Step,
    sources: Sources,
    result: Value,
    layout: str,
    blocks: Sequence[Block],
    costs: Mapping[str, Sequence[float]],
) -> StepChoice:
    """The cheapest kernel of one step in one layout."""
    priced = [
        StepChoice(
            kernel.name,
            kernel.case,
            kernel.why,
            seconds(kernel, step, sources, result, blocks, costs),
        )
        for kernel in kernels_for(step, sources, result, layout)
    ]
    if not priced:
        return StepChoice("engine", "", "no cost is known", None)
    return min(priced, key=lambda choice: choice.seconds or 0.0)


def seconds(
    kernel: Kernel,
    step: Step,
    sources: Sources,
    result: Value,
    blocks: Sequence[Block],
    costs: Mapping[str, Sequence[float]],
) -> float:
    """Predicted seconds of `step` on `kernel` over all blocks of a batch."""
    return sum(
        coefficient * count
        for block in blocks
        for coefficient, count in zip(
            costs[kernel.case], kernel.count(step, sources, result, block), strict=True
        )
    )
