"""Shared suite of masked_linear, on every backend."""

import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from kernel_cases import LINEAR_CASES, PROPERTY, LinearCase, linear_cases
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.kernels import backend as backends
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.masked_linear import masked_linear, op
from mpt_fast.kernels.masked_weight import Cut, score_gradient, weight_gradient

backend = backend_fixture(op.BACKENDS, every_isa=False)

GAIN = 0.3125
CUT = Cut(torch.tensor(1.0), torch.tensor(0))
FORMS = ("codes", "scores", "library")
# Of sums of rounded terms; a product of the library rounds its gradients to its own dtype.
FORM_TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def ticket(case: LinearCase, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """(weight, scores, code, gain) of one shape; the code is {-1, 0, +1}, kept by CUT."""
    code = case.weight(torch.int8)
    generator = torch.Generator().manual_seed(case.seed + 2)
    magnitude = torch.rand(code.shape, generator=generator, dtype=dtype) * 2
    weight = torch.where(code == 0, magnitude - 1, magnitude * code)
    signs = torch.randn(code.shape, generator=generator, dtype=dtype).sign()
    size = torch.rand(code.shape, generator=generator, dtype=dtype)
    scores = signs * (size.clamp(0.01, 0.99) + (code != 0))
    return weight, scores, code, torch.tensor(GAIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LINEAR_CASES)
def test_matches_loops(backend: str, name: str, dtype: torch.dtype) -> None:
    case = LINEAR_CASES[name]
    x = case.floats(dtype)
    out = masked_linear(x, *ticket(case, dtype), backend=backend)
    rows = case.weight(torch.int8).tolist()
    want = [
        [GAIN * sum(c * v for c, v in zip(row, image, strict=True)) for row in rows]
        for image in x.double().tolist()
    ]
    expected = torch.tensor(want, dtype=torch.float64).view(case.batch, case.outputs)
    assert_close(out, expected.to(dtype))


@PROPERTY
@given(case=linear_cases)
def test_random_layers(backend: str, case: LinearCase) -> None:
    check_gradients(case, backend, 2.0)


@pytest.mark.parametrize("power", [1.0, 3.0])
@pytest.mark.parametrize("name", LINEAR_CASES)
def test_gradients(backend: str, name: str, power: float) -> None:
    check_gradients(LINEAR_CASES[name], backend, power)


@pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")
@pytest.mark.parametrize("dtype", FORM_TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["odd", "no image"])
def test_every_form_gives_every_gradient(
    name: str, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpt_fast.kernels.masked_conv2d.routes.ROUTE", form)
    case = LINEAR_CASES[name]
    out, grads, wanted = forward_and_gradients(case, "triton", 2.0, dtype, torch.float32, CUT)
    dense = F.linear(case.floats(dtype).double(), GAIN * case.weight().double())
    assert_close(out, dense.to(dtype), FORM_TOLERANCE[dtype])
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want.to(got.dtype), 4 * FORM_TOLERANCE[dtype])


def check_gradients(case: LinearCase, backend: str, power: float) -> None:
    """Every gradient against PyTorch's linear layer with the effective weight."""
    _, grads, wanted = forward_and_gradients(case, backend, power)
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want, 1e-14)


