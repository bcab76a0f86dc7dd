"""Shared suite of sparse_conv2d, on every backend."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    CONV_CASES,
    MALFORMED_TAPS,
    PROPERTY,
    ConvCase,
    conv_cases,
    naive_conv2d,
)
from torch import Tensor

from mpt_fast.kernels import backend as backends
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.sparse_conv2d import op, sparse_conv2d
from mpt_fast.kernels.taps import Taps

backend = backend_fixture(op.BACKENDS)

FLOATS = (torch.float32, torch.float64)
VALUES = (torch.int8, torch.float32, torch.float64)


def bias_of(case: ConvCase, dtype: torch.dtype) -> Tensor:
    return torch.randn(case.outputs, generator=case.generator(), dtype=dtype)


def expected(case: ConvCase, x: Tensor, value: torch.dtype, bias: Tensor | None) -> Tensor:
    """The float64 convolution with the taps as the operation rounds them, in the dtype of x."""
    weight = case.weight(value).to(x.dtype).double()
    out = F.conv2d(x.double(), weight, None if bias is None else bias.double(), **case.geometry)
    return out.to(x.dtype)


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CONV_CASES)
def test_matches_loops(backend: str, name: str, dtype: torch.dtype, value: torch.dtype) -> None:
    case = CONV_CASES[name]
    x, bias = case.floats(dtype), bias_of(case, dtype)
    out = sparse_conv2d(x, case.taps(value), bias, **case.geometry, backend=backend)
    weight = case.weight(value).to(dtype).double().numpy()
    naive = naive_conv2d(x.double().numpy(), weight, **case.geometry)
    naive += bias.double().numpy()[:, np.newaxis, np.newaxis]
    # In float64 the loops, which add one tap after the other, round as much as the operation.
    tolerance = 2e-15 if dtype == torch.float64 else None
    assert_close(out, torch.from_numpy(naive).to(dtype), tolerance)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CONV_CASES)
def test_whole_numbers_are_exact(backend: str, name: str, dtype: torch.dtype) -> None:
    """Sums of small whole numbers round nowhere, whatever the order."""
    case = CONV_CASES[name]
    x = (8 * case.floats(dtype)).round()
    out = sparse_conv2d(x, case.taps(), **case.geometry, backend=backend)
    assert torch.equal(out, expected(case, x, torch.int8, None))


@PROPERTY
@given(
    case=conv_cases(),
    dtype=st.sampled_from(FLOATS),
    value=st.sampled_from(VALUES),
    with_bias=st.booleans(),
)
def test_random_convolutions(
    backend: str, case: ConvCase, dtype: torch.dtype, value: torch.dtype, with_bias: bool
) -> None:
    x = case.floats(dtype)
    bias = bias_of(case, dtype) if with_bias else None
    out = sparse_conv2d(x, case.taps(value), bias, **case.geometry, backend=backend)
    assert_close(out, expected(case, x, value, bias))


@pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")
@pytest.mark.parametrize("name", ["3x3 padded", "one image", "stride 2", "grouped", "unpadded"])
def test_images_in_the_lanes(name: str) -> None:
    """As a packed network calls Triton: [C, H, W, N] to [O, Ho, Wo, N]."""
    from mpt_fast.kernels.geometry import make_geometry
    from mpt_fast.kernels.sparse_conv2d import triton

    case = CONV_CASES[name]
    layer = triton.prepare(case.taps(), case.image, make_geometry(**case.geometry))
    x = case.floats(torch.float64)
    expected = F.conv2d(x, case.weight().double(), **case.geometry).permute(1, 2, 3, 0)
    for lanes in (x.permute(1, 2, 3, 0), x.permute(1, 2, 3, 0).contiguous()):
        out = triton.run_lanes(lanes, layer)
        assert_close(out, expected)
        assert out.is_contiguous()


def test_zero_valued_taps_are_legal(backend: str) -> None:
    """A weight that RigL has just grown is kept and still 0."""
    case = ConvCase(density=1.0)
    taps = case.taps(torch.float32)
    taps.value[::2] = 0
    x = case.floats(torch.float32)
    out = sparse_conv2d(x, taps, **case.geometry, backend=backend)
    dense = F.conv2d(x.double(), taps.to_dense(torch.float64), **case.geometry)
    assert_close(out, dense.float())


def test_thread_count_does_not_change_the_result(backend: str) -> None:
    case = ConvCase(batch=130, outputs_per_group=7)
    x = case.floats(torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1,) if backend == "triton" else (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sparse_conv2d(x, case.taps(), **case.geometry, backend=backend))
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert_close(result, expected(case, x, torch.int8, None))


def test_strided_input(backend: str) -> None:
    case = ConvCase(batch=5)
    x = case.floats(torch.float32).to(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    out = sparse_conv2d(x, case.taps(), **case.geometry, backend=backend)
    assert_close(out, expected(case, x, torch.int8, None))
    assert out.is_contiguous()


def test_int_and_default_geometry(backend: str) -> None:
    case = ConvCase(padding=(0, 0))
    x = case.floats(torch.float64)
    assert_close(
        sparse_conv2d(x, case.taps(), backend=backend), expected(case, x, torch.int8, None)
    )
    strided = ConvCase(stride=(2, 2))
    assert_close(
        sparse_conv2d(x, strided.taps(), None, 2, 1, 1, 1, backend=backend),
        expected(strided, x, torch.int8, None),
    )


def test_inputs_are_left_alone(backend: str) -> None:
    case = ConvCase()
    x, taps, bias = case.floats(torch.float32), case.taps(), bias_of(case, torch.float32)
    before = [t.clone() for t in (x, *taps[:3], bias)]
    sparse_conv2d(x, taps, bias, **case.geometry, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *taps[:3], bias), strict=True))


def test_there_is_no_gradient(backend: str) -> None:
    case = ConvCase()
    x = case.floats(torch.float32).requires_grad_()
    out = sparse_conv2d(x, case.taps(), **case.geometry, backend=backend)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        out.sum().backward()


@pytest.mark.parametrize("name", MALFORMED_TAPS)
def test_malformed_taps_are_refused(backend: str, name: str) -> None:
    case = ConvCase(density=1.0)
    taps = MALFORMED_TAPS[name](case.taps())
    with pytest.raises(ValueError, match=r"indptr|index|value|shape|taps"):
        sparse_conv2d(case.floats(torch.float32), taps, **case.geometry, backend=backend)


X = ConvCase().floats(torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.half()}, "x must be float32 or float64, got float16"),
        ({"x": X.int()}, "x must be float32 or float64"),
        ({"x": X[0]}, "x must have shape"),
        ({"x": X[:, :2]}, "2 channels"),
        ({"x": X[:, :, :0]}, "does not fit"),
        ({"bias": torch.zeros(4, dtype=torch.float64)}, "bias must be float32"),
        ({"bias": torch.zeros(3)}, "bias must have shape"),
        ({"padding": 0, "dilation": 3}, "does not fit into an image"),
        ({"stride": (0, 1)}, "stride must be"),
        ({"padding": -1}, "padding must be"),
        ({"groups": 3}, "per group"),
    ],
)
def test_bad_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    case = ConvCase()
    arguments = {"x": X, "taps": case.taps(), **case.geometry, **changes}
    with pytest.raises(ValueError, match=message):
        sparse_conv2d(**arguments, backend=backend)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="unknown backend 'fpga'"):
        sparse_conv2d(X, ConvCase().taps(), padding=1, backend="fpga")


@pytest.mark.parametrize("name", ["grouped", "no image", "every weight pruned", "stride 2"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(backend: str, name: str, dtype: torch.dtype) -> None:
    case = CONV_CASES[name]
    x = case.floats(dtype).to(memory_format=torch.channels_last)
    for bias in (None, bias_of(case, dtype)):
        torch.library.opcheck(
            torch.ops.mpt_fast.sparse_conv2d.default,
            (x, *case.taps(), bias, *case.geometry.values(), backend),
        )


def test_compiles_as_one_graph(backend: str) -> None:
    case = ConvCase(stride=(2, 2))
    bias = bias_of(case, torch.float32)

    def conv(x: Tensor, taps: Taps) -> Tensor:
        return sparse_conv2d(x, taps, bias, **case.geometry, backend=backend)

    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    x = case.floats(torch.float32)
    assert_close(compiled(x, case.taps()), expected(case, x, torch.int8, bias))
