"""What is timed: layers, elementwise operations, selection; each with its baselines and its name in
the cost table."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.checks import BACKENDS, route
from benchmarks.gpu.networks import batches, networks, packed_network
from benchmarks.gpu.setting import TOLERANCE, Run, Setting, Timing, require_close, require_equal
from mpt_fast.kernels import costs
from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d, bitsliced_conv2d_sign, triton_int8
from mpt_fast.kernels.bitsliced_conv2d import triton as adders
from mpt_fast.kernels.bitsliced_conv2d.op import cost_case
from mpt_fast.kernels.bitsliced_linear import bitsliced_linear
from mpt_fast.kernels.combine import combine
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.masked_conv2d import masked_conv2d, products, routes
from mpt_fast.kernels.masked_linear import masked_linear
from mpt_fast.kernels.masked_linear import products as linear_products
from mpt_fast.kernels.masked_weight import Cut, effective_weight, score_gradient
from mpt_fast.kernels.pack_bits import pack_bits, unpack_bits
from mpt_fast.kernels.pool2d import pool2d
from mpt_fast.kernels.select_topk import apply_threshold, select_topk, threshold_from_quantile
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.sparse_linear import sparse_linear
from mpt_fast.kernels.taps import KernelList, Taps
from mpt_fast.kernels.xnor_conv2d import xnor_conv2d
from mpt_fast.kernels.xnor_linear import pack_weight, xnor_linear
from mpt_fast.packed.gpu.convolutions import bit_launch, real_launch
from mpt_fast.packed.gpu.routes import Layer
from mpt_fast.runtime import program

LAYERS = {"64@32x32": (64, 32), "128@16x16": (128, 16), "256@8x8": (256, 8), "512@4x4": (512, 4)}
DENSITIES = (0.5, 0.2, 0.1, 0.05)
GEOMETRY = make_geometry(padding=1)


Make = Callable[[], Timing]


def _layers(setting: Setting) -> dict[str, tuple[int, int]]:
    return {"4@5x5": (4, 5)} if setting.dry else LAYERS


def training_layer(
    setting: Setting, channels: int, outputs: int, kernel: int, size: int, batch: int
) -> Timing:
    """One layer of a ticket in bfloat16, stride 1: each product on each of its routes.

    These are the entries of the cost table by which `masked_conv2d.routes` chooses.
    """
    pad = [kernel // 2, kernel // 2]
    x = setting.image(batch, channels, size, size, dtype=torch.bfloat16)
    weight, scores = (setting.image(outputs, channels, kernel, kernel) for _ in range(2))
    chosen = select_topk([weight], [scores], 0.5, "reference")
    code, gain = chosen.codes[0], torch.tensor(1.0, device=setting.device)
    cut = Cut(chosen.thresholds[0], chosen.tie_limits[0])
    dense = code.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    geometry = make_geometry(padding=pad)
    ticket = (weight, scores, code, gain, cut, geometry)
    y = setting.image(batch, outputs, size, size, dtype=torch.bfloat16)

    def library(needs: list[bool]) -> Run:
        return lambda: torch.ops.aten.convolution_backward(
            y, x, dense, None, [1, 1], pad, [1, 1], False, [0, 0], 1, [*needs, False]
        )

    def weight_gradients() -> Tensor | None:
        return products.weight_gradients(y, x, weight, scores, geometry, 1.0, (False, True))[1]

    baselines: dict[str, Run] = {
        "forward": lambda: F.conv2d(x, dense, padding=pad),
        "dgrad": library([True, False]),
        "wgrad": library([False, True]),
    }
    ours: dict[str, Callable[[], Tensor | None]] = {
        "forward": lambda: products.forward(x, *ticket),
        "dgrad": lambda: products.input_gradient(y, x, *ticket),
        "wgrad": weight_gradients,
    }
    title = f"masked {channels}-{outputs}@{size}x{size} {kernel}x{kernel}, batch {batch}, bf16"
    return _products(title, "masked_conv2d", x, code, baselines, ours)


def masked_linear_layer(setting: Setting) -> Timing:
    """A ticket's hidden layer in bfloat16, likewise."""
    batch, width = (3, 9) if setting.dry else (256, 1024)
    x, y = (setting.normal(batch, width, dtype=torch.bfloat16) for _ in range(2))
    weight, scores = setting.normal(width, width), setting.normal(width, width)
    chosen = select_topk([weight], [scores], 0.5, "reference")
    code, gain = chosen.codes[0], torch.tensor(1.0, device=setting.device)
    ticket = (weight, scores, code, gain, Cut(chosen.thresholds[0], chosen.tie_limits[0]))
    dense = code.to(torch.bfloat16)
    baselines: dict[str, Run] = {
        "forward": lambda: F.linear(x, dense),
        "dgrad": lambda: y @ dense,
        "wgrad": lambda: y.t() @ x,
    }
    ours: dict[str, Callable[[], Tensor | None]] = {
        "forward": lambda: linear_products.forward(x, *ticket),
        "dgrad": lambda: linear_products.input_gradient(y, x, *ticket),
        "wgrad": lambda: linear_products.weight_gradients(y, x, weight, scores, 1.0, (False, True))[
            1
        ],
    }
    return _products(
        f"masked linear {width}, batch {batch}, bf16", "masked_linear", x, code, baselines, ours
    )


