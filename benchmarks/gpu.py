"""`python -m benchmarks.gpu`: the Triton backend on the GPU of this machine.

First every operation is compared with its reference in float64 on the device; a mismatch ends the
run with exit status 1 and nothing is timed. Then the layer set is timed against what a user would
otherwise run (cuDNN in channels_last, bfloat16) and the selection against PyTorch's. Candidate and
baseline alternate; each figure is the median of CUDA-event times and comes with the 20th and 80th
percentile. Writes `benchmarks/results/gpu.json`. Where there is no GPU every figure is the text
"not measured": nothing is ever estimated.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d, bitsliced_conv2d_sign
from mpt_fast.kernels.bitsliced_linear import bitsliced_linear
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.masked_conv2d import masked_conv2d
from mpt_fast.kernels.masked_linear import masked_linear
from mpt_fast.kernels.masked_weight import score_gradient
from mpt_fast.kernels.pack_bits import pack_bits, unpack_bits
from mpt_fast.kernels.select_topk import select_topk
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.sparse_linear import sparse_linear
from mpt_fast.kernels.taps import KernelList, Taps
from mpt_fast.kernels.xnor_conv2d import xnor_conv2d
from mpt_fast.kernels.xnor_linear import pack_weight, xnor_linear

NOT_MEASURED = "not measured"
RESULTS = Path(__file__).resolve().parent / "results"
LAYERS = {"64@32x32": (64, 32), "128@16x16": (128, 16), "256@8x8": (256, 8), "512@4x4": (512, 4)}
DENSITIES = (0.5, 0.2, 0.1, 0.05)
BATCH = 512
# Relative RMS error allowed against float64.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # float32: tf32


class MismatchError(RuntimeError):
    """A kernel's result is not the reference's."""


def _ternary(shape: Sequence[int], density: float) -> Tensor:
    kept = torch.rand(tuple(shape), device="cuda") < density
    return torch.where(kept, torch.randn(tuple(shape), device="cuda").sign(), 0).to(torch.int8)


def _require_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    got, want = got.detach(), want.detach()
    error = (got.double() - want.double()).square().mean().sqrt()
    scale = want.double().square().mean().sqrt().clamp_min(1e-30)
    relative = float(error / scale)
    if not relative <= tolerance:
        raise MismatchError(f"{name}: relative RMS error {relative:.2e}, allowed {tolerance:.0e}")


def _require_equal(name: str, got: Tensor, want: Tensor) -> None:
    if not torch.equal(got, want):
        raise MismatchError(f"{name}: {int((got != want).sum())} of {want.numel()} entries differ")


def check_selection() -> None:
    """select_topk, distinct scores and ties, contiguous and channels_last."""
    for levels in (None, 4):
        weights = [torch.randn(64, 32, 3, 3, device="cuda"), torch.randn(1000, 513, device="cuda")]
        scores = [torch.randn_like(weight) for weight in weights]
        if levels:
            scores = [(score * levels).round() / levels for score in scores]
        scores[0] = scores[0].contiguous(memory_format=torch.channels_last)
        for sparsity in (0.0, 0.5, 0.95):
            got = select_topk(weights, scores, sparsity, "triton")
            want = select_topk(weights, scores, sparsity, "reference")
            for mine, theirs in zip(got.codes, want.codes, strict=True):
                _require_equal("select_topk", mine, theirs)
            _require_equal("select_topk kept", got.kept, want.kept)
            _require_close("select_topk sums", got.abs_sums, want.abs_sums, 1e-12)


def check_activation_and_packing() -> None:
    """binary_activation, score_gradient, pack_bits and unpack_bits."""
    x = torch.randn(70, 5, 6, 7, device="cuda", requires_grad=True)
    upstream = torch.randn_like(x)
    (mine,) = torch.autograd.grad(binary_activation(x, "triton"), x, upstream)
    (theirs,) = torch.autograd.grad(binary_activation(x, "reference"), x, upstream)
    _require_close("binary_activation gradient", mine, theirs, 1e-6)
    scores = torch.randn(33, 77, device="cuda")
    for power in (1.0, 2.0, 2.5):
        mine = score_gradient(scores.cos(), scores.sin(), scores, power, "triton")
        theirs = score_gradient(
            scores.cos().double(), scores.sin().double(), scores.double(), power, "reference"
        )
        _require_close("score_gradient", mine, theirs, 2e-6)
    for dim in (0, -1):
        planes = pack_bits(x, dim, "triton")
        _require_equal("pack_bits", planes, pack_bits(x, dim, "reference"))
        length = x.shape[dim]
        _require_equal(
            "unpack_bits",
            unpack_bits(planes, length, dim, backend="triton"),
            unpack_bits(planes, length, dim, backend="reference"),
        )


def check_masked(dtype: torch.dtype) -> None:
    """Masked convolution and linear layer, forward and gradients, at every shipped tile."""
    cases = [(16, 24, 1, 1), (32, 64, 3, 1), (64, 130, 3, 2), (70, 128, 5, 1), (64, 64, 7, 2)]
    for channels, outputs, kernel, stride in cases:
        x = torch.randn(9, channels, 15, 13, device="cuda", dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        code = _ternary((outputs, channels, kernel, kernel), 0.5)
        weight = torch.randn(code.shape, device="cuda")
        scores = torch.randn(code.shape, device="cuda", requires_grad=True)
        gain = torch.tensor(0.25, device="cuda")
        name = f"masked_conv2d {channels}->{outputs} {kernel}x{kernel}/{stride} {dtype}"
        geometry: dict[str, Any] = {"stride": stride, "padding": kernel // 2}
        out = masked_conv2d(x, weight, scores, code, gain, **geometry, backend="triton")
        upstream = torch.randn_like(out)
        mine = torch.autograd.grad(out, (x, scores), upstream)
        wide = x.detach().double().requires_grad_()
        effective = (0.25 * code.double()).requires_grad_()
        want = F.conv2d(wide, effective, **geometry)
        theirs = torch.autograd.grad(want, (wide, effective), upstream.double())
        _require_close(name, out, want, TOLERANCE[dtype])
        _require_close(f"{name} dx", mine[0], theirs[0], TOLERANCE[dtype])
        factor = weight.double() * scores.detach().double().sign()
        _require_close(f"{name} dscores", mine[1], theirs[1] * factor, TOLERANCE[dtype])
    x = torch.randn(77, 130, device="cuda", dtype=dtype)
    code = _ternary((65, 130), 0.5)
    out = masked_linear(x, code.float(), code.float(), code, gain, backend="triton")
    _require_close(
        f"masked_linear {dtype}", out, x.double() @ (0.25 * code.double()).T, TOLERANCE[dtype]
    )


def check_packed() -> None:
    """Bit-sliced, popcount and sparse operations against their references."""
    for batch, channels, size, stride in ((512, 64, 8, 1), (130, 33, 7, 2), (1, 5, 9, 1)):
        x = torch.randn(batch, channels, size, size, device="cuda")
        code = _ternary((24, channels, 3, 3), 0.2)
        taps = Taps.from_dense(code)
        geometry: dict[str, Any] = {"stride": stride, "padding": 1}
        planes = pack_bits(x, 0, "reference")
        want = bitsliced_conv2d(planes, taps, **geometry, backend="reference")
        got = bitsliced_conv2d(planes, taps, **geometry, backend="triton")
        _require_equal("bitsliced_conv2d", got, want)
        cut = torch.randint(-9, 9, (24,), device="cuda", dtype=torch.int32)
        flip = torch.rand(24, device="cuda") < 0.5
        signs = [
            bitsliced_conv2d_sign(planes, taps, cut, flip, **geometry, backend=name)
            for name in ("triton", "reference")
        ]
        _require_equal("bitsliced_conv2d_sign", *signs)
        kernels = KernelList.from_taps(taps)
        rows = pack_bits(x, -1, "reference")
        sums = [
            xnor_conv2d(rows, size, kernels, **geometry, backend=name)
            for name in ("triton", "reference")
        ]
        _require_equal("xnor_conv2d", *sums)
        want = F.conv2d(x.double(), code.double(), **geometry)
        got = sparse_conv2d(x, taps, **geometry, backend="triton")
        _require_close("sparse_conv2d", got, want, 1e-6)
        flat = Taps.from_dense(code.flatten(1))
        lanes = pack_bits(x.flatten(1)[:, : channels * 9], 0, "reference")
        if lanes.shape[0] == channels * 9:
            _require_equal(
                "bitsliced_linear",
                bitsliced_linear(lanes, flat, "triton"),
                bitsliced_linear(lanes, flat, "reference"),
            )
            rows = x.flatten(1)[:, : channels * 9]
            want = rows.double() @ code.flatten(1).double().T
            _require_close("sparse_linear", sparse_linear(rows, flat, None, "triton"), want, 1e-6)
            words = pack_bits(rows, 1, "reference")
            _require_equal(
                "xnor_linear",
                xnor_linear(words, *pack_weight(flat), "triton"),
                xnor_linear(words, *pack_weight(flat), "reference"),
            )


CHECKS: dict[str, Callable[[], None]] = {
    "selection": check_selection,
    "activation and packing": check_activation_and_packing,
    "masked float32": lambda: check_masked(torch.float32),
    "masked float16": lambda: check_masked(torch.float16),
    "masked bfloat16": lambda: check_masked(torch.bfloat16),
    "packed": check_packed,
}


def alternate(
    runs: dict[str, Callable[[], object]], rounds: int = 30
) -> dict[str, dict[str, float]]:
    """Median, 20th and 80th percentile in microseconds of each run, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 5):
        for name, run in runs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            stop.synchronize()
            if turn >= 5:
                times[name].append(1e3 * start.elapsed_time(stop))
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return {
        name: dict(
            zip(
                ("p50_us", "p20_us", "p80_us"),
                torch.tensor(taken, dtype=torch.float64).quantile(quantiles).tolist(),
                strict=True,
            )
        )
        for name, taken in times.items()
    }