def forward_and_gradients(
    case: LinearCase,
    backend: str,
    power: float,
    dtype: torch.dtype = torch.float64,
    weight_dtype: torch.dtype = torch.float64,
    cut: Cut | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(output, gradients to x, scores and weight, the same in float64 by PyTorch)."""
    x = case.floats(dtype).requires_grad_()
    weight, scores, code, gain = ticket(case, weight_dtype)
    weight.requires_grad_()
    scores.requires_grad_()
    kept = torch.tensor(max(1, int((code != 0).sum())))
    out = masked_linear(x, weight, scores, code, gain, power, kept, backend, cut)
    upstream = torch.randn(out.shape, dtype=dtype)
    out.backward(upstream)

    dense_x = x.detach().double().requires_grad_()
    effective = (GAIN * code.double()).requires_grad_()
    F.linear(dense_x, effective).backward(upstream.double())
    w, s = weight.detach().double(), scores.detach().double()
    of_scores = score_gradient(effective.grad, w, s, power, "reference")
    of_weight = weight_gradient(effective.grad, w, code, gain, kept)
    return out, [x.grad, scores.grad, weight.grad], [dense_x.grad, of_scores, of_weight]


@pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")
@pytest.mark.parametrize("form", FORMS)
def test_strided_operands(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_fast.kernels.masked_conv2d.routes.ROUTE", form)
    case = LinearCase()
    results = []
    for spread in (False, True):
        tensors = [case.floats(torch.float32), *ticket(case, torch.float32)[:3]]
        if spread:
            tensors = [t.T.contiguous().T for t in tensors]
            assert not any(t.is_contiguous() for t in tensors)
        x, weight, scores, code = tensors
        x, scores = x.detach().requires_grad_(), scores.detach().requires_grad_()
        gain = torch.tensor(GAIN)
        out = masked_linear(x, weight, scores, code, gain, backend="triton", cut=CUT)
        results.append((out, *torch.autograd.grad(out.sum(), (x, scores))))
    for compact, spread in zip(*results, strict=True):
        assert_close(spread, compact)


def test_gradcheck_to_x(backend: str) -> None:
    case = LinearCase(batch=2, inputs=7, outputs=3)
    args = ticket(case)
    x = case.floats(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: masked_linear(v, *args, backend=backend), (x,))


@pytest.mark.parametrize("shape", [(37,), (2, 37), (2, 0, 37), (2, 3, 4, 37)])
def test_leading_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    weight, scores, code, gain = ticket(LinearCase())
    scores.requires_grad_()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = masked_linear(x, weight, scores, code, gain, backend=backend)
    assert_close(out, F.linear(x.detach(), GAIN * code.double()))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert scores.grad is not None
    want = torch.ones_like(out).reshape(-1, 6).T @ x.detach().reshape(-1, 37)
    assert_close(scores.grad, want * weight * scores.detach().sign(), 1e-14)


def test_bfloat16_and_autocast(backend: str) -> None:
    case = LinearCase()
    weight, scores, code, gain = ticket(case, torch.float32)
    scores.requires_grad_()
    x = case.floats(torch.float32).requires_grad_()
    want = masked_linear(x.bfloat16(), weight, scores, code, gain, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = masked_linear(x, weight, scores, code, gain, backend=backend)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    got.float().sum().backward()
    assert x.grad is not None
    assert scores.grad is not None
    assert x.grad.dtype == scores.grad.dtype == torch.float32


def test_compiles_without_graph_breaks(backend: str) -> None:
    case = LinearCase()
    weight, scores, code, gain = ticket(case, torch.float32)

    def step(x: Tensor, s: Tensor) -> Tensor:
        return masked_linear(x, weight, s, code, gain, 2.0, None, backend).square()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = case.floats(torch.float32).requires_grad_()
        s = scores.clone().requires_grad_()
        out = function(x, s)
        out.sum().backward()
        results.append((out, x.grad, s.grad))
    for eager, compiled in zip(*results, strict=True):
        assert_close(compiled, eager)


def test_opcheck(backend: str) -> None:
    for name in ("odd", "no image"):
        case = LINEAR_CASES[name]
        args = (case.floats(torch.float32), *ticket(case, torch.float32), *CUT, backend)
        torch.library.opcheck(torch.ops.mpt_fast.masked_linear.default, args)


def test_bad_operands(backend: str) -> None:
    case = LinearCase()
    weight, scores, code, gain = ticket(case)
    x = case.floats(torch.float64)
    with pytest.raises(TypeError, match=r"x must be floating, got torch\.int32"):
        masked_linear(x.int(), weight, scores, code, gain, backend=backend)
    with pytest.raises(ValueError, match="weight, scores and code must have one shape"):
        masked_linear(x, weight, scores, code[:2], gain, backend=backend)
    with pytest.raises(ValueError, match=r"x must be \[..., 37\], got \(5, 36\)"):
        masked_linear(x[:, 1:], weight, scores, code, gain, backend=backend)
    for position, name in enumerate(("weight", "scores", "code", "gain")):
        elsewhere = [t.to("meta") if i == position else t for i, t in enumerate(ticket(case))]
        with pytest.raises(ValueError, match=rf"^masked_linear: {name} is on meta, .* on cpu; mo"):
            masked_linear(x, *elsewhere, backend=backend)
    with pytest.raises(ValueError, match="masked_linear: code must be int8, got float64"):
        masked_linear(x, weight, scores, code.double(), gain, backend=backend)
    with pytest.raises(BackendError, match="unknown backend 'mkl'"):
        masked_linear(x, weight, scores, code, gain, backend="mkl")
