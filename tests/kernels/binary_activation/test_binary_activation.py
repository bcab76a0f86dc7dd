"""Shared suite of binary_activation, on every backend."""

import pytest
import torch
from helpers import assert_close, backend_fixture
from torch import Tensor

from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.binary_activation import binary_activation, op

backend = backend_fixture(op.BACKENDS, every_isa=False)

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.25, -0.5, 1.5, -3.0, float("inf"), -float("inf"), 1e-40, -1e-40]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(backend: str, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL, dtype=dtype)
    want = torch.tensor([1.0 if v >= 0 else -1.0 for v in x.tolist()], dtype=dtype)
    assert_close(binary_activation(x, backend), want)


def test_nan_is_minus_one(backend: str) -> None:
    assert binary_activation(torch.tensor([float("nan")]), backend).item() == -1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient(backend: str, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL, dtype=dtype, requires_grad=True)
    upstream = torch.linspace(-2, 2, len(SPECIAL), dtype=dtype)
    binary_activation(x, backend).backward(upstream)
    want = [
        g * 2 * (1 - abs(v)) if abs(v) <= 1 else 0.0
        for g, v in zip(upstream.tolist(), x.tolist(), strict=True)
    ]
    assert x.grad is not None
    assert_close(x.grad, torch.tensor(want, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 5, 7)], ids=str)
def test_shapes(backend: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    out = binary_activation(x, backend)
    assert out.shape == x.shape
    assert bool((out.abs() == 1).all())
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_memory_format_is_kept(backend: str) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = binary_activation(x, backend)
    assert out.stride() == x.stride()
    out.backward(out.detach())
    assert x.grad is not None
    assert x.grad.stride() == x.stride()


def test_compiles_without_graph_breaks(backend: str) -> None:
    def step(x: Tensor) -> Tensor:
        return binary_activation(x * 0.5, backend)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-3, 3, 20).requires_grad_()
        out = function(x)
        out.sum().backward()
        results.append((out, x.grad))
    assert_close(results[1][0], results[0][0])
    assert_close(results[1][1], results[0][1])


def test_opcheck(backend: str) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.mpt_fast.binary_activation.default, (x, backend))


def test_bad_operands(backend: str) -> None:
    with pytest.raises(TypeError, match=r"x must be floating, got torch\.int64"):
        binary_activation(torch.arange(3), backend)
    with pytest.raises(BackendError, match="unknown backend 'numpy'"):
        binary_activation(torch.ones(3), "numpy")
