"""Shared suite of bitsliced_linear and bitsliced_linear_sign, on every backend."""

from typing import Any

import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LINEAR_CASES,
    MALFORMED_TAPS,
    PROPERTY,
    LinearCase,
    few_linear_taps,
    linear_cases,
)
from torch import Tensor

from mpt_fast.kernels.bitsliced_linear import bitsliced_linear, bitsliced_linear_sign, op
from mpt_fast.kernels.pack_bits.reference import pack_bits, unpack_bits
from mpt_fast.kernels.taps import Taps

backend = backend_fixture(op.BACKENDS, routes=("adders", "int8"))

INT32 = torch.iinfo(torch.int32)


def expected_sums(case: LinearCase) -> Tensor:
    """int32 [O, lanes] with Python integers; lanes past the batch hold -1 everywhere."""
    weight = case.weight().tolist()
    lanes = case.planes().shape[-1] * 64
    images = case.signs(torch.int32).tolist() + [[-1] * case.inputs] * (lanes - case.batch)
    rows = [
        [sum(w * x for w, x in zip(row, image, strict=True)) for image in images] for row in weight
    ]
    return torch.tensor(rows, dtype=torch.int32).view(case.outputs, lanes)


def sign_operands(case: LinearCase, with_residual: bool) -> dict[str, Any]:
    """Thresholds that divide the sums of `case`, some flipped, the ends of int32 among them."""
    generator = torch.Generator().manual_seed(case.seed + 2)

    def thresholds() -> Tensor:
        drawn = torch.randint(-4, 5, (case.outputs,), generator=generator, dtype=torch.int32)
        drawn[-1] = INT32.min if case.seed % 2 else INT32.max
        return drawn

    operands: dict[str, Any] = {
        "threshold": thresholds(),
        "flip": torch.randint(0, 2, (case.outputs,), generator=generator) > 0,
    }
    if with_residual:
        shape = (case.outputs, case.planes().shape[-1] * 64)
        operands["residual"] = pack_bits(torch.randn(shape, generator=generator), -1)
        operands["residual_threshold"] = thresholds()
    return operands


def expected_decisions(sums: Tensor, operands: dict[str, Any]) -> Tensor:
    limit = operands["threshold"].view(-1, 1).expand_as(sums)
    if "residual" in operands:
        positive = unpack_bits(operands["residual"], sums.shape[-1], -1, torch.int8) > 0
        limit = torch.where(positive, operands["residual_threshold"].view(-1, 1), limit)
    bits = torch.where(operands["flip"].view(-1, 1), sums <= limit, sums >= limit)
    return pack_bits(bits.int() - 1, -1)


@pytest.mark.parametrize("name", LINEAR_CASES)
def test_matches_python_integers(backend: str, name: str) -> None:
    case = LINEAR_CASES[name]
    sums = bitsliced_linear(case.planes(), case.taps(), backend=backend)
    assert_close(sums, expected_sums(case))
    assert sums.is_contiguous()
    for with_residual in (False, True):
        operands = sign_operands(case, with_residual)
        planes = bitsliced_linear_sign(case.planes(), case.taps(), **operands, backend=backend)
        assert_close(planes, expected_decisions(expected_sums(case), operands))
        assert planes.is_contiguous()


@PROPERTY
@given(case=linear_cases, with_residual=st.booleans())
def test_random_layers(backend: str, case: LinearCase, with_residual: bool) -> None:
    case = few_linear_taps(case, backend)
    signs = unpack_bits(case.planes(), case.planes().shape[-1] * 64, 0, torch.float64)
    expected = (case.weight().double() @ signs.T).to(torch.int32)
    assert_close(bitsliced_linear(case.planes(), case.taps(), backend=backend), expected)
    operands = sign_operands(case, with_residual)
    planes = bitsliced_linear_sign(case.planes(), case.taps(), **operands, backend=backend)
    assert_close(planes, expected_decisions(expected, operands))