def time_layer(channels: int, size: int, density: float) -> dict[str, Any]:
    """One 3x3 layer at batch 512: dense bfloat16, masked, bit-sliced."""
    from mpt_fast.kernels.bitsliced_conv2d import triton as bitsliced
    from mpt_fast.kernels.masked_conv2d import triton as masked

    x = torch.randn(BATCH, channels, size, size, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    code = _ternary((channels, channels, 3, 3), density)
    dense = code.bfloat16().contiguous(memory_format=torch.channels_last)
    gain = torch.tensor(1.0, device="cuda")
    geometry = make_geometry(padding=1)
    taps = Taps.from_dense(code)
    prepared = bitsliced.prepare(taps, (size, size), geometry)
    planes = pack_bits(x, 0, "triton")
    cut = torch.zeros(channels, dtype=torch.int32, device="cuda")
    flip = torch.zeros(channels, dtype=torch.bool, device="cuda")
    layer = masked.Layer.of((size, size), code.shape, geometry)
    rows, compact = masked.nhwc(x), masked.nhwc(code)
    y = torch.randn_like(rows)
    scores = masked.nhwc(code.float())

    def backward(needs: list[bool]) -> Callable[[], object]:
        dy = y.permute(0, 3, 1, 2)
        return lambda: torch.ops.aten.convolution_backward(
            dy, x, dense, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*needs, False]
        )

    return alternate(
        {
            "dense bf16 forward": lambda: F.conv2d(x, dense, padding=1),
            "dense bf16 dgrad": backward([True, False]),
            "dense bf16 wgrad": backward([False, True]),
            "masked bf16 forward": lambda: masked.masked_conv2d_fwd(rows, compact, gain, layer),
            "masked bf16 dgrad": lambda: masked.masked_conv2d_bwd_x(y, compact, gain, layer),
            "masked bf16 wgrad": lambda: masked.masked_conv2d_bwd_weight(
                y, rows, scores, scores, layer, 1.0, (False, True)
            ),
            "bitsliced sign": lambda: bitsliced.run(planes, prepared, cut, flip),
        }
    )


