"""What runs where: one row per step, with the kernel, its lanes and the reason.

A Planner says which kernel a step runs on. `RulePlanner` knows the one kernel per kind of step
that the engine has today; a planner with a cost model fitted on the machine has the same face.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from mpt_fast.runtime.program import (
    Combine,
    Conv,
    ConvAffine,
    ConvSign,
    Flatten,
    Program,
    Step,
    Taps,
    Value,
)


class Choice(NamedTuple):
    """A kernel, the images it computes side by side, and why it was chosen."""

    kernel: str
    lanes: int
    why: str


class Planner(Protocol):
    """Chooses the kernel of a step from its sources and result."""

    def choose(self, step: Step, sources: Sequence[Value], result: Value) -> Choice:
        """The choice for one step."""
        ...


@dataclass(frozen=True)
class RulePlanner:
    """One kernel per kind of step, by the kinds of its values."""

    backend: str
    lanes: int

    def choose(self, step: Step, sources: Sequence[Value], result: Value) -> Choice:
        """The kernel the backend runs `step` on."""
        if self.backend == "reference":
            return Choice("reference", 1, "ground truth in float64")
        if isinstance(step, Conv | ConvSign | ConvAffine):
            if sources[0].kind == "bits":
                return Choice("bit-sliced", self.lanes, "+-1 inputs and taps: counts bits")
            taps = "+-1 taps add and subtract" if step.taps.binary else "float taps multiply"
            return Choice("sparse", self.lanes, f"{sources[0].kind} inputs: {taps}")
        if isinstance(step, Flatten):
            return Choice("free", self.lanes, "lanes are images, so nothing moves")
        if isinstance(step, Combine):
            return Choice("elementwise", self.lanes, f"joins or converts to {result.kind}")
        return Choice("pool", self.lanes, f"window over {sources[0].kind}")


@dataclass(frozen=True)
class PlanStep:
    """One row of a plan. `kept` and `density` are None for steps without weights."""

    layer: str
    operations: str
    kernel: str
    lanes: int
    kept: int | None
    density: float | None
    kind: str
    output: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Plan:
    """All steps of a packed model in order; prints as a table."""

    steps: tuple[PlanStep, ...]
    backend: str
    isa: str

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as JSON-ready data."""
        return [asdict(step) for step in self.steps]

    @property
    def unsupported(self) -> tuple[PlanStep, ...]:
        """The rows that run in PyTorch because the engine has no step for them."""
        return tuple(step for step in self.steps if step.kernel == "pytorch")

    def __str__(self) -> str:
        head = ("layer", "operations", "kernel", "lanes", "kept", "density", "output", "why")
        rows = [head] + [
            (
                step.layer,
                step.operations,
                step.kernel,
                str(step.lanes),
                "" if step.kept is None else str(step.kept),
                "" if step.density is None else f"{step.density:.3f}",
                f"{step.kind} {'x'.join(map(str, step.output))}",
                step.why,
            )
            for step in self.steps
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(
            [f"backend {self.backend} ({self.isa})", *(line.rstrip() for line in lines)]
        )


def program_rows(program: Program, planner: Planner) -> list[PlanStep]:
    """One row per step of `program`."""
    rows = []
    values = program.values()
    for step, result in zip(program.steps, values[1:], strict=True):
        choice = planner.choose(step, [values[source] for source in step.sources()], result)
        taps: Taps | None = getattr(step, "taps", None)
        rows.append(
            PlanStep(
                layer=step.name,
                operations=step.covers,
                kernel=choice.kernel,
                lanes=choice.lanes,
                kept=None if taps is None else taps.kept,
                density=None if taps is None else taps.kept / taps.weights,
                kind=result.kind,
                output=result.shape,
                why=choice.why,
            )
        )
    return rows
