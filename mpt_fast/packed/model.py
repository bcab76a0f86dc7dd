"""PackedModel: a packed network as an nn.Module; `pack` makes one, `load` reads one."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpt_fast import runtime
from mpt_fast.kernels import backend as backends
from mpt_fast.packed.graph import InputNode, Node, PackError, Ref
from mpt_fast.packed.plan import Plan, PlanStep, RulePlanner, program_rows
from mpt_fast.packed.reference import run_reference
from mpt_fast.packed.segments import EngineStage, Stage, stages
from mpt_fast.packed.trace import trace
from mpt_fast.runtime import Model, Program, SizeReport


class PackedModel(nn.Module):
    """A packed network: packed(x) with x float32 or float64 [N, *input_shape] on the CPU.

    The result is float32 [N, *output_shape], as the eager model in float64 would give it. It has
    no parameters and no gradient. Made by `pack` or `load`.
    """

    def __init__(
        self,
        stages: list[Stage],
        source: Node,
        output: Ref,
        input_shape: tuple[int, ...],
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise PackError(f"threads={threads!r} is not a positive number")
        self.backend = backends.choose("packed model", backend, "cpu", ("cpu", "reference"))
        self.threads = threads
        self.input_shape = input_shape
        self.output_shape: tuple[int, ...] = output.view or ()
        self._stages = stages
        self._source = source
        self._output = output.node
        self._engines = {
            stage: Model(stage.program)
            for stage in stages
            if isinstance(stage, EngineStage) and self.backend == "cpu"
        }

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        batch = x.shape[0]
        values: dict[Node, object] = {self._source: x.detach()}
        for stage in self._stages:
            if isinstance(stage, EngineStage):
                values[stage.target] = self._run(stage, values[stage.source], batch)
                continue
            arguments = [
                value.reshape(batch, *view) if isinstance(value, Tensor) and view else value
                for value, view in zip(
                    (values[source] for source in stage.sources), stage.node.views, strict=True
                )
            ]
            values[stage.node] = stage.node.call(stage.dtype, arguments)
        result = values[self._output]
        assert isinstance(result, Tensor)
        return result.reshape(batch, *self.output_shape).float()

    def _run(self, stage: EngineStage, x: object, batch: int) -> Tensor:
        assert isinstance(x, Tensor)
        program = stage.program
        x = x if x.is_floating_point() else x.float()  # a comparison that ran in PyTorch
        if stage not in self._engines:
            return run_reference(program, x.reshape(batch, *program.input))
        x = x.contiguous().reshape(batch, *program.input_shape)
        threads = self.threads or torch.get_num_threads()
        return torch.from_numpy(self._engines[stage].run(x.numpy(), threads))

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            what = f"a {x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
            raise runtime.InputError(f"input is {what}; give a float32 or float64 tensor")
        if x.device.type != "cpu":
            raise runtime.InputError(f"input is on {x.device}; a packed model runs on the CPU")
        runtime.check_shape(tuple(x.shape), self.input_shape)
        if not torch.isfinite(x).all():
            raise runtime.InputError("input has NaN or infinite values; clean it before the call")

    @property
    def metadata(self) -> dict[str, Any]:
        """What the loaded file carried along; empty for a network packed just now."""
        stage = self._stages[0] if len(self._stages) == 1 else None
        return dict(stage.program.metadata) if isinstance(stage, EngineStage) else {}

    @property
    def program(self) -> Program:
        """The whole network as one program; PackError naming what runs in PyTorch, if anything."""
        unsupported = self.plan().unsupported
        if unsupported or len(self._stages) != 1:
            names = ", ".join(f"{step.layer} ({step.operations})" for step in unsupported)
            raise PackError(
                f"{names} runs in PyTorch and fits in no file; replace it and pack again"
            )
        stage = self._stages[0]
        assert isinstance(stage, EngineStage)
        return stage.program

    def plan(self) -> Plan:
        """What runs where and why, one row per step."""
        rows: list[PlanStep] = []
        isa = "float64"
        for stage in self._stages:
            if isinstance(stage, EngineStage):
                lanes = 1
                if stage in self._engines:
                    compiled = self._engines[stage].compiled("f32")
                    lanes, isa = compiled.lanes, compiled.isa
                rows += program_rows(stage.program, RulePlanner(self.backend, lanes))
            elif not stage.node.bookkeeping:
                rows.append(
                    PlanStep(
                        layer=stage.node.name,
                        operations=stage.node.operation,
                        kernel="pytorch",
                        lanes=1,
                        kept=None,
                        density=None,
                        kind="f64" if stage.dtype == torch.float64 else "f32",
                        output=stage.node.shape,
                        why=stage.node.reason,
                    )
                )
        return Plan(tuple(rows), self.backend, isa)

    def size_report(self) -> SizeReport:
        """Bytes of the file that `save` would write; PackError where it would refuse."""
        return runtime.size_report(self.program)

    def save(
        self, path: str | os.PathLike, metadata: Mapping[str, Any] | None = None
    ) -> SizeReport:
        """Writes the packed file in one go (all or nothing) and says where its bytes went.

        `metadata`: JSON data for the file to carry along; None keeps what a loaded file had.
        Raises PackError naming what runs in PyTorch, FileError where `path` cannot be written.
        """
        program = self.program
        if metadata is not None:
            program = replace(program, metadata=dict(metadata))
        return runtime.write_program(program, path)

    def extra_repr(self) -> str:
        return (
            f"input={list(self.input_shape)}, output={list(self.output_shape)}, "
            f"backend={self.backend!r}, steps={len(self.plan().steps)}"
        )


@torch.no_grad()
def pack(
    model: nn.Module,
    example_input: Tensor,
    backend: str | None = None,
    threads: int | None = None,
) -> PackedModel:
    """Packs a trained network: what it keeps as bits, what it computes as one program.

    `model`: any nn.Module that torch.fx can trace; tickets, and ordinary nn.Conv2d / nn.Linear
    whose weights are per output channel {-a, 0, +a} or have zeros. It is read in eval mode and
    left alone. `example_input` float [N, ...]: the packed network takes any number of such images.
    `backend`: None (the C++ engine where it is built, else the reference), "cpu" or "reference".
    `threads`: None means torch.get_num_threads() at each call.

    What the engine has no step for runs in PyTorch and is named in `plan()`. Raises PackError, in
    one line, for a model that cannot be traced, run on the example, or has NaN parameters.
    """
    if not isinstance(model, nn.Module):
        raise PackError(f"pack takes an nn.Module, not {type(model).__name__}")
    graph = trace(model, example_input)
    return PackedModel(stages(graph), graph.input, graph.output, graph.input_view, backend, threads)


def load(
    path: str | os.PathLike, backend: str | None = None, threads: int | None = None
) -> PackedModel:
    """Reads a packed file; raises FileError, in one line, unless it is whole and unaltered."""
    program = runtime.read_program(path)
    source = InputNode("input", program.input)
    target = Node("output", program.values()[program.output].shape)
    stage = EngineStage(program, source, target)
    output = Ref(target, program.output_shape)
    return PackedModel([stage], source, output, program.input_shape, backend, threads)
