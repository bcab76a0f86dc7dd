"""Which kernels run a program, and how long they take: the cost model prices every kernel of a
step, the cheapest wins.

All give the same result, so a bad estimate costs time and nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mpt_fast.runtime.kernels import Kernel, kernels_for
from mpt_fast.runtime.program import Program
from mpt_fast.runtime.work import Block, Work, works

Costs = Mapping[str, Sequence[float]]


class StepChoice(NamedTuple):
    """A step's kernel, its `case`, why it fits, and predicted seconds.

    None: no cost is known, or it is counted where the engine computes the step.
    """

    kernel: str
    case: str
    why: str
    seconds: float | None


def choices(
    program: Program, computed_by: Sequence[int], blocks: Sequence[Block], costs: Costs
) -> list[StepChoice]:
    """Of every step, for a batch cut into `blocks`.

    `computed_by`: as `CompiledProgram.computed_by`.
    """
    found = []
    for work, by in zip(works(program, computed_by), computed_by, strict=True):
        if work is not None:
            found.append(choose_kernel(work, blocks, costs))
        elif by < 0:
            found.append(StepChoice("none", "", "nothing reads it", None))
        else:
            name = program.steps[by].name or f"step {by}"
            found.append(StepChoice("joined", "", f"computed by {name}", None))
    return found


def choose_kernel(work: Work, blocks: Sequence[Block], costs: Costs) -> StepChoice:
    """The cheapest kernel in every block; the first one's is named."""
    total, first = 0.0, None
    for block in blocks:
        priced = [
            (seconds(kernel, work, block, costs), kernel) for kernel in kernels_for(work, block)
        ]
        if not priced:
            return StepChoice("engine", "", "no cost is known", None)
        price, kernel = min(priced, key=lambda pair: pair[0])
        first = first or kernel
        total += price
    assert first is not None
    return StepChoice(first.name, first.case, first.why, total)


def seconds(kernel: Kernel, work: Work, block: Block, costs: Costs) -> float:
    """Predicted seconds of `work` on `kernel` for one block."""
    counts = kernel.count(work, block)
    return sum(c * count for c, count in zip(costs[kernel.case], counts, strict=True))