def _products(
    title: str,
    operation: str,
    x: Tensor,
    code: Tensor,
    baselines: dict[str, Run],
    ours: dict[str, Callable[[], Tensor | None]],
) -> Timing:
    """Each product's routes, which give the same, beside the library's product alone."""
    runs: dict[str, Run] = {}
    table: dict[costs.Case, dict[str, str]] = {}
    columns = x.numel() // x.shape[1]
    for product, run in ours.items():
        runs[f"baseline library {product}"] = baselines[product]
        names = {}
        results: dict[str, Tensor] = {}
        for way in routes.ROUTES[product]:
            names[f"triton/{way}"] = f"{product}, {way}"
            runs[f"{product}, {way}"] = _on(way, run)
            got = _on(way, run)()
            if isinstance(got, Tensor):
                results[way] = got
        for way, got in results.items():
            first = next(iter(results.values()))
            require_close(f"{title} {product} {way}", got, first, 2 * TOLERANCE[torch.bfloat16])
        table[routes.case(operation, product, x.dtype, columns, code.shape)] = names
    return Timing(title, runs, table)


def _on(way: str, run: Callable[[], object]) -> Run:
    """`run` with the products of a ticket layer on that route."""

    def pinned() -> object:
        with route(way, routes):
            return run()

    return pinned


def training_calls(setting: Setting, name: str, channels: int, size: int) -> Timing:
    """Forward and both gradients of that layer, as a training step calls it.

    On the routes that the products' own times, taken before, make the fastest.
    """
    batch = 2 if setting.dry else 256
    x = setting.image(batch, channels, size, size, dtype=torch.bfloat16).requires_grad_()
    weight = setting.image(channels, channels, 3, 3)
    scores = setting.image(channels, channels, 3, 3).requires_grad_()
    chosen = select_topk([weight], [scores.detach()], 0.5, "reference")
    code, cut = chosen.codes[0], Cut(chosen.thresholds[0], chosen.tie_limits[0])
    gain = torch.tensor(1.0, device=setting.device)
    upstream = torch.randn_like(x)

    def step(backend: str) -> Run:
        def run() -> object:
            out = masked_conv2d(x, weight, scores, code, gain, padding=1, backend=backend, cut=cut)
            return torch.autograd.grad(out, (x, scores), upstream)

        return run

    operation = costs.typed("masked_conv2d", x.dtype)
    case = costs.product(operation, batch * size * size, code.shape)
    runs, table = _by_backend({case: step})
    return Timing(f"masked {name}, batch {batch}, whole calls", runs, table, graphs=False)


