"""Shared suite of masked_conv2d, on every backend."""

from typing import Any

import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from kernel_cases import CONV_CASES, PROPERTY, ConvCase, conv_cases, naive_conv2d
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.masked_conv2d import masked_conv2d, op
from mpt_fast.kernels.masked_weight import score_gradient, weight_gradient

backend = backend_fixture(op.BACKENDS, every_isa=False)

GAIN = 0.3125  # a power of two times a small integer: products with +-1 sums are exact


def ticket(case: ConvCase, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """(weight, scores, code, gain) of one shape; the code is {-1, 0, +1}."""
    code = case.weight(torch.int8)
    generator = torch.Generator().manual_seed(case.seed + 2)
    magnitude = torch.rand(code.shape, generator=generator, dtype=dtype) * 2
    weight = torch.where(code == 0, magnitude - 1, magnitude * code)
    scores = torch.randn(code.shape, generator=generator, dtype=dtype)
    return weight, scores, code, torch.tensor(GAIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONV_CASES)
def test_matches_loops(backend: str, name: str, dtype: torch.dtype) -> None:
    case = CONV_CASES[name]
    x = case.floats(dtype)
    out = masked_conv2d(x, *ticket(case, dtype), **case.geometry, backend=backend)
    code = case.weight(torch.int8).double().numpy()
    want = naive_conv2d(x.double().numpy(), GAIN * code, **case.geometry)
    assert_close(out, torch.from_numpy(want).to(dtype))


@PROPERTY
@given(case=conv_cases())
def test_random_convolutions(backend: str, case: ConvCase) -> None:
    """Forward and every gradient against PyTorch's convolution with the effective weight."""
    check_gradients(case, backend, torch.float64, 2.0)


@pytest.mark.parametrize("power", [1.0, 3.0])
@pytest.mark.parametrize("name", CONV_CASES)
def test_gradients(backend: str, name: str, power: float) -> None:
    check_gradients(CONV_CASES[name], backend, torch.float32, power)


def check_gradients(case: ConvCase, backend: str, dtype: torch.dtype, power: float) -> None:
    x = case.floats(dtype).requires_grad_()
    weight, scores, code, gain = ticket(case, dtype)
    weight.requires_grad_()
    scores.requires_grad_()
    kept = torch.tensor(max(1, int((code != 0).sum())))
    out = masked_conv2d(
        x, weight, scores, code, gain, **case.geometry, power=power, kept=kept, backend=backend
    )
    upstream = torch.randn(out.shape, dtype=dtype)
    out.backward(upstream)

    dense_x = x.detach().double().requires_grad_()
    effective = (GAIN * code.double()).requires_grad_()
    F.conv2d(dense_x, effective, None, **case.geometry).backward(upstream.double())
    w, s = weight.detach().double(), scores.detach().double()
    of_scores = score_gradient(effective.grad, w, s, power, "reference")
    of_weight = weight_gradient(effective.grad, w, code, gain, kept)
    assert_close(x.grad, dense_x.grad.to(dtype))
    assert_close(scores.grad, of_scores.to(dtype), 1e-6)
    # The path through the gain is one sum over the whole layer, whose terms cancel.
    assert_close(weight.grad, of_weight.to(dtype), 4e-6)


@pytest.mark.parametrize(
    "case",
    [
        ConvCase(batch=1, image=(4, 4), channels_per_group=2, outputs_per_group=2),
        ConvCase(batch=1, groups=2, channels_per_group=1, stride=(2, 1), dilation=(1, 2)),
    ],
    ids=["plain", "grouped"],
)
def test_gradcheck_to_x(backend: str, case: ConvCase) -> None:
    args = ticket(case)
    x = case.floats(torch.float64).requires_grad_()

    def convolve(x: Tensor) -> Tensor:
        return masked_conv2d(x, *args, **case.geometry, backend=backend)

    assert torch.autograd.gradcheck(convolve, (x,))


def test_pruned_scores_get_a_gradient_and_the_gain_gives_none(backend: str) -> None:
    case = ConvCase(density=0.4)
    weight, scores, code, gain = ticket(case)
    scores.requires_grad_()
    gain = gain.double().requires_grad_()
    masked_conv2d(
        case.floats(torch.float64), weight, scores, code, gain, backend=backend
    ).sum().backward()
    assert scores.grad is not None
    assert bool((scores.grad[code == 0] != 0).all())
    assert gain.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_needed_gradients(
    backend: str, needs: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ConvCase()
    weight, scores, code, gain = ticket(case)
    x = case.floats(torch.float64).requires_grad_(needs[0])
    scores.requires_grad_(needs[1])
    out = masked_conv2d(x, weight, scores, code, gain, backend=backend)
    assert out.requires_grad == any(needs)
    if not any(needs):
        return
    asked = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.convolution_backward.default:
                asked.append(args[-1])
            return func(*args, **(kwargs or {}))

    with Spy():
        out.sum().backward()
    assert asked == [[*needs, False]]
    assert (x.grad is not None, scores.grad is not None) == needs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_is_kept(backend: str, layout: torch.memory_format) -> None:
    case = ConvCase(channels_per_group=4)
    weight, scores, code, gain = ticket(case, torch.float32)
    weight, scores, code = (t.contiguous(memory_format=layout) for t in (weight, scores, code))
    scores.requires_grad_()
    x = case.floats(torch.float32).contiguous(memory_format=layout).requires_grad_()
    out = masked_conv2d(x, weight, scores, code, gain, padding=1, backend=backend)
    assert out.is_contiguous(memory_format=layout)
    out.square().sum().backward()
    assert x.grad is not None
    assert scores.grad is not None
    assert x.grad.is_contiguous(memory_format=layout)
    assert scores.grad.is_contiguous(memory_format=layout)


def test_bfloat16_and_autocast(backend: str) -> None:
    case = ConvCase(channels_per_group=16)
    weight, scores, code, gain = ticket(case, torch.float32)
    scores.requires_grad_()
    x = case.floats(torch.float32).requires_grad_()
    want = masked_conv2d(x.bfloat16(), weight, scores, code, gain, backend=backend)
    assert want.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        got = masked_conv2d(x, weight, scores, code, gain, backend=backend)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    got.float().sum().backward()
    assert x.grad is not None
    assert scores.grad is not None
    assert x.grad.dtype == scores.grad.dtype == torch.float32
    assert_close(got, masked_conv2d(x, weight, scores, code, gain).bfloat16(), 2e-2)


def test_unbatched_input(backend: str) -> None:
    case = ConvCase(batch=1)
    x = case.floats(torch.float64)
    args = ticket(case)
    batched = masked_conv2d(x, *args, **case.geometry, backend=backend)
    single = masked_conv2d(x[0], *args, **case.geometry, backend=backend)
    assert torch.equal(single, batched[0])


def test_compiles_without_graph_breaks(backend: str) -> None:
    case = ConvCase(stride=(2, 1))
    weight, scores, code, gain = ticket(case, torch.float32)

    def step(x: Tensor, s: Tensor) -> Tensor:
        return masked_conv2d(
            x, weight, s, code, gain, **case.geometry, power=2.0, backend=backend
        ).square()

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
    for name in ("3x3 padded", "stride 2", "grouped", "1x1", "no image"):
        case = CONV_CASES[name]
        x, code, gain = case.floats(torch.float32), case.weight(), torch.tensor(GAIN)
        geometry = (case.stride, case.padding, case.dilation, case.groups)
        operation = torch.ops.mpt_fast.masked_conv2d.default
        torch.library.opcheck(operation, (x, code, gain, *geometry, backend))
        x, code = (t.contiguous(memory_format=torch.channels_last) for t in (x, code))
        torch.library.opcheck(operation, (x, code, gain, *geometry, backend))


def test_bad_operands(backend: str) -> None:
    case = ConvCase()
    weight, scores, code, gain = ticket(case)
    x = case.floats(torch.float64)
    with pytest.raises(TypeError, match=r"x must be floating, got torch\.int32"):
        masked_conv2d(x.int(), weight, scores, code, gain, backend=backend)
    with pytest.raises(ValueError, match="weight, scores and code must have one shape"):
        masked_conv2d(x, weight, scores[:2], code, gain, backend=backend)
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\] or \[C, H, W\], got \(3, 3\)"):
        masked_conv2d(x[:, :, 0, 0], weight, scores, code, gain, backend=backend)
    with pytest.raises(ValueError, match="the input has 2 channels, but the weight expects 3"):
        masked_conv2d(x[:, :2], weight, scores, code, gain, backend=backend)
    with pytest.raises(ValueError, match="stride must be one or two integers >= 1"):
        masked_conv2d(x, weight, scores, code, gain, stride=0, backend=backend)
    with pytest.raises(BackendError, match="unknown backend 'mkl'"):
        masked_conv2d(x, weight, scores, code, gain, backend="mkl")
