"""Shared suite of pack_bits and unpack_bits, on every backend."""

import numpy as np
import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import PROPERTY
from torch import Tensor

from mpt_fast.kernels import cpu
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.pack_bits import op, pack_bits, unpack_bits
from mpt_fast.kernels.pack_bits.reference import popcount, word_count

# The engine's packing has one path for every instruction set.
backend = backend_fixture(op.BACKENDS, every_isa=False)

SHAPES = [(5,), (64,), (65,), (200, 3), (3, 129), (2, 3, 4, 70), (70, 2, 3, 1), (0, 3), (3, 0)]


def expected_planes(x: Tensor, dim: int) -> Tensor:
    """Packed by NumPy's packbits, little-endian."""
    bits = np.moveaxis(x.numpy() >= 0, dim, -1)
    words = -(-bits.shape[-1] // 64)
    padded = np.zeros((*bits.shape[:-1], words * 64), dtype=bool)
    padded[..., : bits.shape[-1]] = bits
    packed = np.packbits(padded, axis=-1, bitorder="little").view("<i8")
    return torch.from_numpy(packed.reshape(*bits.shape[:-1], words))


def expected_signs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(x >= 0, 1, -1).to(dtype)


def test_known_words(backend: str) -> None:
    x = torch.full((130,), -1.0)
    x[[0, 3, 63, 64, 129]] = 1.0
    expected = [1 + 8 - 2**63, 1, 2]
    assert pack_bits(x, backend=backend).tolist() == expected


def test_zero_nan_and_infinity(backend: str) -> None:
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, -1e-45])
    assert pack_bits(special, backend=backend).tolist() == [0b0101011]
    assert pack_bits(special.double(), backend=backend).tolist() == [0b0101011]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dim_and_back(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    for dim in range(-len(shape), len(shape)):
        planes = pack_bits(x, dim, backend=backend)
        assert_close(planes, expected_planes(x, dim))
        assert planes.is_contiguous()
        signs = unpack_bits(planes, shape[dim], dim, dtype, backend=backend)
        assert_close(signs, expected_signs(x, dtype))
        assert signs.is_contiguous()


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64],
)
def test_dtypes_of_the_reference(dtype: torch.dtype) -> None:
    x = torch.randint(-2, 3, (70, 3)).to(dtype)
    expected = expected_planes(x.long(), 0)
    assert_close(pack_bits(x), expected)
    assert_close(pack_bits(x, backend="reference"), expected)
    if dtype not in (torch.int16, torch.int64):
        assert torch.equal(unpack_bits(expected, 70, 0, dtype), expected_signs(x, dtype))


@pytest.mark.skipif(not cpu.available(), reason="the engine is not built on this machine")
def test_the_engine_refuses_dtypes_it_lacks() -> None:
    with pytest.raises(BackendError, match="float16"):
        pack_bits(torch.ones(3, dtype=torch.float16), backend="cpu")
    with pytest.raises(BackendError, match="int8"):
        unpack_bits(torch.ones(1, dtype=torch.int64), 3, 0, torch.int8, backend="cpu")


@PROPERTY
@given(
    shape=st.lists(st.one_of(st.integers(0, 5), st.integers(60, 70)), min_size=1, max_size=3),
    dim=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(backend: str, shape: list[int], dim: int, seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    dim %= len(shape)
    planes = pack_bits(x, dim, backend=backend)
    assert_close(planes, expected_planes(x, dim))
    signs = unpack_bits(planes, shape[dim], dim, backend=backend)
    assert_close(signs, expected_signs(x, torch.float32))


def test_strided_input(backend: str) -> None:
    x = torch.randn(70, 3, 4, 5).to(memory_format=torch.channels_last)[:, :, ::2]
    planes = pack_bits(x, backend=backend)
    assert_close(planes, expected_planes(x, 0))
    mixed = planes.transpose(0, 1)
    assert_close(
        unpack_bits(mixed, 70, backend=backend), expected_signs(x.transpose(1, 2), torch.float32)
    )


def test_bits_past_the_length_are_ignored(backend: str) -> None:
    planes = torch.tensor([-1, -1])
    assert unpack_bits(planes, 65, backend=backend).tolist() == [1.0] * 65
    assert unpack_bits(~planes, 65, backend=backend).tolist() == [-1.0] * 65


def test_requires_grad_input_is_packed(backend: str) -> None:
    x = torch.randn(5, requires_grad=True)
    planes = pack_bits(x, backend=backend)
    assert_close(planes, expected_planes(x.detach(), 0))
    assert not planes.requires_grad


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.complex64])
def test_values_without_a_sign_are_refused(backend: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="x must be"):
        pack_bits(torch.ones(3, dtype=dtype), backend=backend)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack_bits(torch.ones(1, dtype=torch.int64), 3, 0, dtype, backend=backend)


@pytest.mark.parametrize("dim", [2, -3])
def test_dim_out_of_range(backend: str, dim: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        pack_bits(torch.ones(3, 2), dim, backend=backend)
    with pytest.raises(ValueError, match="out of range"):
        unpack_bits(torch.ones(3, 2, dtype=torch.int64), 100, dim, backend=backend)


def test_a_scalar_has_no_dim(backend: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        pack_bits(torch.tensor(1.0), backend=backend)


@pytest.mark.parametrize("length", [-1, 0, 64, 129])
def test_length_must_fit_the_words(backend: str, length: int) -> None:
    with pytest.raises(ValueError, match=f"length {length} does not fit planes of 2 words"):
        unpack_bits(torch.zeros(2, dtype=torch.int64), length, backend=backend)


def test_planes_must_be_int64(backend: str) -> None:
    with pytest.raises(ValueError, match="planes must be int64"):
        unpack_bits(torch.zeros(2, dtype=torch.int32), 100, backend=backend)


@pytest.mark.parametrize("shape", [(70, 3), (0, 3), (3, 2, 0)], ids=str)
@pytest.mark.parametrize("dim", [0, -1])
def test_opcheck(backend: str, shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape)
    torch.library.opcheck(torch.ops.mpt_fast.pack_bits.default, (x, dim, backend))
    planes = pack_bits(x, dim, backend=backend)
    torch.library.opcheck(
        torch.ops.mpt_fast.unpack_bits.default,
        (planes, shape[dim], dim, torch.float32, backend),
    )


def test_compiles_as_one_graph(backend: str) -> None:
    def there_and_back(x: Tensor) -> Tensor:
        return unpack_bits(pack_bits(x, backend=backend), x.shape[0], backend=backend)

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    for batch in (70, 3, 128):
        x = torch.randn(batch, 3)
        assert_close(compiled(x), expected_signs(x, torch.float32))


def test_popcount_and_word_count() -> None:
    values = [0, 1, -1, 2**63 - 1, -(2**63), 0x5555555555555555]
    assert popcount(torch.tensor(values)).tolist() == [(v % 2**64).bit_count() for v in values]
    assert [word_count(n) for n in (0, 1, 64, 65, 128)] == [0, 1, 1, 2, 2]