def packed_layer(
    setting: Setting, name: str, channels: int, size: int, density: float, batch: int
) -> Timing:
    """One 3x3 layer of kept +1/-1 weights on every route of a packed network."""
    x = setting.normal(batch, channels, size, size)
    code = setting.ternary((channels, channels, 3, 3), density)
    bits, real = _program_layers(code, size, batch)
    planes = pack_bits(x, 0, "reference")
    lanes = x.permute(1, 2, 3, 0).contiguous()
    runs: dict[str, Run] = {}
    table: dict[costs.Case, dict[str, str]] = {}
    for layer, operand in ((bits, planes), (real, lanes)):
        results: dict[str, Tensor] = {}
        for way in layer.routes:
            launch = (
                bit_launch(way, layer.step, layer.source, x.device)
                if layer is bits
                else real_launch(way, layer.step, layer.source, x.dtype, x.device)
            )
            results[way] = launch(operand, None, batch)
            runs[f"packed {layer.kind}, {way}"] = functools.partial(launch, operand, None, batch)
        _require_alike(f"{name} {layer.kind}", results, batch)
        table[layer.case] = {f"triton/{r}": f"packed {layer.kind}, {r}" for r in layer.routes}
    signs = (2.0 * (x >= 0) - 1).to(torch.bfloat16)
    signs = signs.contiguous(memory_format=torch.channels_last)
    dense = code.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    runs["baseline cuDNN bf16 channels_last"] = lambda: F.conv2d(signs, dense, padding=1)
    if density == DENSITIES[0] or setting.dry:
        runs |= _dense_baselines(setting, signs, dense, code)
    return Timing(f"packed {name}, batch {batch}, density {density}", runs, table, rounds=10)


def _program_layers(code: Tensor, size: int, batch: int) -> tuple[Layer, Layer]:
    """The layer as a packed program has it: bits to bits, and real to real."""
    channels = code.shape[0]
    taps = Taps.from_dense(code.cpu())
    arrays = (taps.indptr.numpy(), taps.index.numpy(), taps.value.numpy())
    kept = program.Taps(taps.shape, *arrays)
    cut, flip = np.zeros(channels, np.int32), np.zeros(channels, np.bool_)
    sign = program.ConvSign(src=0, taps=kept, padding=(1, 1), threshold=cut, flip=flip)
    conv = program.Conv(src=0, taps=kept, padding=(1, 1))
    values = [program.Value(kind, channels, size, size) for kind in ("bits", "f32")]
    return (
        Layer(sign, "bits", values[0], values[0], batch),
        Layer(conv, "f32", values[1], values[1], batch),
    )


def _require_alike(name: str, results: dict[str, Tensor], batch: int) -> None:
    """Every route gives what the first one gives, in the lanes of the batch."""
    (first, want), *others = results.items()
    for way, got in others:
        if got.dtype == torch.int64:
            mine, theirs = (unpack_bits(v, batch, -1, torch.int8, "reference") for v in (got, want))
            require_equal(f"{name}: {way} and {first}", mine, theirs)
        else:
            require_close(f"{name}: {way} and {first}", got, want, 1e-5)


