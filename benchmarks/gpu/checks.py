"""Every operation of the Triton backend against its reference, on the device, before any timing."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.setting import TOLERANCE, Setting, require_close, require_equal
from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d, bitsliced_conv2d_sign
from mpt_fast.kernels.bitsliced_linear import bitsliced_linear
from mpt_fast.kernels.combine import combine
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.masked_conv2d import masked_conv2d
from mpt_fast.kernels.masked_linear import masked_linear
from mpt_fast.kernels.masked_weight import effective_weight, score_gradient
from mpt_fast.kernels.pack_bits import pack_bits, unpack_bits
from mpt_fast.kernels.pool2d import pool2d
from mpt_fast.kernels.select_topk import apply_threshold, select_topk, threshold_from_quantile
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.sparse_linear import sparse_linear
from mpt_fast.kernels.taps import KernelList, Taps
from mpt_fast.kernels.xnor_conv2d import xnor_conv2d
from mpt_fast.kernels.xnor_linear import pack_weight, xnor_linear

BACKENDS = ("triton", "reference")
# The gain in the products; a power of two, so exact.
GAIN = 0.25


@contextlib.contextmanager
def route(name: str) -> Iterator[None]:
    """Pins the route of the bit-sliced Triton kernels."""
    from mpt_fast.kernels.bitsliced_conv2d import triton

    before, triton.ROUTE = triton.ROUTE, name
    try:
        yield
    finally:
        triton.ROUTE = before


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
    x = setting.normal(70, 5, 6, 7).requires_grad_()
    upstream = torch.randn_like(x)
    for name in BACKENDS:
        require_equal("binary_activation", binary_activation(x, name), 2 * (x >= 0).float() - 1)
    (mine,), (theirs,) = (
        torch.autograd.grad(binary_activation(x, name), x, upstream) for name in BACKENDS
    )
    require_close("binary_activation gradient", mine, theirs, 1e-6)
    scores = setting.normal(33, 77)
    for power in (1.0, 2.0, 2.5):
        mine = score_gradient(scores.cos(), scores.sin(), scores, power, "triton")
        wide = scores.double()
        theirs = score_gradient(
            scores.cos().double(), scores.sin().double(), wide, power, "reference"
        )
        require_close("score_gradient", mine, theirs, 2e-6)
    code = setting.ternary((9, 7, 3, 3), 0.5)
    gain = torch.tensor(0.3, device=setting.device)
    for dtype in TOLERANCE:
        mine, theirs = (effective_weight(code, gain, dtype, name) for name in BACKENDS)
        require_close(f"effective_weight {dtype}", mine, theirs, 1e-2)
    for dim in (0, -1):
        planes, want = (pack_bits(x, dim, name) for name in BACKENDS)
        require_equal("pack_bits", planes, want)
        mine, theirs = (unpack_bits(want, x.shape[dim], dim, backend=name) for name in BACKENDS)
        require_equal("unpack_bits", mine, theirs)


def masked(setting: Setting, dtype: torch.dtype) -> None:
    """Masked convolution and linear layer, forward and every gradient, at every shipped tile."""
    cases = [(16, 24, 1, 1), (32, 64, 3, 1), (64, 130, 3, 2), (70, 128, 5, 1), (64, 64, 7, 2)]
    batch, size = 9, (15, 13)
    if setting.dry:
        cases, batch, size = [(3, 5, 1, 1), (4, 20, 3, 2)], 2, (6, 5)
    gain = torch.tensor(GAIN, device=setting.device)
    for channels, outputs, kernel, stride in cases:
        x = setting.image(batch, channels, *size, dtype=dtype).requires_grad_()
        code = setting.ternary((outputs, channels, kernel, kernel), 0.5)
        weight = setting.normal(*code.shape)
        scores = setting.normal(*code.shape).requires_grad_()
        name = f"masked_conv2d {channels}->{outputs} {kernel}x{kernel}/{stride} {dtype}"
        geometry: dict[str, Any] = {"stride": stride, "padding": kernel // 2}
        out = masked_conv2d(x, weight, scores, code, gain, **geometry, backend="triton")
        upstream = torch.randn_like(out)
        mine = torch.autograd.grad(out, (x, scores), upstream)
        wide = x.detach().double().requires_grad_()
        effective = (GAIN * code.double()).requires_grad_()
        want = F.conv2d(wide, effective, **geometry)
        theirs = torch.autograd.grad(want, (wide, effective), upstream.double())
        require_close(name, out, want, TOLERANCE[dtype])
        require_close(f"{name} dx", mine[0], theirs[0], TOLERANCE[dtype])
        factor = weight.double() * scores.detach().double().sign()
        require_close(f"{name} dscores", mine[1], theirs[1] * factor, TOLERANCE[dtype])
        _formed_from_scores(name, x.detach(), weight, scores.detach(), geometry, setting)
    x = setting.normal(77, 130, dtype=dtype).requires_grad_()
    code = setting.ternary((65, 130), 0.5)
    weight, scores = setting.normal(65, 130), setting.normal(65, 130).requires_grad_()
    out = masked_linear(x, weight, scores, code, gain, backend="triton")
    upstream = torch.randn_like(out)
    mine = torch.autograd.grad(out, (x, scores), upstream)
    wide, effective = x.detach().double(), GAIN * code.double()
    require_close(f"masked_linear {dtype}", out, wide @ effective.T, TOLERANCE[dtype])
    require_close("masked_linear dx", mine[0], upstream.double() @ effective, TOLERANCE[dtype])
    factor = weight.double() * scores.detach().double().sign()
    want = upstream.double().T @ wide * factor
    require_close("masked_linear dscores", mine[1], want, TOLERANCE[dtype])


def _formed_from_scores(
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    geometry: dict[str, Any],
    setting: Setting,
) -> None:
    """The variant that forms the weight in the operand load, against the codes it stands for."""
    from mpt_fast.kernels.masked_conv2d import triton

    chosen = select_topk([weight], [scores], 0.5, "reference")
    code = chosen.codes[0]
    layer = triton.Layer.of((x.shape[2], x.shape[3]), code.shape, make_geometry(**geometry))
    formed = triton.FromScores(
        triton.nhwc(weight), triton.nhwc(scores), chosen.thresholds[0], chosen.tie_limits[0]
    )
    gain = torch.tensor(GAIN, device=setting.device)
    compact = triton.nhwc(code)
    y = triton.masked_conv2d_fwd(triton.nhwc(x), compact, gain, layer)
    got = triton.masked_conv2d_fwd(triton.nhwc(x), formed, gain, layer)
    require_close(f"{name} from scores", got, y, TOLERANCE[x.dtype])
    dy = torch.randn_like(y)
    want = triton.masked_conv2d_bwd_x(dy, compact, gain, layer)
    got = triton.masked_conv2d_bwd_x(dy, formed, gain, layer)
    require_close(f"{name} dx from scores", got, want, TOLERANCE[x.dtype])


def packed(setting: Setting) -> None:
    """Bit-sliced (both routes), popcount and sparse operations."""
    cases = ((512, 64, 8, 1), (130, 33, 7, 2), (1, 5, 9, 1))
    if setting.dry:
        cases = ((65, 3, 5, 1), (1, 5, 6, 2))
    for batch, channels, size, stride in cases:
        x = setting.normal(batch, channels, size, size)
        code = setting.ternary((24, channels, 3, 3), 0.2)
        taps = Taps.from_dense(code)
        geometry: dict[str, Any] = {"stride": stride, "padding": 1}
        planes = pack_bits(x, 0, "reference")
        want = bitsliced_conv2d(planes, taps, **geometry, backend="reference")
        cut = torch.randint(-9, 9, (24,), device=setting.device, dtype=torch.int32)
        flip = torch.rand(24, device=setting.device) < 0.5
        signs = bitsliced_conv2d_sign(planes, taps, cut, flip, **geometry, backend="reference")
        for name in ("adders", "int8"):
            with route(name):
                got = bitsliced_conv2d(planes, taps, **geometry, backend="triton")
                require_equal(f"bitsliced_conv2d {name}", got, want)
                bits = bitsliced_conv2d_sign(planes, taps, cut, flip, **geometry, backend="triton")
                require_equal(f"bitsliced_conv2d_sign {name}", bits, signs)
        rows = pack_bits(x, -1, "reference")
        kernels = KernelList.from_taps(taps)
        sums = [xnor_conv2d(rows, size, kernels, **geometry, backend=name) for name in BACKENDS]
        require_equal("xnor_conv2d", *sums)
        exact = F.conv2d(x.double(), code.double(), **geometry)
        got = sparse_conv2d(x, taps, **geometry, backend="triton")
        require_close("sparse_conv2d", got, exact, 1e-6)
    _packed_linear(setting)


def _packed_linear(setting: Setting) -> None:
    batch, inputs, outputs = (3, 40, 2) if setting.dry else (300, 577, 24)
    x = setting.normal(batch, inputs)
    code = setting.ternary((outputs, inputs), 0.2)
    taps = Taps.from_dense(code)
    planes = pack_bits(x, 0, "reference")
    want = bitsliced_linear(planes, taps, "reference")
    for name in ("adders", "int8"):
        with route(name):
            require_equal(
                f"bitsliced_linear {name}", bitsliced_linear(planes, taps, "triton"), want
            )
    exact = x.double() @ code.double().T
    require_close("sparse_linear", sparse_linear(x, taps, None, "triton"), exact, 1e-6)
    words = pack_bits(x, 1, "reference")
    require_equal(
        "xnor_linear", *(xnor_linear(words, *pack_weight(taps), name) for name in BACKENDS)
    )


def joins(setting: Setting) -> None:
    """combine and pool2d on planes, integer sums and reals, which both backends round alike."""
    channels, images = 5, 70
    real = setting.normal(channels, 6, 7, images)
    sums = torch.randint(-99, 99, real.shape, device=setting.device, dtype=torch.int32)
    planes = pack_bits(setting.normal(*real.shape), -1, "reference")
    scales = [setting.normal(channels) for _ in range(3)]
    for sources in ([real], [sums, planes], [real.double(), sums, planes]):
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


CHECKS: dict[str, Callable[[Setting], None]] = {
    "selection": selection,
    "elementwise": elementwise,
    "masked float32": lambda setting: masked(setting, torch.float32),
    "masked float16": lambda setting: masked(setting, torch.float16),
    "masked bfloat16": lambda setting: masked(setting, torch.bfloat16),
    "packed": packed,
    "joins": joins,
}
