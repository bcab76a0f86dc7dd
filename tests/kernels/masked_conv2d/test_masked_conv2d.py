"""Shared suite of masked_conv2d, on every backend."""

from typing import Any

import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from kernel_cases import CONV_CASES, PROPERTY, ConvCase, conv_cases, naive_conv2d
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.kernels import backend as backends
from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.masked_conv2d import masked_conv2d, op
from mpt_fast.kernels.masked_weight import Cut, score_gradient, weight_gradient

backend = backend_fixture(op.BACKENDS, every_isa=False)

GAIN = 0.3125  # a power of two times a small integer: products with +-1 sums are exact
CUT = Cut(torch.tensor(1.0), torch.tensor(0))
FORMS = ("codes", "scores", "library")
# Of sums of rounded terms; a product of the library rounds its gradients to its own dtype.
FORM_TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
needs_triton = pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")


def ticket(case: ConvCase, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
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


@needs_triton
@pytest.mark.parametrize("dtype", FORM_TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["3x3 padded", "stride 2", "grouped", "dilated", "no image"])
def test_every_form_gives_every_gradient(
    name: str, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpt_fast.kernels.masked_conv2d.routes.ROUTE", form)
    case = CONV_CASES[name]
    out, grads, wanted = forward_and_gradients(case, "triton", dtype, 2.0, torch.float32, CUT)
    dense = F.conv2d(case.floats(dtype).double(), GAIN * case.weight().double(), **case.geometry)
    assert_close(out, dense.to(dtype), FORM_TOLERANCE[dtype])
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want.to(got.dtype), 4 * FORM_TOLERANCE[dtype])


@needs_triton
def test_the_cost_table_chooses_the_form_of_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpt_fast.kernels.masked_conv2d import routes, triton

    taken: list[str] = []

    def spy(name: str) -> None:
        launch = getattr(triton, name)

        def noted(first: Tensor, weight: Any, *rest: Any) -> Any:
            form = "scores" if isinstance(weight, triton.FromScores) else "codes"
            taken.append(f"{name.removeprefix('masked_conv2d_')} {form}")
            return launch(first, weight, *rest)

        monkeypatch.setattr(triton, name, noted)

    for name in ("masked_conv2d_fwd", "masked_conv2d_bwd_x", "masked_conv2d_bwd_weight"):
        spy(name)
    case = CONV_CASES["3x3 padded"]
    x, (weight, scores, code, gain) = case.floats(torch.float32), ticket(case, torch.float32)

    def measured(**fastest: str) -> list[costs.Measured]:
        return [
            costs.Measured(
                routes.case("masked_conv2d", product, x.dtype, 90, code.shape),
                {f"triton/{name}": 1.0 + (name != first) for name in routes.ROUTES[product]},
                "measured on a test",
            )
            for product, first in fastest.items()
        ]

    def run(table: list[costs.Measured], cut: Cut | None = CUT) -> list[str]:
        taken.clear()
        leaf, trained = x.clone().requires_grad_(), scores.clone().requires_grad_()
        with costs.supplying(table):
            out = masked_conv2d(
                leaf, weight, trained, code, gain, padding=1, backend="triton", cut=cut
            )
            out.sum().backward()
        return list(taken)

    codes = ["fwd codes", "bwd_x codes", "bwd_weight codes"]  # the last reads no weight
    assert run([]) == codes
    assert run(measured(forward="codes", dgrad="codes", wgrad="splits")) == codes
    assert run(measured(forward="scores", dgrad="codes")) == ["fwd scores", *codes[1:]]
    assert run(measured(dgrad="scores")) == [codes[0], "bwd_x scores", codes[2]]
    assert run(measured(dgrad="scores"), None) == codes
    assert run(measured(forward="library", dgrad="scores", wgrad="library")) == ["bwd_x scores"]
    monkeypatch.setattr(routes, "ROUTE", "scores")
    with pytest.raises(BackendError, match="route 'scores' needs cut and float32"):
        run([], None)


def check_gradients(case: ConvCase, backend: str, dtype: torch.dtype, power: float) -> None:
    _, (to_x, to_scores, to_weight), wanted = forward_and_gradients(
        case, backend, dtype, power, dtype
    )
    want_x, want_scores, want_weight = (want.to(dtype) for want in wanted)
    assert_close(to_x, want_x)
    assert_close(to_scores, want_scores, 1e-6)
    # The path through the gain is one sum over the whole layer, whose terms cancel.
    assert_close(to_weight, want_weight, 4e-6)


def forward_and_gradients(
    case: ConvCase,
    backend: str,
    dtype: torch.dtype,
    power: float,
    weight_dtype: torch.dtype,
    cut: Cut | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(output, gradients to x, scores and weight, the same in float64 by PyTorch)."""
    x = case.floats(dtype).requires_grad_()
    weight, scores, code, gain = ticket(case, weight_dtype)
    weight.requires_grad_()
    scores.requires_grad_()
    kept = torch.tensor(max(1, int((code != 0).sum())))
    out = masked_conv2d(
        x,
        weight,
        scores,
        code,
        gain,
        **case.geometry,
        power=power,
        kept=kept,
        backend=backend,
        cut=cut,
    )
    upstream = torch.randn(out.shape, dtype=dtype)
    out.backward(upstream)

    dense_x = x.detach().double().requires_grad_()
    effective = (GAIN * code.double()).requires_grad_()
    F.conv2d(dense_x, effective, None, **case.geometry).backward(upstream.double())
    w, s = weight.detach().double(), scores.detach().double()
    of_scores = score_gradient(effective.grad, w, s, power, "reference")
    of_weight = weight_gradient(effective.grad, w, code, gain, kept)
    return out, [x.grad, scores.grad, weight.grad], [dense_x.grad, of_scores, of_weight]


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


@needs_triton
@pytest.mark.parametrize("form", FORMS)
def test_strided_operands(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies apart in memory, and an expanded gradient, give what compact tensors give."""
    monkeypatch.setattr("mpt_fast.kernels.masked_conv2d.routes.ROUTE", form)
    case = ConvCase(channels_per_group=4)
    results = []
    for spread in (False, True):
        tensors = [case.floats(torch.float32), *ticket(case, torch.float32)[:3]]
        if spread:
            tensors = [t.repeat_interleave(2, 3)[..., ::2] for t in tensors]
            assert not any(t.is_contiguous() for t in tensors)
        x, weight, scores, code = tensors
        x, scores = x.detach().requires_grad_(), scores.detach().requires_grad_()
        out = masked_conv2d(
            x, weight, scores, code, torch.tensor(GAIN), padding=1, backend="triton", cut=CUT
        )
        results.append((out, *torch.autograd.grad(out.sum(), (x, scores))))
    for compact, spread in zip(*results, strict=True):
        assert_close(spread, compact)


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
        x, tensors = case.floats(torch.float32), ticket(case, torch.float32)
        geometry = (case.stride, case.padding, case.dilation, case.groups)
        operation = torch.ops.mpt_fast.masked_conv2d.default
        torch.library.opcheck(operation, (x, *tensors, *CUT, *geometry, backend))
        x, *rest = (t.contiguous(memory_format=torch.channels_last) for t in (x, *tensors[:3]))
        torch.library.opcheck(operation, (x, *rest, tensors[3], None, None, *geometry, backend))


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
    for position, name in enumerate(("weight", "scores", "code", "gain")):
        elsewhere = [t.to("meta") if i == position else t for i, t in enumerate(ticket(case))]
        with pytest.raises(ValueError, match=rf"^masked_conv2d: {name} is on meta, .* on cpu; mo"):
            masked_conv2d(x, *elsewhere, backend=backend)
    lost = Cut(CUT.threshold.to("meta"), CUT.tie_limit)
    with pytest.raises(ValueError, match=r"masked_conv2d: cut\.threshold is on meta"):
        masked_conv2d(x, weight, scores, code, gain, backend=backend, cut=lost)
    with pytest.raises(ValueError, match="masked_conv2d: code must be int8, got float64"):
        masked_conv2d(x, weight, scores, code.double(), gain, backend=backend)
    with pytest.raises(ValueError, match=r"masked_conv2d: gain must have shape \(\), got \(4,\)"):
        masked_conv2d(x, weight, scores, code, gain.expand(4), backend=backend)
    with pytest.raises(BackendError, match="unknown backend 'mkl'"):
        masked_conv2d(x, weight, scores, code, gain, backend="mkl")
