"""Packed networks without PyTorch: the program, its file and its execution on NumPy arrays.

    from mpt_fast import runtime
    model = runtime.load("ticket.mpt")
    logits = model(images)            # float32 [N, C, H, W] -> float32 [N, classes]

Nothing here imports torch.
"""

from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.file import FileError, SizeReport, read_program, size_report, write_program
from mpt_fast.runtime.model import InputError, Model, check_shape, load
from mpt_fast.runtime.pixels import PixelError, Pixels
from mpt_fast.runtime.program import Program, ProgramError, Step, Taps, Value

__all__ = [
    "CompiledProgram",
    "FileError",
    "InputError",
    "Model",
    "PixelError",
    "Pixels",
    "Program",
    "ProgramError",
    "SizeReport",
    "Step",
    "Taps",
    "Value",
    "check_shape",
    "load",
    "read_program",
    "size_report",
    "write_program",
]