@pytest.mark.parametrize("inputs", [1, 15, 16, 17, 255, 256, 4095, 4096, 4097, 70_000])
def test_the_largest_counts(backend: str, inputs: int) -> None:
    """All inputs agree with all weights of one output and with none of the other."""
    if backend == "triton":
        inputs = min(inputs, 8193)  # Triton's interpreter needs a minute for more
    weight = torch.ones(2, inputs, dtype=torch.int8)
    weight[1] = -1
    planes = torch.full((inputs, 1), -1)
    sums = bitsliced_linear(planes, Taps.from_dense(weight), backend=backend)
    expected = torch.tensor([inputs, -inputs], dtype=torch.int32)
    assert_close(sums, expected.view(2, 1).repeat(1, 64))


def test_strided_planes(backend: str) -> None:
    case = LinearCase(batch=130)
    planes = case.planes().T.contiguous().T
    assert not planes.is_contiguous()
    assert_close(bitsliced_linear(planes, case.taps(), backend=backend), expected_sums(case))


@pytest.mark.parametrize("name", MALFORMED_TAPS)
def test_malformed_taps_are_refused(backend: str, name: str) -> None:
    case = LinearCase(density=1.0)
    taps = MALFORMED_TAPS[name](case.taps())
    with pytest.raises(ValueError, match=r"indptr|index|value|shape|taps"):
        bitsliced_linear(case.planes(), taps, backend=backend)
    with pytest.raises(ValueError, match=r"indptr|index|value|shape|taps"):
        bitsliced_linear_sign(case.planes(), taps, **sign_operands(case, False), backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planes": torch.zeros(37, 1, dtype=torch.int32)}, "planes must be int64"),
        ({"planes": torch.zeros(36, 1, dtype=torch.int64)}, "planes must have shape"),
        ({"planes": torch.zeros(37, 1, 1, dtype=torch.int64)}, "planes must have shape"),
        ({"taps": LinearCase().taps(torch.float64)}, "use sparse_linear"),
        ({"taps": Taps.from_dense(torch.ones(6, 37, 1, 2, dtype=torch.int8))}, "1x1 kernels"),
    ],
)
def test_bad_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    case = LinearCase()
    arguments = {"planes": case.planes(), "taps": case.taps(), **changes}
    with pytest.raises(ValueError, match=message):
        bitsliced_linear(**arguments, backend=backend)
    with pytest.raises(ValueError, match=message):
        bitsliced_linear_sign(**arguments, **sign_operands(case, False), backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": torch.zeros(6, dtype=torch.int64)}, "threshold must be int32"),
        ({"flip": torch.zeros(5, dtype=torch.bool)}, "flip must have shape"),
        ({"residual": None}, "together"),
        ({"residual": torch.zeros(6, 2, dtype=torch.int64)}, "residual must have shape"),
        ({"residual_threshold": torch.zeros(7, dtype=torch.int32)}, "residual_threshold must"),
    ],
)
def test_bad_sign_operands(backend: str, changes: dict[str, Any], message: str) -> None:
    case = LinearCase()
    operands = {**sign_operands(case, True), **changes}
    with pytest.raises(ValueError, match=message):
        bitsliced_linear_sign(case.planes(), case.taps(), **operands, backend=backend)


@pytest.mark.parametrize("name", ["odd", "no image"])
def test_opcheck(backend: str, name: str) -> None:
    case = LINEAR_CASES[name]
    torch.library.opcheck(
        torch.ops.mpt_fast.bitsliced_linear.default, (case.planes(), *case.taps(), backend)
    )
    for with_residual in (False, True):
        torch.library.opcheck(
            torch.ops.mpt_fast.bitsliced_linear_sign.default,
            (case.planes(), *case.taps()),
            {**sign_operands(case, with_residual), "backend": backend},
        )


def test_compiles_as_one_graph(backend: str) -> None:
    case = LinearCase()
    operands = sign_operands(case, True)

    def both(planes: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
        return (
            bitsliced_linear(planes, taps, backend=backend),
            bitsliced_linear_sign(planes, taps, **operands, backend=backend),
        )

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    sums, decisions = compiled(case.planes(), case.taps())
    assert_close(sums, expected_sums(case))
    assert_close(decisions, expected_decisions(sums, operands))