def packed_calls(
    setting: Setting, name: str, channels: int, size: int, density: float, batch: int
) -> Timing:
    """The packed operations on that layer, as they are called without a packed network."""
    x = setting.normal(batch, channels, size, size)
    taps = Taps.from_dense(setting.ternary((channels, channels, 3, 3), density))
    kernels = KernelList.from_taps(taps)
    planes, rows = pack_bits(x, 0, "reference"), pack_bits(x, -1, "reference")
    cut = torch.zeros(channels, dtype=torch.int32, device=setting.device)
    flip = torch.zeros(channels, dtype=torch.bool, device=setting.device)
    image = (size, size)
    popcount = costs.product(
        "xnor_conv2d", batch * size * size, taps.shape, kernels.channel.numel()
    )
    operation = costs.typed("sparse_conv2d", x.dtype)
    real = costs.product(operation, batch * size * size, taps.shape, taps.index.numel())
    runs, table = _by_backend(
        {
            popcount: lambda name: lambda: xnor_conv2d(rows, size, kernels, 1, 1, backend=name),
            real: lambda name: lambda: sparse_conv2d(x, taps, None, 1, 1, backend=name),
        }
    )
    _add_routes(
        runs,
        table,
        cost_case("bitsliced_conv2d", planes, taps, image),
        lambda name: bitsliced_conv2d(planes, taps, 1, 1, backend=name),
    )
    _add_routes(
        runs,
        table,
        cost_case("bitsliced_conv2d_sign", planes, taps, image),
        lambda name: bitsliced_conv2d_sign(planes, taps, cut, flip, 1, 1, backend=name),
    )
    for way in adders.ROUTES:
        layer = (triton_int8 if way == "int8" else adders).prepare(taps, image, GEOMETRY)
        decide = (triton_int8 if way == "int8" else adders).run
        runs[f"with a shortcut, {way}"] = functools.partial(
            decide, planes, layer, cut, flip, planes, cut
        )
    title = f"packed {name}, batch {batch}, density {density}, whole calls"
    return Timing(title, runs, table, rounds=3, graphs=False)


def _add_routes(
    runs: dict[str, Run],
    table: dict[costs.Case, dict[str, str]],
    case: costs.Case,
    call: Callable[[str], object],
) -> None:
    """A bit-sliced call on each route and on the reference, and their places in the table."""

    def by(name: str) -> Run:
        def run() -> object:
            with route(name):
                return call("triton")

        return run

    operation = case.operation
    runs |= {f"{operation}, triton {name}": by(name) for name in adders.ROUTES}
    runs[f"{operation}, reference"] = lambda: call("reference")
    table[case] = {
        "triton": f"{operation}, triton adders",
        "triton/int8": f"{operation}, triton int8",
        "reference": f"{operation}, reference",
    }


def _dense_baselines(setting: Setting, x: Tensor, dense: Tensor, code: Tensor) -> dict[str, Run]:
    """torch.compile max-autotune, and the layer's matrix product alone in int8 and in 2:4."""
    columns = x.shape[0] * x.shape[2] * x.shape[3]
    weight = code.flatten(1).to(torch.int8)
    # The product without the gathering of patches, which flatters both baselines.
    patches = torch.ones((columns, weight.shape[1]), dtype=torch.int8, device=setting.device)
    narrow = patches.to(torch.bfloat16)
    pruned = torch.ones_like(weight, dtype=torch.bfloat16)
    pruned[:, 1::4] = 0
    pruned[:, 2::4] = 0
    runs: dict[str, Run] = {}
    compiled = torch.compile(
        lambda: F.conv2d(x, dense, padding=1),
        mode=None if setting.dry else "max-autotune-no-cudagraphs",
        backend="eager" if setting.dry else "inductor",
    )
    runs["baseline torch.compile max-autotune bf16"] = compiled
    runs["baseline int8 product alone"] = lambda: torch._int_mm(patches, weight.t())
    kept: list[Tensor] = []

    def two_of_four() -> object:
        if not kept:
            kept.append(torch.sparse.to_sparse_semi_structured(pruned))
        return torch.mm(kept[0], narrow.t())

    runs["baseline 2:4 bf16 product alone"] = two_of_four
    return runs


