"""Contract of pack_bits and unpack_bits: signs as bit planes.

Sign convention: a bit is 1 where x >= 0 and stands for +1, else 0 and stands for -1, as
`binary_activation` decides; so -0.0 gives 1 and NaN gives 0. The packed dimension is moved last
and becomes ceil(length / 64) little-endian int64 words: bit b of word w is element 64*w + b.
Bits past the length are 0.
"""

import math

import torch
from torch import Tensor

from mpt_fast.kernels import costs, cpu
from mpt_fast.kernels.backend import choose
from mpt_fast.kernels.geometry import check_tensor
from mpt_fast.kernels.interop import as_array
from mpt_fast.kernels.pack_bits import reference

BACKENDS = ("triton", "cpu", "reference")

_PACKABLE = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)
_UNPACKED = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int32)

_ENGINE_DTYPES = (torch.float32, torch.float64)


def _check_dim(dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise ValueError(f"dim {dim} is out of range for {rank} dimensions")
    return dim % rank


def _choose(
    operation: str, dtype: torch.dtype, backend: str | None, device_type: str, count: int
) -> str:
    case = costs.elements(costs.typed(operation, dtype), count)
    if dtype in _ENGINE_DTYPES:
        return choose(operation, backend, device_type, BACKENDS, case)
    return choose(f"{operation} ({dtype})", backend, device_type, ("triton", "reference"), case)


@torch.library.custom_op("mpt_fast::pack_bits", mutates_args=())
def _pack_bits(x: Tensor, dim: int, backend: str | None = None) -> Tensor:
    check_tensor(x, "x", _PACKABLE)
    dim = _check_dim(dim, x.dim())
    chosen = _choose("pack_bits", x.dtype, backend, x.device.type, x.numel())
    before, length, after = x.shape[:dim], x.shape[dim], x.shape[dim + 1 :]
    if chosen == "triton":
        from mpt_fast.kernels.pack_bits import triton

        shape = (*before, *after, reference.word_count(length))
        planes = torch.empty(shape, dtype=torch.int64, device=x.device)
        rows = x.detach().contiguous().view(math.prod(before), length, math.prod(after))
        halves = 2 * planes.shape[-1]
        triton.pack_bits(rows, planes.view(torch.int32).view(len(rows), rows.shape[2], halves))
        return planes
    if chosen == "cpu":
        blocks = as_array(x).reshape(math.prod(before), length, math.prod(after))
        packed = cpu.engine().pack_bits(blocks, threads=torch.get_num_threads())
        return torch.from_numpy(packed).view(*before, *after, reference.word_count(length))
    return reference.pack_bits(x, dim)


@_pack_bits.register_fake
def _(x: Tensor, dim: int, backend: str | None = None) -> Tensor:
    check_tensor(x, "x", _PACKABLE)
    dim = _check_dim(dim, x.dim())
    kept = [size for i, size in enumerate(x.shape) if i != dim]
    return x.new_empty([*kept, reference.word_count(x.shape[dim])], dtype=torch.int64)


@torch.library.custom_op("mpt_fast::unpack_bits", mutates_args=())
def _unpack_bits(
    planes: Tensor, length: int, dim: int, dtype: torch.dtype, backend: str | None = None
) -> Tensor:
    dim = _check_unpack(planes, length, dim, dtype)
    chosen = _choose("unpack_bits", dtype, backend, planes.device.type, planes.numel() * 64)
    before, after, words = planes.shape[:dim], planes.shape[dim:-1], planes.shape[-1]
    if chosen == "triton":
        from mpt_fast.kernels.pack_bits import triton

        out = torch.empty((*before, length, *after), dtype=dtype, device=planes.device)
        rows = out.view(math.prod(before), length, math.prod(after))
        halves = triton.as_words32(planes)
        triton.unpack_bits(halves.view(len(rows), rows.shape[2], 2 * words), rows)
        return out
    if chosen == "cpu":
        blocks = as_array(planes).reshape(math.prod(before), math.prod(after), words)
        signs = cpu.engine().unpack_bits(
            blocks,
            length,
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        return torch.from_numpy(signs).view(*before, length, *after)
    return reference.unpack_bits(planes, length, dim, dtype)


@_unpack_bits.register_fake
def _(
    planes: Tensor, length: int, dim: int, dtype: torch.dtype, backend: str | None = None
) -> Tensor:
    dim = _check_unpack(planes, length, dim, dtype)
    shape = list(planes.shape[:-1])
    shape.insert(dim, length)
    return planes.new_empty(shape, dtype=dtype)


def _check_unpack(planes: Tensor, length: int, dim: int, dtype: torch.dtype) -> int:
    check_tensor(planes, "planes", torch.int64)
    dim = _check_dim(dim, planes.dim())
    if dtype not in _UNPACKED:
        raise ValueError(f"planes cannot be unpacked to {dtype}; choose a signed float or integer")
    if length < 0 or reference.word_count(length) != planes.shape[-1]:
        raise ValueError(
            f"length {length} does not fit planes of {planes.shape[-1]} words "
            f"({reference.word_count(max(length, 0))} words hold it)"
        )
    return dim


def pack_bits(x: Tensor, dim: int = 0, backend: str | None = None) -> Tensor:
    """The signs of `x`, packed along `dim` into 64-bit words.

    Args:
        x: real or signed integer tensor of at least one dimension, any strides.
        dim: the dimension that is packed. dim=0 of [N, C, H, W] gives [C, H, W, ceil(N/64)]
            (lanes are images); dim=-1 gives [N, C, H, ceil(W/64)] (rows).
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        int64 planes: the shape of `x` without `dim`, then the words; see the module's convention.

    Raises:
        ValueError: a dtype without a sign, or `dim` out of range.
        BackendError: an explicit backend that cannot run.
    """
    return _pack_bits(x, dim, backend)


def unpack_bits(
    planes: Tensor,
    length: int,
    dim: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """The +1 and -1 that `planes` stand for: the inverse of `pack_bits` on signs.

    Args:
        planes: int64, words last, as `pack_bits` returns them.
        length: elements of the packed dimension; ceil(length / 64) must be the words of `planes`.
        dim: where the packed dimension stands in the result.
        dtype: dtype of the result.
        backend: None for automatic, or "triton", "cpu" or "reference".

    Returns:
        Contiguous tensor of +1 and -1 with `length` elements in dimension `dim`.

    Raises:
        ValueError: a length that does not fit the words, `dim` out of range, an unsigned dtype.
        BackendError: an explicit backend that cannot run.
    """
    return _unpack_bits(planes, length, dim, dtype, backend)
