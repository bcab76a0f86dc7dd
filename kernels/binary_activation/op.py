"""binary_activation: y = +1 where x >= 0, else -1 (so sign(0) = +1, and NaN gives -1).

The gradient is the derivative of the piecewise quadratic that approximates the sign:
dL/dx = dL/dy * 2 (1 - abs(x)) for abs(x) <= 1, else 0. Any shape, floating dtype, memory format
kept.

Backends: "reference", "triton" and "cpu" (C++; float32 and bfloat16, other dtypes run the
reference), both one pass each way. In narrow dtypes they round the gradient once, the reference
after each operation.
"""

from typing import Any

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.binary_activation import reference

BACKENDS = ("triton", "cpu", "reference")
_ENGINE_DTYPES = (torch.float32, torch.bfloat16)


def binary_activation(x: Tensor, backend: str | None = None) -> Tensor:
    """+1 where x >= 0, else -1, with the gradient in the module's docstring.

    Raises TypeError for an x that is not floating.
    """
    if not x.is_floating_point():
        raise TypeError(f"binary_activation: x must be floating, got {x.dtype}; call x.float()")
    return BinaryActivationFunction.apply(x, backend)


@torch.library.custom_op("mpt_fast::binary_activation", mutates_args=())
def _binary_activation(x: Tensor, backend: str | None = None) -> Tensor:
    chosen = choose("binary_activation", backend, x.device.type, BACKENDS, _cost_case(x))
    if chosen == "triton":
        from mpt_fast.kernels.binary_activation import triton

        out = torch.empty_like(x)
        triton.binary_activation_fwd(_flat(x, out), _flat(out, out))
        return out
    if chosen == "cpu" and x.dtype in _ENGINE_DTYPES:
        out = torch.empty_like(x)
        x, buffer = _flat(x, out), _flat(out, out)
        cpu.engine().binary_activation(_array(x), _array(buffer), torch.get_num_threads())
        return out
    return reference.binary_activation(x)


@_binary_activation.register_fake
def _(x: Tensor, backend: str | None = None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mpt_fast::binary_activation_backward", mutates_args=())
def _binary_activation_backward(grad: Tensor, x: Tensor, backend: str | None = None) -> Tensor:
    chosen = choose("binary_activation", backend, x.device.type, BACKENDS, _cost_case(x))
    if chosen == "triton":
        from mpt_fast.kernels.binary_activation import triton

        out = torch.empty_like(x)
        grad = _flat(grad.to(x.dtype), out)
        triton.binary_activation_bwd(grad, _flat(x, out), _flat(out, out))
        return out
    if chosen == "cpu" and x.dtype in _ENGINE_DTYPES and grad.dtype == x.dtype:
        out = torch.empty_like(x)
        grad, x, buffer = _flat(grad, out), _flat(x, out), _flat(out, out)
        cpu.engine().binary_activation_backward(
            _array(grad), _array(x), _array(buffer), torch.get_num_threads()
        )
        return out
    return torch.empty_like(x).copy_(reference.binary_activation_backward(grad, x))


@_binary_activation_backward.register_fake
def _(grad: Tensor, x: Tensor, backend: str | None = None) -> Tensor:
    return torch.empty_like(x)


class BinaryActivationFunction(torch.autograd.Function):
    """The gradient of binary_activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.backend = backend
        return _binary_activation(x, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _binary_activation_backward(grad, x, ctx.backend), None


def _flat(tensor: Tensor, out: Tensor) -> Tensor:
    """The elements in the order in which `out` (dense, from empty_like) holds them in memory."""
    order = sorted(range(out.dim()), key=out.stride, reverse=True)
    return tensor.detach().permute(order).contiguous().view(-1)


def _array(flat: Tensor) -> Any:
    """A NumPy view; NumPy has no bfloat16, which travels as its 16 bits."""
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _cost_case(x: Tensor) -> costs.Case:
    return costs.elements(costs.typed("binary_activation", x.dtype), x.numel())