def linear_layers(setting: Setting) -> Timing:
    """A hidden layer of a classifier: masked in training, and every packed form."""
    batch, width = (3, 9) if setting.dry else (512, 1024)
    x = setting.normal(batch, width)
    code = setting.ternary((width, width), 0.1)
    taps = Taps.from_dense(code)
    planes, words = pack_bits(x, 0, "reference"), pack_bits(x, 1, "reference")
    weight = pack_weight(taps)
    half = x.to(torch.bfloat16)
    real = setting.normal(width, width)
    gain = torch.tensor(1.0, device=setting.device)
    forms: dict[costs.Case, Callable[[str], Run]] = {
        costs.product(costs.typed("masked_linear", half.dtype), batch, code.shape): lambda name: (
            lambda: masked_linear(half, real, real, code, gain, backend=name)
        ),
        costs.product("xnor_linear", batch, weight[0].shape): lambda name: (
            lambda: xnor_linear(words, *weight, name)
        ),
        costs.product(
            costs.typed("sparse_linear", x.dtype), batch, taps.shape, taps.index.shape[0]
        ): lambda name: lambda: sparse_linear(x, taps, None, name),
    }
    runs, table = _by_backend(forms)
    _add_routes(
        runs,
        table,
        cost_case("bitsliced_linear", planes, taps, (1, 1)),
        lambda name: bitsliced_linear(planes, taps, name),
    )
    runs["baseline bf16 linear"] = lambda: F.linear(half, code.to(torch.bfloat16))
    title = f"linear {width}, batch {batch}, density 0.1, whole calls"
    return Timing(title, runs, table, graphs=False)


