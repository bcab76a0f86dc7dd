"""Contract of xnor_linear: popcount linear layer.

    S[n, o] = sum over words w of 2 * popcount(~(x[n, w] ^ sign[o, w]) & mask[o, w])
                                   - popcount(mask[o, w])

Bits follow `pack_bits`: 1 stands for +1, 0 for -1; a mask bit is 1 where the weight is kept. Sign
bits outside the mask, and input bits past the layer's inputs (mask 0), mean nothing. Exact; no
gradient.
"""

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import check_tensor
from mpt_fast.kernels.interop import as_array, run_options
from mpt_fast.kernels.pack_bits.reference import pack_bits
from mpt_fast.kernels.taps import Taps
from mpt_fast.kernels.xnor_linear import reference

BACKENDS = ("triton", "cpu", "reference")


def _check_operands(x: Tensor, sign: Tensor, mask: Tensor) -> None:
    check_tensor(x, "x", torch.int64, (None, None))
    check_tensor(sign, "sign", torch.int64, (None, x.shape[1]), x.device)
    check_tensor(mask, "mask", torch.int64, tuple(sign.shape), x.device)


@torch.library.custom_op("mpt_fast::xnor_linear", mutates_args=())
def _xnor_linear(x: Tensor, sign: Tensor, mask: Tensor, backend: str | None = None) -> Tensor:
    _check_operands(x, sign, mask)
    case = costs.product("xnor_linear", x.shape[0], sign.shape)
    chosen = choose("xnor_linear", backend, x.device.type, BACKENDS, case)
    if chosen == "triton":
        from mpt_fast.kernels.xnor_linear import triton

        return triton.xnor_linear(x, sign, mask)
    if chosen == "cpu":
        sums = cpu.engine().xnor_linear(*map(as_array, (x, sign, mask)), **run_options())
        return torch.from_numpy(sums)
    return reference.xnor_linear(x, sign, mask)


@_xnor_linear.register_fake
def _(x: Tensor, sign: Tensor, mask: Tensor, backend: str | None = None) -> Tensor:
    _check_operands(x, sign, mask)
    return x.new_empty((x.shape[0], sign.shape[0]), dtype=torch.int32)


def pack_weight(taps: Taps) -> tuple[Tensor, Tensor]:
    """(sign, mask), int64 [O, ceil(I/64)] each, of int8 taps of shape (O, I, 1, 1).

    Raises ValueError for real taps, a kernel other than 1x1, or a malformed tap list.
    """
    if tuple(taps.shape[2:]) != (1, 1) or taps.value.dtype != torch.int8:
        raise ValueError("xnor_linear takes int8 taps of shape (O, I, 1, 1); use sparse_linear")
    weight = taps.to_dense().flatten(1)
    return pack_bits(2 * (weight > 0).to(torch.int8) - 1, 1), pack_bits(
        2 * (weight != 0).to(torch.int8) - 1, 1
    )


def xnor_linear(x: Tensor, sign: Tensor, mask: Tensor, backend: str | None = None) -> Tensor:
    """The sums S of a +1/-1 input with kept +1/-1 weights (formula: see the module).

    Args:
        x: int64 [N, words], from `pack_bits(x, dim=1)` of [N, I].
        sign, mask: int64 [O, words], from `pack_weight`.
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int32 [N, O].

    Raises:
        ValueError: operands that do not fit each other.
        BackendError: an explicit backend that cannot run.
    """
    return _xnor_linear(x, sign, mask, backend)
