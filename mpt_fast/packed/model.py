"""PackedModel: a packed network as an nn.Module; `pack` makes one, `load` reads one."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpt_fast import runtime
from mpt_fast.kernels import backend as backends
from mpt_fast.kernels.pack_bits.reference import WORD_BITS
from mpt_fast.packed.graph import InputNode, Node, PackError, Ref
from mpt_fast.packed.plan import Plan, PlanStep, device_rows, engine_rows, reference_rows
from mpt_fast.packed.quantize import quantize
from mpt_fast.packed.reference import run_reference
from mpt_fast.packed.segments import EngineStage, Stage, TorchStage, stages
from mpt_fast.packed.trace import trace
from mpt_fast.runtime import Model, PixelError, Pixels, Program, SizeReport
from mpt_fast.runtime.model import all_finite, check_dtype


class PackedModel(nn.Module):
    """A packed network: packed(x) with x float32, float64 or uint8 [N, *input_shape].

    x is on the CPU, or with backend="triton" on a GPU, where the first call of a batch size
    captures the whole network as a CUDA graph and an image with NaN or infinity gives NaN instead
    of an error, which would wait for the device. `to` and its kin drop the graphs.

    uint8 images are pixels 0..255, normalised by `pixels` where the network was packed with them.
    The result is float32 [N, *output_shape], as the eager model in float64 would give it, or near
    that where it was packed with 8-bit activations. It has no parameters and no gradient. Made by
    `pack` or `load`.
    """

    def __init__(
        self,
        stages: list[Stage],
        source: Node,
        output: Ref,
        input_shape: tuple[int, ...],
        backend: str | None = None,
        threads: int | None = None,
        pixels: Pixels | None = None,
        code: bool | None = None,
    ) -> None:
        super().__init__()
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise PackError(f"threads={threads!r} is not a positive number")
        self.backend = _choose(backend, stages)
        self.threads = threads
        self.pixels = pixels
        self.input_shape = input_shape
        self.output_shape: tuple[int, ...] = output.view or ()
        self._stages = stages
        self._source = source
        self._output = output.node
        self._on_devices: dict[torch.device, Callable[[Tensor], Tensor]] = {}
        self._last_images: int | None = None
        self._engines = {
            stage: Model(stage.program, code=code)
            for stage in stages
            if isinstance(stage, EngineStage) and self.backend == "cpu"
        }

        whole = len(stages) == len(self._engines) == 1
        self._whole = next(iter(self._engines.values())) if whole else None

    def forward(self, x: Tensor) -> Tensor:
        _check_images(x, self.input_shape, self.pixels, self.backend)
        batch = x.shape[0]
        if self.backend == "triton":
            return self._on_device(x.detach())
        if self._whole is not None:
            y = torch.from_numpy(self._on_engine(self._whole, x.detach()))
            y = y if y.dtype == torch.float32 else y.float()
            return y if y.shape[1:] == self.output_shape else y.reshape(batch, *self.output_shape)
        with torch.no_grad():
            return self._through_stages(x, batch)

    def _through_stages(self, x: Tensor, batch: int) -> Tensor:
        if x.dtype == torch.uint8:
            assert self.pixels is not None
            x = torch.from_numpy(self.pixels.normalize(x.numpy()))
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
        if x.dtype == torch.bool:  # a comparison that ran in PyTorch
            x = x.float()
        if stage not in self._engines:
            return run_reference(program, x.reshape(batch, *program.input))
        x = x.contiguous().reshape(batch, *program.input_shape)
        return torch.from_numpy(self._on_engine(self._engines[stage], x))

    def _on_engine(self, engine: Model, x: Tensor) -> NDArray:
        return engine.run(x.contiguous().numpy(), self.threads or torch.get_num_threads())

    def _on_device(self, x: Tensor) -> Tensor:
        """The Triton executor of x's device; on the CPU in the interpreter, without graphs."""
        batch = x.shape[0]
        if not batch:
            return x.new_zeros((0, *self.output_shape), dtype=torch.float32)
        if x.device not in self._on_devices:
            from mpt_fast.packed.gpu.executor import DeviceProgram
            from mpt_fast.packed.gpu.graphs import Captured, Graphs

            run = DeviceProgram(self.program, x.device)
            self._on_devices[x.device] = Graphs(run, Captured) if x.is_cuda else run
        self._last_images = batch
        return self._on_devices[x.device](x.reshape(batch, *self.program.input))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModel":
        self._on_devices.clear()
        return super()._apply(fn, recurse)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the loaded file carried along; empty for a network packed just now."""
        stage = self._stages[0] if len(self._stages) == 1 else None
        return dict(stage.program.metadata) if isinstance(stage, EngineStage) else {}

    @property
    def program(self) -> Program:
        """The whole network as one program; PackError naming what runs in PyTorch, if anything."""
        stage = _whole(self._stages, "it fits in no file: replace it and pack again")
        return stage.program

    def plan(self, batch: int | None = None) -> Plan:
        """What runs where and why, one row per step, with predicted and measured times.

        `batch`: images per call; None means the last call's, or one full block of lanes. The first
        plan of the C++ engine on a machine fits its cost model, which takes up to a second and is
        then kept (MPT_FAST_CACHE: see CONTRIBUTING.md). With backend="triton" a row says which
        route the cost table chose and where its times come from (`packed.gpu.routes`).
        """
        if batch is not None and batch < 1:
            raise PackError(f"batch={batch} is not a positive number")
        rows: list[PlanStep] = []
        if self.backend == "triton":
            batch = batch or self._last_images or WORD_BITS
            return Plan(tuple(device_rows(self.program, batch)), "triton", "CUDA", batch, 1)
        isa = "float64"
        engines = [engine.compiled("f32") for engine in self._engines.values()]
        threads = self.threads or torch.get_num_threads()
        if batch is None:
            runs = [engine.last_run.images for engine in engines if engine.last_run]
            batch = runs[0] if runs else max((engine.lanes for engine in engines), default=1)
        for stage in self._stages:
            if isinstance(stage, EngineStage):
                if stage in self._engines:
                    rows += engine_rows(self._engines[stage], batch, threads)
                    isa = self._engines[stage].compiled("f32").isa
                else:
                    rows += reference_rows(stage.program)
            elif not stage.node.bookkeeping:
                rows.append(self._torch_row(stage))
        return Plan(tuple(rows), self.backend, isa, batch, threads)

    @staticmethod
    def _torch_row(stage: TorchStage) -> PlanStep:
        return PlanStep(
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
            f"backend={self.backend!r}, stages={len(self._stages)}"
        )


def _choose(backend: str | None, stages: Sequence[Stage]) -> str:
    """The backend; PackError where Triton cannot take the whole network."""
    if backend != "triton":
        return backends.choose("packed model", backend, "cpu", ("cpu", "reference"))
    if not backends.triton_available():
        raise backends.BackendError(
            "packed model: backend 'triton' needs a GPU and the triton package"
        )
    parts = [s.node.name for s in stages if isinstance(s, TorchStage) and not s.node.bookkeeping]
    if parts or len(stages) != 1:
        raise PackError(
            f"{', '.join(parts) or 'a part'} runs in PyTorch on the CPU, which backend 'triton' "
            "cannot; use backend='cpu'"
        )
    (stage,) = (s for s in stages if isinstance(s, EngineStage))
    if any(value.kind in ("u8", "i8", "i16") for value in stage.program.values()):
        raise PackError("8-bit activations run on the C++ engine only; use backend='cpu'")
    return backend


@torch.no_grad()
def pack(
    model: nn.Module,
    example_input: Tensor,
    backend: str | None = None,
    threads: int | None = None,
    pixels: tuple[Sequence[float], Sequence[float]] | None = None,
    activations: str = "float",
    calibration: Tensor | Iterable[Tensor] | None = None,
    code: bool | None = None,
) -> PackedModel:
    """Packs a trained network: what it keeps as bits, what it computes as one program.

    `model`: any nn.Module that torch.fx can trace; tickets, and ordinary nn.Conv2d / nn.Linear
    whose weights are per output channel {-a, 0, +a} or have zeros. It is read in eval mode and
    left alone. `example_input` float [N, ...]: the packed network takes any number of such images.
    `backend`: None (the C++ engine where it is built, else the reference), "cpu", "reference" or
    "triton": the whole network on a GPU (`mpt_fast.packed.gpu`). It is checked in Triton's
    interpreter and not yet measured on a device, so None never chooses it; it takes no network of
    which a part runs in PyTorch.
    `threads`: None means torch.get_num_threads() at each call.
    `pixels`: (mean, std) per channel of pixels scaled to [0, 1], with which the network was
    trained; then the packed network also takes uint8 images, as (u/255 - mean)/std in float32
    (`runtime.Pixels`), with the decisions of the eager network on those.

    `activations`: "float", or "int8": the activations between the layers of a float network become
    8-bit integers and the result an approximation, faster at large batches (`packed.quantize`).
    `calibration`: for "int8", images [N, ...] as the packed network takes them, or a list of such
    batches; a few hundred of the training set are enough. Compare the accuracy of both.
    `code`: False keeps the C++ engine from making machine code of layers (`runtime.Model`).

    What the engine has no step for runs in PyTorch and is named in `plan()`. Raises PackError, in
    one line, for a model that cannot be traced, run on the example, or has NaN parameters; and for
    "int8" without calibration, with binary activations, with weights that are not one gain per
    channel times -1, 0 or +1, or with a part that runs in PyTorch.
    """
    if not isinstance(model, nn.Module):
        raise PackError(f"pack takes an nn.Module, not {type(model).__name__}")
    known = None if pixels is None else _pixels(pixels)
    if activations not in ("float", "int8"):
        raise PackError(f"activations={activations!r} is neither 'float' nor 'int8'")
    if (activations == "int8") != (calibration is not None):
        raise PackError(
            "activations='int8' needs calibration images"
            if calibration is None
            else "calibration is for activations='int8' only"
        )
    graph = trace(model, example_input)
    if known is not None and known.channels != graph.input.shape[0]:
        raise PackError(
            f"pixels has {known.channels} channels, the network takes {graph.input.shape[0]}"
        )
    parts = stages(graph)
    for part in parts:
        if isinstance(part, EngineStage) and part.source is graph.input:
            part.program = replace(part.program, pixels=known)

    if calibration is not None:
        stage = _whole(parts, "8-bit activations need the engine for every layer; replace it")
        batches = _calibration(calibration, graph.input_view, known)
        stage.program = quantize(stage.program, batches)
    return PackedModel(
        parts, graph.input, graph.output, graph.input_view, backend, threads, known, code
    )


def _whole(parts: Sequence[Stage], remedy: str) -> EngineStage:
    """The only stage; PackError naming what runs in PyTorch, if anything."""
    unsupported = [
        part.node for part in parts if isinstance(part, TorchStage) and not part.node.bookkeeping
    ]
    if unsupported or len(parts) != 1:
        names = ", ".join(f"{node.name} ({node.operation})" for node in unsupported)
        raise PackError(f"{names} runs in PyTorch; {remedy}")
    stage = parts[0]
    assert isinstance(stage, EngineStage)
    return stage


def _check_images(
    x: Tensor, shape: tuple[int, ...], pixels: Pixels | None, backend: str = "cpu"
) -> None:
    """Raises InputError unless `x` is a batch that a network of these takes."""
    if not (isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float64)):
        check_dtype(x, isinstance(x, Tensor), "tensor", pixels)
    if backend == "triton":
        if not (x.is_cuda or backends.interpreted()):
            raise runtime.InputError(
                f"input is on {x.device}; backend 'triton' runs on a GPU: x.cuda()"
            )
    elif x.device.type != "cpu":
        raise runtime.InputError(
            f"input is on {x.device}; a packed model runs on the CPU, or on a GPU where it was "
            "packed with backend='triton'"
        )
    runtime.check_shape(x.shape, shape)
    if x.is_cuda:  # the executor marks such images in the result
        return
    if x.dtype != torch.uint8 and not all_finite(x.detach().numpy()):
        raise runtime.InputError("input has NaN or infinite values; clean it before the call")


def _calibration(
    images: Tensor | Iterable[Tensor], shape: tuple[int, ...], pixels: Pixels | None
) -> Iterator[Tensor]:
    """Batches of float images, checked as those of a call are."""
    for batch in [images] if isinstance(images, Tensor) else images:
        try:
            _check_images(batch, shape, pixels)
        except runtime.InputError as error:
            raise PackError(f"calibration: {error}") from None
        if batch.dtype == torch.uint8:
            assert pixels is not None
            batch = torch.from_numpy(pixels.normalize(batch.numpy()))
        yield batch


def _pixels(pixels: Any) -> Pixels:
    try:
        mean, std = pixels
    except (TypeError, ValueError):
        raise PackError("pixels is not a pair (mean, std) of numbers per channel") from None
    try:
        return Pixels(mean, std)
    except PixelError as error:
        raise PackError(str(error)) from None


def load(
    path: str | os.PathLike,
    backend: str | None = None,
    threads: int | None = None,
    code: bool | None = None,
) -> PackedModel:
    """Reads a packed file; raises FileError, in one line, unless it is whole and unaltered.

    `backend`, `threads` and `code` are as in `pack`.
    """
    program = runtime.read_program(path)
    source = InputNode("input", program.input)
    target = Node("output", program.values()[program.output].shape)
    stage = EngineStage(program, source, target)
    output = Ref(target, program.output_shape)
    return PackedModel(
        [stage], source, output, program.input_shape, backend, threads, program.pixels, code
    )
