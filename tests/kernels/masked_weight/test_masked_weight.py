"""Shared suite of the effective weight and its gradients, on every backend."""

import math

import pytest
import torch
from helpers import assert_close, backend_fixture
from torch import Tensor

from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.masked_weight import (
    autocast,
    effective_weight,
    op,
    score_gradient,
    weight_gradient,
)

backend = backend_fixture(op.BACKENDS, every_isa=False)

SHAPES = [(1,), (0, 3), (5, 7), (3, 4, 3, 3), (70_001,)]
POWERS = [1.0, 1.5, 2.0, 3.0, 4.0]
FORMATS = [torch.contiguous_format, torch.channels_last]


def operands(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gradient, weight and scores, with scores of exactly 0 and -0."""
    generator = torch.Generator().manual_seed(1)
    grad, weight, scores = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    scores.view(-1)[1::5] = 0.0
    scores.view(-1)[2::7] = -0.0
    return [grad.to(dtype), weight.to(dtype), scores.to(dtype)]


def by_formula(grad: Tensor, weight: Tensor, scores: Tensor, power: float) -> Tensor:
    """grad * W * sign(s) * p |s|**(p-1), one entry at a time."""
    flat = [tensor.double().flatten().tolist() for tensor in (grad, weight, scores)]
    entries = [
        g * w * math.copysign(power * abs(s) ** (power - 1), s) if s else 0.0
        for g, w, s in zip(*flat, strict=True)
    ]
    return torch.tensor(entries, dtype=torch.float64).view(scores.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_score_gradient(
    backend: str, shape: tuple[int, ...], power: float, dtype: torch.dtype
) -> None:
    grad, weight, scores = operands(shape, dtype)
    got = score_gradient(grad, weight, scores, power, backend)
    assert_close(got, by_formula(grad, weight, scores, power).to(dtype), 1e-6)
    assert torch.equal(got[scores == 0], torch.zeros_like(got[scores == 0]))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_score_gradient_is_that_of_the_power_propagation(backend: str, power: float) -> None:
    """Against autograd through abs(Psi(s)) with dL/d abs(Psi) = dL/dw * W."""
    grad, weight, scores = operands((4, 5), torch.float64)
    leaf = scores.clone().requires_grad_()
    psi = leaf * leaf.abs().pow(power - 1)
    (psi.abs() * grad * weight).sum().backward()
    assert leaf.grad is not None
    assert_close(score_gradient(grad, weight, scores, power, backend), leaf.grad)


@pytest.mark.parametrize("grad_format", FORMATS, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("score_format", FORMATS, ids=str)
def test_score_gradient_lies_as_its_scores(
    backend: str,
    grad_format: torch.memory_format,
    weight_format: torch.memory_format,
    score_format: torch.memory_format,
) -> None:
    grad, weight, scores = operands((3, 4, 3, 3))
    want = by_formula(grad, weight, scores, 1.0).float()
    got = score_gradient(
        grad.contiguous(memory_format=grad_format),
        weight.contiguous(memory_format=weight_format),
        scores.contiguous(memory_format=score_format),
        backend=backend,
    )
    assert_close(got, want)
    assert got.is_contiguous(memory_format=score_format)


def test_score_gradient_of_other_strides(backend: str) -> None:
    grad, weight, scores = operands((6, 9))
    want = by_formula(grad, weight, scores, 1.0).float()
    strided = [t.T.contiguous().T for t in (grad, weight, scores)]
    assert_close(score_gradient(*strided, backend=backend), want)
    padded = [torch.stack([t, t], -1)[..., 0] for t in (grad, weight, scores)]
    assert_close(score_gradient(*padded, backend=backend), want)


def test_score_gradient_from_bfloat16(backend: str) -> None:
    grad, weight, scores = operands((5, 7))
    got = score_gradient(grad.bfloat16(), weight, scores, backend=backend)
    assert_close(got, by_formula(grad.bfloat16(), weight, scores, 1.0).float())
    low = [t.bfloat16() for t in (grad, weight, scores)]
    got = score_gradient(*low, backend=backend)
    assert_close(got, by_formula(*low, 1.0).bfloat16())


def test_bad_operands(backend: str) -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(3,\), \(3,\) and \(4,\)"):
        score_gradient(torch.ones(3), torch.ones(3), torch.ones(4), backend=backend)
    with pytest.raises(ValueError, match=r"power must be at least 1, got 0\.5"):
        score_gradient(torch.ones(3), torch.ones(3), torch.ones(3), 0.5, backend)


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="unknown backend 'fpga'"):
        effective_weight(torch.ones(3, dtype=torch.int8), torch.tensor(1.0), torch.float32, "fpga")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_effective_weight(backend: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    code = torch.randint(-1, 2, (3, 5, 3, 3), dtype=torch.int8).contiguous(memory_format=layout)
    gain = torch.tensor(0.123456789)
    got = effective_weight(code, gain, dtype, backend)
    want = torch.tensor(
        [float(c) * gain.item() for c in code.flatten().tolist()], dtype=torch.float64
    )
    assert torch.equal(got, want.view(code.shape).to(dtype))
    assert got.is_contiguous(memory_format=layout)


def test_effective_weight_of_other_strides(backend: str) -> None:
    code = torch.randint(-1, 2, (4, 6), dtype=torch.int8)
    gain = torch.tensor(0.25)
    for strided in (code.T, code[:, ::2], code[:0]):
        assert torch.equal(
            effective_weight(strided, gain, torch.float32, backend), strided.float() / 4
        )


@pytest.mark.parametrize("given_kept", [True, False])
def test_weight_gradient_is_that_of_the_clipped_identity(given_kept: bool) -> None:
    """Against autograd through gain(W) * ste(sign(W)) * M with ste's derivative 1[abs(W) <= 1]."""
    grad, weight, _ = operands((6, 7), torch.float64)
    mask = torch.rand(6, 7) < 0.5
    leaf = weight.clone().requires_grad_()
    clipped = leaf.clamp(-1, 1)
    sign = leaf.sign().detach() + clipped - clipped.detach()
    gain = (leaf.abs() * mask).sum() / mask.sum()
    (gain * sign * mask * grad).sum().backward()
    code = (weight.sign() * mask).to(torch.int8)
    kept = mask.sum() if given_kept else None
    assert leaf.grad is not None
    assert bool((weight.abs() > 1).any())
    assert_close(weight_gradient(grad, weight, code, gain.detach(), kept), leaf.grad, 1e-14)


def test_autocast_dtype() -> None:
    x, wide = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert autocast(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast(x).dtype == torch.bfloat16
        assert autocast(wide).dtype == torch.float64


def test_opcheck(backend: str) -> None:
    for shape in ((5, 7), (3, 4, 3, 3)):
        grad, weight, scores = operands(shape)
        torch.library.opcheck(
            torch.ops.mpt_fast.score_gradient.default, (grad, weight, scores, 2.0, backend)
        )
    laid = [t.contiguous(memory_format=torch.channels_last) for t in (grad, weight, scores)]
    torch.library.opcheck(
        torch.ops.mpt_fast.score_gradient.default, (grad, weight, laid[2], 1.0, backend)
    )
