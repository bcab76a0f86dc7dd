"""Shared suite of combine, on every backend."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, backend_fixture
from torch import Tensor

from mpt_fast.kernels.combine import combine, op
from mpt_fast.kernels.pack_bits.reference import pack_bits

backend = backend_fixture(op.BACKENDS)

KINDS = ("planes", "sums", "float32", "float64")
SHAPE = (5, 3, 2)


def source_of(kind: str, lanes: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """(operand, its values as float64 [*SHAPE, lanes]); sums and planes hold more lanes."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn((*SHAPE, lanes), generator=generator, dtype=torch.float64)
    if kind == "planes":
        return pack_bits(real, -1), np.where(real.numpy() >= 0, 1.0, -1.0)
    if kind == "sums":
        wide = torch.randint(-40, 40, (*SHAPE, -(-lanes // 64) * 64), generator=generator)
        return wide.to(torch.int32), wide[..., :lanes].double().numpy()
    narrow = real.to(getattr(torch, kind))
    return narrow, narrow.double().numpy()


def vectors(count: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randn((2, count, SHAPE[0]), generator=generator, dtype=dtype)
    return list(drawn[0]), list(drawn[1])


def expected(
    values: list[np.ndarray], scales: list[Tensor], shifts: list[Tensor], act: str, dtype: Any
) -> np.ndarray:
    """One product and one sum at a time in NumPy; for "sign" the decisions."""
    total = None
    for value, scale, shift in zip(values, scales, shifts, strict=True):
        factor, summand = (v.numpy().astype(dtype)[:, None, None, None] for v in (scale, shift))
        term = value.astype(dtype) * factor + summand
        total = term if total is None else total + term
    assert total is not None
    if act == "sign":
        return total >= 0
    return np.where(total < 0, 0, total).astype(dtype) if act == "relu" else total


@pytest.mark.parametrize("kinds", [(k,) for k in KINDS] + [("sums", "planes"), KINDS], ids=str)
@pytest.mark.parametrize("act", op.ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kind_of_source(
    backend: str, kinds: tuple[str, ...], act: str, dtype: torch.dtype
) -> None:
    lanes = 70
    made = [source_of(kind, lanes, seed) for seed, kind in enumerate(kinds)]
    scales, shifts = vectors(len(kinds), torch.float64)
    out = combine([m[0] for m in made], scales, shifts, act, dtype, lanes, backend)
    numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
    want = expected([m[1] for m in made], scales, shifts, act, numpy_dtype)
    if act == "sign":
        assert_close(out, pack_bits(torch.from_numpy(want).int() - 1, -1))
    else:  # bit for bit: each product and sum is rounded by itself
        assert out.dtype == dtype
        assert np.array_equal(out.numpy(), want)
    assert out.is_contiguous()


@pytest.mark.parametrize("lanes", [0, 1, 3, 31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize("act", ["none", "sign"])
def test_any_number_of_lanes(backend: str, lanes: int, act: str) -> None:
    x, values = source_of("float64", lanes, 1)
    bits, signs = source_of("planes", lanes, 2)
    scales, shifts = vectors(2, torch.float64)
    out = combine([x, bits], scales, shifts, act, torch.float64, None, backend)
    want = torch.from_numpy(expected([values, signs], scales, shifts, act, np.float64))
    assert_close(out, pack_bits(want.int() - 1, -1) if act == "sign" else want)


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (3, 2, 0, 1)], ids=str)
def test_any_strides(backend: str, order: tuple[int, ...]) -> None:
    """Images first, whose places flatten, and an order in which they do not."""
    x, values = source_of("float32", 5, 3)
    strided = x.permute(order).contiguous().permute(*np.argsort(order).tolist())
    assert not strided.is_contiguous()
    scales, shifts = vectors(1, torch.float32)
    out = combine([strided], scales, shifts, "relu", torch.float32, backend=backend)
    assert np.array_equal(out.numpy(), expected([values], scales, shifts, "relu", np.float32))


def test_integer_thresholds_at_the_ends_of_int32(backend: str) -> None:
    """In float64 a comparison of sums with any int32 is exact, flipped too."""
    sums = torch.tensor([-(2**31), -1, 0, 1, 2**31 - 1], dtype=torch.int32)
    for limit in (-(2**31), 0, 1, 2**31 - 1):
        for scale in (1.0, -1.0):
            vector = torch.tensor([scale], dtype=torch.float64)
            out = combine(
                [sums.view(1, 1, 1, 5)], [vector], [-scale * vector.new_tensor([limit]).double()],
                "sign", torch.float64, backend=backend,
            )  # fmt: skip
            decided = sums >= limit if scale > 0 else sums <= limit
            assert int(out) == sum(int(bit) << k for k, bit in enumerate(decided))


def test_nan_and_infinity(backend: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0]).view(1, 1, 1, 4)
    one, zero = [torch.ones(1)], [torch.zeros(1)]
    assert int(combine([x], one, zero, "sign", torch.float32, backend=backend)) == 0b1010
    relu = combine([x], one, zero, "relu", torch.float32, backend=backend).flatten()
    assert torch.equal(relu.isnan(), x.flatten().isnan())
    assert relu[1:].tolist() == [float("inf"), 0.0, 0.0]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no source": ({"sources": [], "scales": [], "shifts": []}, "0 sources"),
    "too few scales": ({"scales": []}, "0 scales"),
    "rank": ({"sources": [torch.zeros(5, 3, 2)]}, r"sources\[0\] must have shape"),
    "dtype": ({"sources": [torch.zeros(5, 3, 2, 1).half()]}, r"sources\[0\] must be"),
    "scale": ({"scales": [torch.ones(4)]}, r"scales\[0\] must have shape"),
    "shift": ({"shifts": [torch.ones(5).int()]}, r"shifts\[0\] must be"),
    "act": ({"act": "tanh"}, "act must be"),
    "lanes": ({"lanes": 2}, "lanes=2"),
    "computed": ({"dtype": torch.float16}, "float32 or float64"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_operands(backend: str, name: str) -> None:
    changes, message = BAD[name]
    operands: dict[str, Any] = {
        "sources": [torch.zeros(5, 3, 2, 1)],
        "scales": [torch.ones(5)],
        "shifts": [torch.ones(5)],
    }
    with pytest.raises(ValueError, match=message):
        combine(**{**operands, **changes}, backend=backend)


@pytest.mark.parametrize("act", ["none", "sign"])
def test_opcheck(backend: str, act: str) -> None:
    x, bits = source_of("float32", 3, 1)[0], source_of("planes", 3, 2)[0]
    scales, shifts = vectors(2, torch.float64)
    torch.library.opcheck(
        torch.ops.mpt_fast.combine.default,
        ([x, bits], scales, shifts, act, torch.float64, None, backend),
    )
