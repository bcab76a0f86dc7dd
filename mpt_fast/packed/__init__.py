"""Packing: trace a trained model, fuse it into a program of bits and sums, save it, run it.

    packed = mpt_fast.pack(model, example_input)
    logits = packed(images)
    packed.save("ticket.mpt")

What the engine runs, as modules, functions or methods: MPTConv2d, MPTLinear, nn.Conv2d and
nn.Linear (any stride, zero padding, dilation, groups, bias); batch norm with running statistics;
BinaryActivation, and torch.sign where no integer sum makes it 0; ReLU; max and average pooling,
adaptive average pooling to equal windows, the mean over height and width; additions, and scaling
or shifting by numbers or per-channel constants; flatten, view, reshape and squeeze that keep the
batch; dropout and identity. Anything else (Hardtanh, PReLU, concatenation, other padding modes,
...) runs in PyTorch between engine segments and is named in `packed.plan()`.

Numerics: the packed network equals the eager one evaluated in float64. Signs of integer sums are
decided by thresholds found with the eager formula itself, exactly. A real value that reaches a
sign is computed in float64, in another order than PyTorch's: only a real sum that is 0 up to its
rounding (relative 1e-16) can be decided otherwise. Other real values are computed in float32.
"""

from mpt_fast.packed.graph import PackError
from mpt_fast.packed.model import PackedModel, load, pack
from mpt_fast.packed.plan import Plan, PlanStep
from mpt_fast.packed.reference import run_reference

__all__ = [
    "PackError",
    "PackedModel",
    "Plan",
    "PlanStep",
    "load",
    "pack",
    "run_reference",
]
