"""Shared suite of sparse_linear, on every backend."""

from typing import Any

import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import LINEAR_CASES, MALFORMED_TAPS, PROPERTY, LinearCase, linear_cases
from torch import Tensor

from mpt_fast.kernels.sparse_linear import op, sparse_linear
from mpt_fast.kernels.taps import Taps

backend = backend_fixture(op.BACKENDS)

FLOATS = (torch.float32, torch.float64)
VALUES = (torch.int8, torch.float32, torch.float64)


def bias_of(case: LinearCase, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randn(case.outputs, generator=generator, dtype=dtype)


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", LINEAR_CASES)
def test_matches_loops(backend: str, name: str, dtype: torch.dtype, value: torch.dtype) -> None:
    case = LINEAR_CASES[name]
    x, bias = case.floats(dtype), bias_of(case, dtype)
    out = sparse_linear(x, case.taps(value), bias, backend=backend)
    weight = case.weight(value).to(dtype).double().tolist()
    rows = [
        [
            b + sum(w * v for w, v in zip(row, image, strict=True))
            for row, b in zip(weight, bias.tolist(), strict=True)
        ]
        for image in x.double().tolist()
    ]
    expected = torch.tensor(rows, dtype=torch.float64).view(case.batch, case.outputs)
    assert_close(out, expected.to(dtype))
    assert out.is_contiguous()


@PROPERTY
@given(
    case=linear_cases,
    dtype=st.sampled_from(FLOATS),
    value=st.sampled_from(VALUES),
    with_bias=st.booleans(),
)
def test_random_layers(
    backend: str, case: LinearCase, dtype: torch.dtype, value: torch.dtype, with_bias: bool
) -> None:
    x, bias = case.floats(dtype), bias_of(case, dtype)
    out = sparse_linear(x, case.taps(value), bias if with_bias else None, backend=backend)
    expected = x.double() @ case.weight(value).to(dtype).double().T
    assert_close(out, (expected + bias.double() * with_bias).to(dtype))


def test_whole_numbers_are_exact(backend: str) -> None:
    case = LinearCase(inputs=301, outputs=9)
    x = (8 * case.floats(torch.float32)).round()
    out = sparse_linear(x, case.taps(), backend=backend)
    assert torch.equal(out.double(), x.double() @ case.weight().double().T)


def test_strided_input(backend: str) -> None:
    case = LinearCase()
    x = case.floats(torch.float64).T.contiguous().T
    assert not x.is_contiguous()
    out = sparse_linear(x, case.taps(), backend=backend)
    assert_close(out, x @ case.weight().double().T)


def test_there_is_no_gradient(backend: str) -> None:
    case = LinearCase()
    out = sparse_linear(case.floats(torch.float32).requires_grad_(), case.taps(), backend=backend)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        out.sum().backward()


@pytest.mark.parametrize("name", MALFORMED_TAPS)
def test_malformed_taps_are_refused(backend: str, name: str) -> None:
    case = LinearCase(density=1.0)
    taps = MALFORMED_TAPS[name](case.taps())
    with pytest.raises(ValueError, match=r"indptr|index|value|shape|taps"):
        sparse_linear(case.floats(torch.float32), taps, backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(5, 37, dtype=torch.bfloat16)}, "x must be float32 or float64"),
        ({"x": torch.zeros(5, 36)}, "x must have shape"),
        ({"x": torch.zeros(37)}, "x must have shape"),
        ({"bias": torch.zeros(6, dtype=torch.float64)}, "bias must be float32"),
        ({"bias": torch.zeros(6, 1)}, "bias must have shape"),
        ({"taps": Taps.from_dense(torch.ones(6, 37, 2, 1))}, "1x1 kernels"),
    ],
)
def test_bad_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    case = LinearCase()
    arguments = {"x": case.floats(torch.float32), "taps": case.taps(), **changes}
    with pytest.raises(ValueError, match=message):
        sparse_linear(**arguments, backend=backend)


@pytest.mark.parametrize("name", ["odd", "no image"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(backend: str, name: str, dtype: torch.dtype) -> None:
    case = LINEAR_CASES[name]
    for bias in (None, bias_of(case, dtype)):
        torch.library.opcheck(
            torch.ops.mpt_fast.sparse_linear.default,
            (case.floats(dtype), *case.taps(), bias, backend),
        )


def test_compiles_as_one_graph(backend: str) -> None:
    case = LinearCase()

    def linear(x: Tensor, taps: Taps) -> Tensor:
        return sparse_linear(x, taps, backend=backend)

    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    x = case.floats(torch.float64)
    assert_close(compiled(x, case.taps()), x @ case.weight().double().T)
