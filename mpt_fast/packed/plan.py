"""What runs where: one row per step, with the kernel, its lanes, predicted and measured time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpt_fast.packed.gpu.routes import choices, lanes
from mpt_fast.runtime import CompiledProgram, Model, Program, calibration, kernels, planner
from mpt_fast.runtime.program import Taps
from mpt_fast.runtime.work import Block, works


@dataclass(frozen=True)
class PlanStep:
    """One row of a plan. `kept` and `density` are None for steps without weights.

    `predicted` and `measured` are seconds for the plan's batch; None where there is no figure.
    """

    layer: str
    operations: str
    kernel: str
    lanes: int
    kept: int | None
    density: float | None
    kind: str
    output: tuple[int, ...]
    why: str
    predicted: float | None = None
    measured: float | None = None


@dataclass(frozen=True)
class Plan:
    """All steps of a packed model in order; prints as a table.

    Predicted times are the cost model's for `batch` images and `threads`, images in the lanes: none
    where a small batch runs with its pixels there; the last few images of a larger one are taken
    as if they did not. Measured ones are those of the last call, where that had the same batch and
    threads. A step that is joined into a later one has no time of its own.
    """

    steps: tuple[PlanStep, ...]
    backend: str
    isa: str
    batch: int
    threads: int

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as JSON-ready data."""
        return [asdict(step) for step in self.steps]

    @property
    def unsupported(self) -> tuple[PlanStep, ...]:
        """The rows that run in PyTorch because the engine has no step for them."""
        return tuple(step for step in self.steps if step.kernel == "pytorch")

    def __str__(self) -> str:
        head = ("layer", "operations", "kernel", "lanes", "kept", "density", "output",
                "predicted", "measured", "why")  # fmt: skip
        rows = [head] + [
            (
                step.layer,
                step.operations,
                step.kernel,
                str(step.lanes),
                "" if step.kept is None else str(step.kept),
                "" if step.density is None else f"{step.density:.3f}",
                f"{step.kind} {'x'.join(map(str, step.output))}",
                _milliseconds(step.predicted),
                _milliseconds(step.measured),
                step.why,
            )
            for step in self.steps
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self._title(), *(line.rstrip() for line in lines)])

    def _title(self) -> str:
        title = f"backend {self.backend} ({self.isa})"
        if all(step.predicted is None for step in self.steps):
            return title
        title += f", batch {self.batch}, threads {self.threads}"
        for what in ("predicted", "measured"):
            times = [getattr(step, what) for step in self.steps]
            if any(time is not None for time in times):
                title += f", {what} {_milliseconds(sum(time or 0.0 for time in times))}"
        return title


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f} ms"


def reference_rows(program: Program) -> list[PlanStep]:
    """One row per step of a program that runs on the float64 reference."""
    choice = planner.StepChoice("reference", "", "ground truth in float64", None)
    return _rows(program, [choice] * len(program.steps), 1)


def device_rows(program: Program, batch: int) -> list[PlanStep]:
    """One row per step of a program on the Triton executor, float32 images."""
    chosen = choices(program, "f32", batch)
    steps = [planner.StepChoice(c.route, "", c.why, c.seconds) for c in chosen]
    rows = _rows(program, steps, 1)
    kinds = program.values()[1:]
    return [replace(r, lanes=lanes(v, batch)) for r, v in zip(rows, kinds, strict=True)]


def engine_rows(model: Model, batch: int, threads: int) -> list[PlanStep]:
    """One row per step of a program on the engine, with its times."""
    program, compiled = model.program, model.compiled("f32")
    if compiled.uses_pixels(batch):
        chosen = _pixel_choices(program, compiled, batch)
    else:
        blocks = calibration.blocks(compiled, batch)
        costs = calibration.costs_of(compiled, batch, threads)
        chosen = planner.choices(program, compiled.computed_by(), blocks, costs)
    rows = _rows(program, chosen, compiled.lanes)
    last = compiled.last_run
    if last is None or (last.images, last.threads) != (batch, threads):
        return rows
    return [replace(r, measured=t or None) for r, t in zip(rows, last.step_times, strict=True)]


def _pixel_choices(
    program: Program, compiled: CompiledProgram, batch: int
) -> list[planner.StepChoice]:
    """A batch with its pixels in the lanes, of which the cost model knows nothing."""
    found = []
    apart = works(program, range(len(program.steps)))  # there nothing is joined
    for work, name in zip(apart, compiled.pixel_kernels(batch), strict=True):
        assert work is not None
        layouts = (kernels.CODE,) if name == "sparse code" else (kernels.LISTS, kernels.BITS)
        blocks = [Block(layout, lanes=64, groups=1, words=1) for layout in layouts]
        kernel = next(kernel for block in blocks for kernel in kernels.kernels_for(work, block))
        why = "small maps: two bytes a tap" if name == "sparse short lists" else kernel.why
        found.append(planner.StepChoice(f"{name or kernel.name}, pixels", kernel.case, why, None))
    return found


def _rows(program: Program, steps: Sequence[planner.StepChoice], lanes: int) -> list[PlanStep]:
    rows = []
    for step, choice, result in zip(program.steps, steps, program.values()[1:], strict=True):
        taps: Taps | None = getattr(step, "taps", None)
        rows.append(
            PlanStep(
                layer=step.name,
                operations=step.covers,
                kernel=choice.kernel,
                lanes=lanes,
                kept=None if taps is None else taps.kept,
                density=None if taps is None else taps.kept / taps.weights,
                kind=result.kind,
                output=result.shape,
                why=choice.why,
                predicted=choice.seconds,
            )
        )
    return rows
