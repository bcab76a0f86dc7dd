"""Contract of sparse_linear: product of a float matrix with kept taps.

    out[n, o] = bias[o] + sum over the taps i of output o of value * x[n, i]

int8 taps are +1 or -1 and only add and subtract; real taps multiply and are rounded to the dtype
of x first. Sums are formed in the dtype of x, in an order that the backend chooses. There is no
gradient: the operation runs trained networks. Where x holds NaN or infinity the result is not
specified: some backends multiply it by the pruned zeros, others never read it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import check_tensor, make_geometry
from mpt_fast.kernels.interop import as_array, optional_array, run_options, tap_arrays
from mpt_fast.kernels.sparse_linear import reference
from mpt_fast.kernels.taps import Taps

BACKENDS = ("triton", "cpu", "reference")

_POINTWISE = make_geometry()


def _checked_taps(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    bias: Tensor | None,
) -> Taps:
    outputs, inputs, kh, kw = shape
    taps = Taps(indptr, index, value, (outputs, inputs, kh, kw))
    taps.check(x.device)
    if (kh, kw) != (1, 1):
        raise ValueError(f"a linear layer's taps have 1x1 kernels, got {kh}x{kw}")
    check_tensor(x, "x", (torch.float32, torch.float64), (None, inputs))
    if bias is not None:
        check_tensor(bias, "bias", x.dtype, (outputs,), x.device)
    return taps


@torch.library.custom_op("mpt_fast::sparse_linear", mutates_args=())
def _sparse_linear(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    taps = _checked_taps(x, indptr, index, value, shape, bias)
    operation = costs.typed("sparse_linear", x.dtype)
    case = costs.product(operation, x.shape[0], taps.shape, index.shape[0])
    chosen = choose("sparse_linear", backend, x.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.sparse_linear import triton

        return triton.run(x, triton.prepare(taps), bias).contiguous()
    if chosen == "cpu":
        out = cpu.engine().sparse_conv2d(
            as_array(x)[:, :, None, None],
            *tap_arrays(taps),
            optional_array(bias),
            *_POINTWISE,
            **run_options(),
        )
        return torch.from_numpy(out[:, :, 0, 0])
    return reference.sparse_linear(x, taps, bias)


@_sparse_linear.register_fake
def _(
    x: Tensor,
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    _checked_taps(x, indptr, index, value, shape, bias)
    return x.new_empty((x.shape[0], shape[0]))


def sparse_linear(
    x: Tensor, taps: Taps, bias: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Product of `x` with the kept taps only (formula: see the module).

    Args:
        x: float32 or float64 [N, I], any strides.
        taps: int8 or real taps of shape (O, I, 1, 1).
        bias: [O] in the dtype of x, or None.
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        Contiguous [N, O] in the dtype of x.

    Raises:
        ValueError: operands that do not fit each other, or a malformed tap list.
        BackendError: an explicit backend that cannot run.
    """
    return _sparse_linear(x, *taps, bias, backend)
