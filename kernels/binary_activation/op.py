"""binary_activation: y = +1 where x >= 0, else -1 (so sign(0) = +1, and NaN gives -1).

The gradient is the derivative of the piecewise quadratic that approximates the sign:
dL/dx = dL/dy * 2 (1 - abs(x)) for abs(x) <= 1, else 0. Any shape, floating dtype, memory format
kept. Backend: "reference".
"""

from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.binary_activation import reference

BACKENDS = ("reference",)


def binary_activation(x: Tensor, backend: str | None = None) -> Tensor:
    """+1 where x >= 0, else -1, with the gradient in the module's docstring.

    Raises TypeError for an x that is not floating.
    """
    if not x.is_floating_point():
        raise TypeError(f"binary_activation: x must be floating, got {x.dtype}; call x.float()")
    return BinaryActivationFunction.apply(x, backend)


@torch.library.custom_op("mpt_fast::binary_activation", mutates_args=())
def _binary_activation(x: Tensor, backend: str | None = None) -> Tensor:
    choose("binary_activation", backend, x.device.type, BACKENDS)
    return reference.binary_activation(x)


@_binary_activation.register_fake
def _(x: Tensor, backend: str | None = None) -> Tensor:
    return reference.binary_activation(x)


class BinaryActivationFunction(torch.autograd.Function):
    """The gradient of binary_activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str | None) -> Tensor:
        ctx.save_for_backward(x)
        return _binary_activation(x, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return reference.binary_activation_backward(grad, x), None
