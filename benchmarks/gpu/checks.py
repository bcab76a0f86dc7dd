"""Every operation of the Triton backend against its reference, on the device, before any timing."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.setting import TOLERANCE, Setting, require_close, require_equal
from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d, bitsliced_conv2d_sign
from mpt_fast.kernels.bitsliced_conv2d import triton as adders
from mpt_fast.kernels.bitsliced_linear import bitsliced_linear, bitsliced_linear_sign
from mpt_fast.kernels.combine import combine
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.masked_conv2d import masked_conv2d, routes
from mpt_fast.kernels.masked_linear import masked_linear
from mpt_fast.kernels.masked_weight import (
    Cut,
    effective_weight,
    score_gradient,
    weight_gradient,
)
from mpt_fast.kernels.pack_bits import pack_bits, unpack_bits
from mpt_fast.kernels.pool2d import pool2d
from mpt_fast.kernels.select_topk import apply_threshold, select_topk, threshold_from_quantile
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.sparse_conv2d import triton as sparse
from mpt_fast.kernels.sparse_linear import sparse_linear
from mpt_fast.kernels.taps import KernelList, Taps
from mpt_fast.kernels.xnor_conv2d import triton as xnor
from mpt_fast.kernels.xnor_conv2d import xnor_conv2d
from mpt_fast.kernels.xnor_linear import pack_weight, xnor_linear

BACKENDS = ("triton", "reference")
FORMS = ("codes", "scores", "library")
# The gain in the products; a power of two, so exact.
GAIN = 0.25


@contextlib.contextmanager
def route(name: str | None, module: ModuleType = adders) -> Iterator[None]:
    """Pins the route of the bit-sliced Triton kernels, or of those that another module chooses."""
    before, module.ROUTE = module.ROUTE, name
    try:
        yield
    finally:
        module.ROUTE = before


def selection(setting: Setting) -> None:
    """Distinct scores and ties, contiguous and channels_last; codes from given thresholds."""
    rows = (7, 33) if setting.dry else (1000, 513)
    for levels in (None, 4):
        weights = [setting.normal(8, 4, 3, 3), setting.normal(*rows)]
        scores = [torch.randn_like(weight) for weight in weights]
        if levels:
            scores = [(score * levels).round() / levels for score in scores]
        scores[0] = scores[0].contiguous(memory_format=torch.channels_last)
        for sparsity in (0.0, 0.5, 0.95):
            got, want = (select_topk(weights, scores, sparsity, name) for name in BACKENDS)
            for mine, theirs in zip(got.codes, want.codes, strict=True):
                require_equal("select_topk", mine, theirs)
            require_equal("select_topk kept", got.kept, want.kept)
            require_close("select_topk sums", got.abs_sums, want.abs_sums, 1e-12)
            again = select_topk(weights, scores, sparsity, "triton")
            require_equal("select_topk sums again", again.abs_sums, got.abs_sums)
            given = [
                apply_threshold(weights, scores, want.thresholds, want.tie_limits, name)
                for name in BACKENDS
            ]
            for mine, theirs in zip(given[0].codes, given[1].codes, strict=True):
                require_equal("apply_threshold", mine, theirs)
            cuts = [threshold_from_quantile(scores, sparsity, name) for name in BACKENDS]
            require_equal("threshold_from_quantile", *map(torch.as_tensor, cuts))


def elementwise(setting: Setting) -> None:
    """binary_activation, score_gradient, effective_weight, pack_bits and unpack_bits."""
    for dtype in (*TOLERANCE, torch.float64):
        x = setting.normal(70, 5, 6, 7, dtype=dtype).requires_grad_()
        out = binary_activation(x, "triton")
        require_equal(f"binary_activation {dtype}", out, (2 * (x >= 0) - 1).to(dtype))
        upstream = torch.randn_like(x)
        (mine,) = torch.autograd.grad(out, x, upstream)
        slope = 2 * (1 - x.detach().double().abs()).clamp_min(0)
        tolerance = TOLERANCE[dtype] if dtype != torch.float64 else 1e-12
        theirs = upstream.double() * slope
        require_close(f"binary_activation gradient {dtype}", mine, theirs, tolerance)
    scores = setting.normal(33, 77)
    for power in (1.0, 2.0, 2.5):
        mine = score_gradient(scores.cos(), scores.sin(), scores, power, "triton")
        wide = scores.double()
        theirs = score_gradient(
            scores.cos().double(), scores.sin().double(), wide, power, "reference"
        )
        require_close("score_gradient", mine, theirs, 2e-6)
    for dtype in (torch.float16, torch.bfloat16):  # behind a product of the library
        grad = scores.cos().to(dtype)
        mine = score_gradient(grad, scores.sin(), scores, 1.0, "triton")
        theirs = grad.double() * scores.sin().double() * scores.double().sign()
        require_close(f"score_gradient of {dtype}", mine, theirs, 2e-6)
    code = setting.ternary((9, 7, 3, 3), 0.5)
    gain = torch.tensor(0.3, device=setting.device)
    for dtype in TOLERANCE:
        mine = effective_weight(code, gain, dtype, "triton")
        require_close(f"effective_weight {dtype}", mine, gain.double() * code, TOLERANCE[dtype])
    for dtype in (*TOLERANCE, torch.float64, torch.int8, torch.int32):
        x = (4 * setting.normal(70, 5, 6, 7)).to(dtype)
        for dim in (0, -1):
            planes, want = (pack_bits(x, dim, name) for name in BACKENDS)
            require_equal(f"pack_bits {dtype}", planes, want)
            mine = unpack_bits(want, x.shape[dim], dim, dtype, "triton")
            require_equal(f"unpack_bits {dtype}", mine, (2 * (x >= 0).int() - 1).to(dtype))


def _masked_cases(setting: Setting) -> list[tuple[int, int, int, dict[str, Any]]]:
    """(channels, outputs, kernel, geometry); the first one also without tf32."""
    if setting.dry:
        return [(4, 20, 3, {"stride": 2, "padding": 1}), (4, 6, 1, {"groups": 2})]
    return [
        (32, 64, 3, {"padding": 1}),
        (16, 24, 1, {}),
        (64, 130, 3, {"stride": 2, "padding": 1}),
        (70, 128, 5, {"padding": 2}),
        (64, 64, 7, {"stride": 2, "padding": 3}),
        (48, 96, 3, {"groups": 3, "dilation": 2, "padding": 2}),
    ]


def masked(setting: Setting, dtype: torch.dtype) -> None:
    """Masked convolution and linear layer: every form, forward and every gradient, at every tile.

    Against the products with gain * code in float64, whose gradients get the factors.
    """
    batch, size = (2, (6, 5)) if setting.dry else (9, (15, 13))
    for number, (channels, outputs, kernel, geometry) in enumerate(_masked_cases(setting)):
        x = setting.image(batch, channels, *size, dtype=dtype)
        shape = (outputs, channels // geometry.get("groups", 1), kernel, kernel)
        name = f"masked_conv2d {channels}->{outputs} {kernel}x{kernel} {geometry} {dtype}"
        strict = (False, True) if dtype == torch.float32 and not number else (False,)
        for ieee in strict:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=not ieee):
                _every_form(
                    name + " ieee" * ieee,
                    functools.partial(masked_conv2d, **geometry),
                    functools.partial(F.conv2d, **geometry),
                    x,
                    shape,
                    1e-5 if ieee else TOLERANCE[dtype],
                )
    rows, inputs, outputs = (5, 20, 7) if setting.dry else (77, 130, 65)
    x = setting.normal(rows, inputs, dtype=dtype)
    _every_form(
        f"masked_linear {dtype}", masked_linear, F.linear, x, (outputs, inputs), TOLERANCE[dtype]
    )


def _every_form(
    name: str,
    operation: Callable[..., Tensor],
    dense: Callable[..., Tensor],
    x: Tensor,
    shape: tuple[int, ...],
    tolerance: float,
) -> None:
    """A ticket layer of scores that tie, power 2, on each of its routes."""
    weight = torch.randn(shape, device=x.device).requires_grad_()
    scores = (8 * torch.randn(shape, device=x.device)).round().div_(8).requires_grad_()
    chosen = select_topk([weight], [scores], 0.5, "reference")
    code, kept = chosen.codes[0], chosen.kept[0]
    gain = torch.tensor(GAIN, device=x.device)
    cut = Cut(chosen.thresholds[0], chosen.tie_limits[0])
    leaf = x.detach().requires_grad_()
    wide = x.detach().double().requires_grad_()
    effective = (GAIN * code.double()).requires_grad_()
    want = dense(wide, effective)
    upstream = torch.randn_like(want).to(x.dtype)
    to_x, to_effective = torch.autograd.grad(want, (wide, effective), upstream.double())
    w, s = weight.detach().double(), scores.detach().double()
    to_weight = weight_gradient(to_effective, w, code, gain.double(), kept)
    expected = (to_x, score_gradient(to_effective, w, s, 2.0, "reference"), to_weight)
    for form in FORMS:
        with route(form, routes):
            out = operation(
                leaf, weight, scores, code, gain, power=2.0, kept=kept, backend="triton", cut=cut
            )
            got = torch.autograd.grad(out, (leaf, scores, weight), upstream, retain_graph=True)
            again = torch.autograd.grad(out, (leaf, scores), upstream)
        if form != "library":  # which is as repeatable as PyTorch's switches make it
            for what, first, second in zip(("x", "scores"), got, again, strict=False):
                require_equal(f"{name} {form}, gradient to {what} again", second, first)
        require_close(f"{name} {form}", out, want, tolerance)
        for what, mine, theirs in zip(("x", "scores", "weight"), got, expected, strict=True):
            require_close(f"{name} {form}, gradient to {what}", mine, theirs, tolerance)
    # Fine-tuning: the scores rest.
    out = operation(x, weight, scores.detach(), code, gain, kept=kept, backend="triton")
    (alone,) = torch.autograd.grad(out, weight, upstream)
    require_close(f"{name}, gradient to weight alone", alone, to_weight, tolerance)


def packed(setting: Setting) -> None:
    """Bit-sliced (both routes, every form), popcount and sparse operations, against float64."""
    cases = ((512, 64, 8, 1, 24, 0.2), (130, 33, 7, 2, 24, 0.2), (1, 5, 9, 1, 24, 0.2),
             (130, 512, 4, 1, 24, 0.5))  # fmt: skip
    if setting.dry:
        cases = ((65, 3, 5, 1, 4, 0.2), (1, 5, 6, 2, 4, 0.2), (1, 60, 3, 1, 1, 1.0))
    for batch, channels, size, stride, outputs, density in cases:
        x = setting.normal(batch, channels, size, size)
        code = setting.ternary((outputs, channels, 3, 3), density)
        code = code.abs() if density == 1.0 else code  # a list long enough for the long turns
        taps = Taps.from_dense(code)
        geometry: dict[str, Any] = {"stride": stride, "padding": 1}
        signs = 2 * (x >= 0).double() - 1
        exact = F.conv2d(signs, code.double(), **geometry)
        _bit_sums(setting, exact, x, taps, geometry)
        rows = pack_bits(x, -1, "reference")
        kernels = KernelList.from_taps(taps)
        sums = xnor_conv2d(rows, size, kernels, **geometry, backend="triton")
        require_close("xnor_conv2d", sums, exact, 0.0)
        layer = xnor.prepare(kernels, channels, (size, size), make_geometry(**geometry))
        got = xnor.run(pack_bits(x, 0, "reference"), layer, batch)
        require_close("xnor_conv2d of planes", got.reshape(exact.shape), exact, 0.0)
        _sparse(setting, x, code, geometry)
    _packed_linear(setting)


def _bit_sums(
    setting: Setting, exact: Tensor, x: Tensor, taps: Taps, geometry: dict[str, Any]
) -> None:
    """Both routes' sums, decisions and decisions with a shortcut, by the exact sums [N, O, ...].

    Without a geometry it is the linear layer of rows x [N, I].
    """
    linear = not geometry
    operations = (
        (bitsliced_linear, bitsliced_linear_sign)
        if linear
        else (bitsliced_conv2d, bitsliced_conv2d_sign)
    )
    name, outputs, images = operations[0].__name__, taps.shape[0], x.shape[0]
    planes = pack_bits(x, 0, "reference")
    lanes = exact.movedim(0, -1)
    t, other = (
        torch.randint(-9, 9, (outputs,), device=setting.device, dtype=torch.int32) for _ in range(2)
    )
    flip = torch.arange(outputs, device=setting.device) % 2 == 0
    shortcut = setting.normal(*lanes.shape)
    residual = pack_bits(shortcut, -1, "reference")
    form = (-1, *[1] * (lanes.dim() - 1))
    for way in adders.ROUTES:
        with route(way):
            sums = operations[0](planes, taps, **geometry, backend="triton")
            require_close(f"{name} {way}", sums[..., :images], lanes, 0.0)
            for shown, extra in (("sign", {}), ("residual", {"residual": residual})):
                limit = t.view(form)
                if extra:
                    extra["residual_threshold"] = other
                    limit = torch.where(shortcut >= 0, other.view(form), limit)
                bits = operations[1](planes, taps, t, flip, **geometry, **extra, backend="triton")
                want = torch.where(flip.view(form), lanes <= limit, lanes >= limit)
                got = unpack_bits(bits, images, -1, torch.int8, "reference") > 0
                require_equal(f"{name} {shown} {way}", got, want)


def _sparse(setting: Setting, x: Tensor, code: Tensor, geometry: dict[str, Any]) -> None:
    """sparse_conv2d on +1/-1 and on real taps, with a bias or none, rows or lanes of images."""
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        x = x.to(dtype)
        bias = setting.normal(code.shape[0], dtype=dtype)
        for weight in (code, code * setting.normal(*code.shape, dtype=dtype)):
            taps = Taps.from_dense(weight)
            exact = F.conv2d(x.double(), weight.double(), **geometry)
            got = sparse_conv2d(x, taps, **geometry, backend="triton")
            require_close(f"sparse_conv2d {weight.dtype} taps", got, exact, tolerance)
            got = sparse_conv2d(x, taps, bias, **geometry, backend="triton")
            want = exact + bias.double().view(-1, 1, 1)
            require_close(f"sparse_conv2d {weight.dtype} taps and bias", got, want, tolerance)
            layer = sparse.prepare(taps, (x.shape[2], x.shape[3]), make_geometry(**geometry))
            got = sparse.run_lanes(x.permute(1, 2, 3, 0).contiguous(), layer)
            want = exact.permute(1, 2, 3, 0)
            require_close(f"sparse_conv2d {weight.dtype} taps in lanes", got, want, tolerance)


def _packed_linear(setting: Setting) -> None:
    shapes = ((300, 577, 24, 0.2), (300, 2048, 24, 0.9))
    if setting.dry:
        shapes = ((3, 40, 2, 0.2), (3, 520, 1, 1.0))
    for batch, inputs, outputs, density in shapes:
        x = setting.normal(batch, inputs)
        code = setting.ternary((outputs, inputs), density)
        code = code.abs() if density == 1.0 else code
        taps = Taps.from_dense(code)
        exact = (2 * (x >= 0).double() - 1) @ code.double().T
        _bit_sums(setting, exact, x, taps, {})
        words = pack_bits(x, 1, "reference")
        sums = xnor_linear(words, *pack_weight(taps), "triton")
        require_close("xnor_linear", sums, exact, 0.0)
        bias = setting.normal(outputs)
        want = x.double() @ code.double().T
        require_close("sparse_linear", sparse_linear(x, taps, None, "triton"), want, 1e-6)
        got = sparse_linear(x, taps, bias, "triton")
        require_close("sparse_linear and bias", got, want + bias.double(), 1e-6)


def joins(setting: Setting) -> None:
    """combine and pool2d on planes, integer sums and reals, which both backends round alike."""
    channels, images = 5, 70
    real = setting.normal(channels, 6, 7, images)
    sums = torch.randint(-99, 99, real.shape, device=setting.device, dtype=torch.int32)
    planes = pack_bits(setting.normal(*real.shape), -1, "reference")
    scales = [setting.normal(channels) for _ in range(3)]
    for sources in (
        [real],
        [sums, planes],
        [real, real.exp()],
        [planes, real.double()],
        [real.double(), sums, planes],
    ):
        for act, dtype in (("sign", torch.float64), ("relu", torch.float32), ("none", real.dtype)):
            vectors = (scales[: len(sources)], scales[-len(sources) :])
            results = [combine(sources, *vectors, act, dtype, images, name) for name in BACKENDS]
            require_equal(f"combine of {len(sources)}, {act}", *results)
    flip = torch.arange(channels, device=setting.device) % 2 == 0
    for x, inverted in ((planes, flip), (planes, None), (sums, None), (real, None)):
        results = [pool2d(x, "max", 3, 2, 1, flip=inverted, backend=name) for name in BACKENDS]
        require_equal(f"pool2d max {x.dtype}", *results)
    for x in (real, real.double()):
        mine, theirs = (pool2d(x, "mean", 2, backend=name) for name in BACKENDS)
        require_close(f"pool2d mean {x.dtype}", mine, theirs, 1e-6)
        results = [
            pool2d(x, "mean", 3, 2, 1, count_include_pad=False, backend=name) for name in BACKENDS
        ]
        require_close(f"pool2d mean without its padding {x.dtype}", *results, 1e-6)


CHECKS: dict[str, Callable[[Setting], None]] = {
    "selection": selection,
    "elementwise": elementwise,
    "masked float32": lambda setting: masked(setting, torch.float32),
    "masked float16": lambda setting: masked(setting, torch.float16),
    "masked bfloat16": lambda setting: masked(setting, torch.bfloat16),
    "packed": packed,
    "joins": joins,
}
