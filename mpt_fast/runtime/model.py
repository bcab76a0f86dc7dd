"""Running a packed file on NumPy arrays."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpt_fast.kernels import cpu
from mpt_fast.runtime.container import read_whole
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.file import SizeReport, parse_program, size_report
from mpt_fast.runtime.pixels import Pixels
from mpt_fast.runtime.program import Kind, Program, Taps

_REALS = (np.dtype(np.float32), np.dtype(np.float64))


class InputError(ValueError):
    """An array given to a packed network has the wrong shape, dtype or values."""


class Model:
    """A packed network on the C++ engine; call it with arrays [N, *input_shape].

    `threads` is the number of threads of a call; None means OMP_NUM_THREADS, or every processor
    this process may use. `read` gives the program again: with it the model keeps nothing that it
    does not run, and `program` is read anew whenever something asks for it.

    A network of floats or 8-bit activations alone runs as machine code made from its taps
    where the processor has AVX2 or AVX-512 and the system lets a process run what it wrote.
    Elsewhere, and with `code=False`, it runs from lists of taps: slower, with the same results
    (floats: but for the order in which they are added up), without the 4 to 10 bytes of code
    per +-1 tap (floats: 20 to 30). With AVX-512 and more than 256 images, so do binary
    convolutions of a binary result and few taps, at about 22 bytes of code a tap.
    """

    def __init__(
        self,
        program: Program,
        threads: int | None = None,
        read: Callable[[], Program] | None = None,
        code: bool | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads={threads} is not a positive number")
        self.threads = threads
        self.input_shape = program.input_shape
        """Shape of one input image."""
        self.output_shape = program.output_shape
        """Shape of one result."""
        self.pixels = program.pixels
        """What uint8 images stand for (`Pixels`); None where the file does not say."""
        self._read = read or (lambda: program)
        self._input = program.input
        self._result_kind = program.values()[program.output].kind
        self._metadata = dict(program.metadata)
        self._code = code
        first = CompiledProgram(program, "f32", code=code)
        self._compiled: dict[Kind, CompiledProgram] = {"f32": first}

    @property
    def program(self) -> Program:
        """The steps and their weights."""
        return self._read()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file carries along for its user; empty where there is nothing."""
        return dict(self._metadata)

    def compiled(self, kind: Kind) -> CompiledProgram:
        """The engine's program for inputs of `kind`, built at first use."""
        if kind not in self._compiled:
            self._compiled[kind] = CompiledProgram(self.program, kind, code=self._code)
        return self._compiled[kind]

    def __call__(self, x: NDArray) -> NDArray[np.float32]:
        """float32, float64 or uint8 [N, *input_shape] -> float32 [N, *output_shape].

        uint8 images are pixels, normalised as the file says; InputError where it does not.
        """
        # What a call of one image does here takes longer than it seems: whatever PyTorch or the
        # network does in between takes Python out of the caches.
        if not (isinstance(x, np.ndarray) and x.dtype in _REALS):
            check_dtype(x, isinstance(x, np.ndarray), "array", self.pixels)
        check_shape(x.shape, self.input_shape)
        if x.dtype != np.uint8 and not all_finite(x):
            raise InputError("input has NaN or infinite values; clean it before the call")
        y = self.run(x, self.threads or cpu.default_threads())
        return y if y.dtype == np.float32 else y.astype(np.float32)

    def run(self, x: NDArray, threads: int) -> NDArray:
        """Like a call, without the checks, in the kind of the program's result."""
        batch = x.shape[0]
        if batch == 0:
            dtype = np.float64 if self._result_kind == "f64" else np.float32
            return np.zeros((0, *self.output_shape), dtype)
        if x.shape[1:] != self._input:
            x = x.reshape(batch, *self._input)
        if not x.flags.c_contiguous:
            x = np.ascontiguousarray(x)
        y = self.compiled("f64" if x.dtype == np.float64 else "f32")(x, threads)
        return y if y.shape[1:] == self.output_shape else y.reshape(batch, *self.output_shape)

    def size_report(self) -> SizeReport:
        """Bytes of the packed file and of each of its parts."""
        return size_report(self.program)

    def layers(self) -> list[dict[str, Any]]:
        """One row per step: name, op, what it covers, kept taps, density, result."""
        program, rows = self.program, []
        for step, value in zip(program.steps, program.values()[1:], strict=True):
            taps: Taps | None = getattr(step, "taps", None)
            rows.append(
                {
                    "name": step.name,
                    "op": step.op,
                    "covers": step.covers,
                    "kept": taps.kept if taps else None,
                    "density": taps.kept / taps.weights if taps else None,
                    "kind": value.kind,
                    "output": value.shape,
                }
            )
        return rows


def check_dtype(x: Any, is_array: bool, what: str, pixels: Pixels | None) -> None:
    """Raises InputError unless `x` is an array (a `what`) of a dtype that the network takes."""
    name = str(x.dtype).removeprefix("torch.") if is_array else None
    if name == "uint8" and pixels is None:
        raise InputError(
            "input is uint8, but this network was packed without its pixel normalisation; give "
            f"a float {what}, or pack it with pixels=(mean, std)"
        )
    if name not in ("float32", "float64", "uint8"):
        given = f"a {x.dtype} {what}" if is_array else type(x).__name__
        raise InputError(f"input is {given}; give a float32, float64 or uint8 {what}")


def all_finite(x: NDArray) -> bool:
    """True if no entry of `x` is NaN or infinite."""
    if cpu.available() and x.flags.c_contiguous:
        return cpu.engine().all_finite(x)
    return bool(np.isfinite(x).all())


def check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises InputError unless `shape` is a batch of images of shape `expected`."""
    if len(shape) != len(expected) + 1 or tuple(shape[1:]) != expected:
        wanted = ", ".join(map(str, expected))
        raise InputError(f"input has shape {list(shape)}; this network takes [N, {wanted}]")


def load(
    path: str | os.PathLike,
    backend: str | None = None,
    threads: int | None = None,
    code: bool | None = None,
) -> Model:
    """Reads, checks and compiles the packed file at `path`.

    `backend` is None or "cpu", the C++ engine: the only one that runs without PyTorch. `threads`
    and `code` are as in `Model`. Raises FileError for a bad file, EngineMissing where the engine
    is not built.
    """
    if backend == "reference":
        raise InputError("backend 'reference' needs PyTorch; use mpt_fast.load(path, 'reference')")
    if backend not in (None, "cpu"):
        raise InputError(f"unknown backend {backend!r}; the runtime has 'cpu'")
    content = read_whole(path)

    def read() -> Program:
        return parse_program(content, path)

    model = Model(read(), threads, read, code)
    cpu.engine().trim_memory()  # the program's arrays are gone; an allocator would keep their pages
    return model