def time_selection(entries: int) -> dict[str, Any]:
    """Selection of the largest scores of one tensor, and one read of them."""
    weights, scores = torch.randn(2, entries, device="cuda")
    return alternate(
        {
            "select_topk": lambda: select_topk([weights], [scores], 0.8, "triton"),
            "sort": lambda: scores.abs().sort(),
            "topk": lambda: scores.abs().topk(entries // 5),
            "one read": lambda: scores.sum(),
        },
        rounds=10,
    )


def measure() -> dict[str, Any]:
    """Every figure of the report, on the current device."""
    figures: dict[str, Any] = {"selection of 11 M scores": time_selection(11_000_000)}
    for name, (channels, size) in LAYERS.items():
        for density in DENSITIES:
            figures[f"{name} density {density}"] = time_layer(channels, size, density)
    return figures


def not_measured() -> dict[str, Any]:
    """The report's figures where there is no device."""
    names = [f"{name} density {density}" for name in LAYERS for density in DENSITIES]
    return dict.fromkeys(["selection of 11 M scores", *names], NOT_MEASURED)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    chosen = parser.parse_args(arguments)
    report: dict[str, Any] = {"torch": torch.__version__, "checks": {}}
    status = 0
    if torch.cuda.is_available():
        import triton

        report |= {"device": torch.cuda.get_device_name(), "triton": triton.__version__}
        torch.manual_seed(0)
        for name, check in CHECKS.items():
            try:
                check()
                report["checks"][name] = "ok"
            except Exception as error:  # a crash of a kernel is as much a failure as a mismatch
                report["checks"][name] = f"{type(error).__name__}: {error}"
                status = 1
            print(f"{name}: {report['checks'][name]}", flush=True)
        report["figures"] = measure() if status == 0 else not_measured()
    else:
        report |= {"device": None, "figures": not_measured()}
        report["checks"] = dict.fromkeys(CHECKS, NOT_MEASURED)
        print("no GPU: nothing measured")
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {chosen.output}")
    return status


if __name__ == "__main__":
    sys.exit(main())