def elementwise(setting: Setting) -> Timing:
    """The operations that one pass over memory bounds, against PyTorch."""
    count = 1000 if setting.dry else 1 << 24
    x = setting.normal(count // 8, 8)
    code = setting.ternary((count // 8, 8), 0.5)
    gain = torch.tensor(0.5, device=setting.device)
    planes = pack_bits(x, 0, "reference")
    forms: dict[costs.Case, Callable[[str], Run]] = {
        costs.elements(costs.typed("binary_activation", x.dtype), count): lambda name: (
            lambda: binary_activation(x, name)
        ),
        costs.elements(costs.typed("effective_weight", x.dtype), count): lambda name: (
            lambda: effective_weight(code, gain, x.dtype, name)
        ),
        costs.elements(costs.typed("score_gradient", x.dtype), count): lambda name: (
            lambda: score_gradient(x, x, x, 1.0, name)
        ),
        costs.elements(costs.typed("pack_bits", x.dtype), count): lambda name: (
            lambda: pack_bits(x, 0, name)
        ),
        costs.elements(costs.typed("unpack_bits", x.dtype), planes.numel() * 64): lambda name: (
            lambda: unpack_bits(planes, x.shape[0], 0, backend=name)
        ),
    }
    runs, table = _by_backend(forms)
    runs["baseline one read and one write"] = lambda: x.neg()
    return Timing(f"elementwise, {count} entries, whole calls", runs, table, graphs=False)


def joins(setting: Setting) -> Timing:
    """What stands between packed convolutions, and a sign activation with its backward."""
    channels, size, images = (4, 4, 64) if setting.dry else (64, 32, 512)
    real = setting.normal(channels, size, size, images)
    planes = pack_bits(real, -1, "reference")
    sums = torch.randint(-99, 99, real.shape, device=setting.device, dtype=torch.int32)
    vectors = [[torch.rand(channels, device=setting.device) for _ in range(2)] for _ in range(2)]
    x = real.clone().requires_grad_()

    def backward(name: str) -> Run:
        return lambda: torch.autograd.grad(binary_activation(x, name), x, real)

    forms: dict[costs.Case, Callable[[str], Run]] = {
        costs.elements(costs.typed("combine", torch.float64), planes.numel()): lambda name: (
            lambda: combine([sums, planes], *vectors, "sign", torch.float64, images, name)
        ),
        costs.elements(costs.typed("combine", real.dtype), real.numel()): lambda name: (
            lambda: combine([real, real], *vectors, "relu", real.dtype, images, name)
        ),
    }
    for operand in (planes, sums, real):
        case = costs.elements(costs.typed("pool2d", operand.dtype), operand.numel())
        forms[case] = functools.partial(_pooled, operand)
    runs, table = _by_backend(forms)
    runs |= {f"binary_activation and its backward, {name}": backward(name) for name in BACKENDS}
    runs["baseline one read and one write"] = lambda: real.neg()
    return Timing(f"joins, {channels}@{size}x{size}, batch {images}, whole calls", runs, table,
                  graphs=False)  # fmt: skip


def _pooled(x: Tensor, name: str) -> Run:
    return lambda: pool2d(x, "max", 2, backend=name)


def selection(setting: Setting) -> Timing:
    """Exact selection of ResNet-18's number of scores, against PyTorch's ways to a threshold."""
    count = 1000 if setting.dry else 11_164_352
    weights, scores = setting.normal(2, count)
    kept = count // 5
    chosen = select_topk([weights], [scores], 0.8, "reference")
    limits = (chosen.thresholds, chosen.tie_limits)
    operations: dict[str, Callable[[str], object]] = {
        "select_topk": lambda name: select_topk([weights], [scores], 0.8, name),
        "apply_threshold": lambda name: apply_threshold([weights], [scores], *limits, name),
        "threshold_from_quantile": lambda name: threshold_from_quantile([scores], 0.8, name),
    }
    runs, table = _by_backend(
        {
            costs.elements(operation, count): lambda name, call=call: lambda: call(name)
            for operation, call in operations.items()
        }
    )
    return Timing(
        f"selection of {count} scores",
        {
            **runs,
            "baseline sort": lambda: scores.abs().sort(),
            "baseline topk": lambda: scores.abs().topk(kept),
            "baseline kthvalue": lambda: scores.abs().kthvalue(count - kept),
            "baseline one read": lambda: scores.sum(),
        },
        table,
        rounds=5,
        graphs=False,
    )


def _by_backend(
    forms: dict[costs.Case, Callable[[str], Run]],
) -> tuple[dict[str, Run], dict[costs.Case, dict[str, str]]]:
    """Runs of each form on each backend, and their places in the table."""
    runs = {
        f"{case.operation}, {name}": make(name) for case, make in forms.items() for name in BACKENDS
    }
    table = {case: {name: f"{case.operation}, {name}" for name in BACKENDS} for case in forms}
    return runs, table


def products_of_training(setting: Setting) -> Iterator[Make]:
    """The products of ticket layers, by whose times the training steps then choose."""
    layers = [(channels, channels, 3, size) for channels, size in _layers(setting).values()]
    # A ResNet's stem and shortcuts are out of reach of these in the table.
    layers += [(3, 4, 1, 5)] if setting.dry else [(3, 64, 3, 32), (128, 128, 1, 32),
                                                   (512, 512, 1, 8)]  # fmt: skip
    for layer in layers:
        yield functools.partial(training_layer, setting, *layer, 2 if setting.dry else 256)
    yield functools.partial(masked_linear_layer, setting)


def timings(setting: Setting) -> Iterator[Make]:
    """What follows the training steps, the most telling first; made when it is its turn."""
    yield functools.partial(selection, setting)
    for network in networks(setting):
        for batch in batches(setting):
            yield functools.partial(packed_network, setting, network, batch)
    calls: list[Make] = []
    for batch in (2,) if setting.dry else (512, 1):
        for density in DENSITIES[:1] if setting.dry else DENSITIES:
            for name, sizes in _layers(setting).items():
                arguments = (setting, name, *sizes, density, batch)
                yield functools.partial(packed_layer, *arguments)
                calls.append(functools.partial(packed_calls, *arguments))
    yield functools.partial(linear_layers, setting)
    yield functools.partial(elementwise, setting)
    yield functools.partial(joins, setting)
    for name, sizes in _layers(setting).items():
        yield functools.partial(training_calls, setting, name, *sizes)
    yield from calls
