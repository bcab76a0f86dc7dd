"""Whole packed networks on the Triton executor, in the interpreter where there is no GPU."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_checks import LAYERWISE, assert_same, randomise
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast import models
from mpt_fast.data.dataset import normalize
from mpt_fast.kernels import backend as backends
from mpt_fast.kernels import costs
from mpt_fast.packed import PackedModel, PackError
from mpt_fast.packed.gpu import estimates, routes
from mpt_fast.packed.gpu.graphs import MOST_GRAPHS, Graphs
from mpt_fast.runtime import InputError
from mpt_fast.runtime.program import Conv, ConvSign, Program, Taps, Value

pytestmark = pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")

BN = nn.BatchNorm2d
PAIRS = [("adders", "sparse"), ("int8", "dense"), ("popcount", "sparse")]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=PAIRS, ids="-".join)
def pinned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Each bit route, with a real one."""
    bits, real = request.param
    monkeypatch.setattr(routes, "PINNED", {"bits": bits, "real": real})
    return bits, real


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN and the largest integers, as in the kernel tests."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class OnDevice(nn.Module):
    """A packed model whose input and result are on the CPU."""

    def __init__(self, packed: PackedModel) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x.to(DEVICE)).cpu()


def check(model: nn.Module, x: Tensor) -> PackedModel:
    """The packed network on Triton equals the eager one in float64, and so the C++ engine's."""
    packed = mpt.pack(model, x, backend="triton")
    assert_same(OnDevice(packed), model, x)  # type: ignore[arg-type]  # called alike
    expected = mpt.pack(model, x)(x)
    error = (OnDevice(packed)(x) - expected).abs().max()
    assert float(error) <= 1e-5 * float(expected.abs().max())
    return packed


def small(name: str, activation: str, width: float = 0.05) -> nn.Module:
    return randomise(
        models.build(
            name, activation=activation, bn="affine", width=width, image_size=8, config=LAYERWISE
        )
    )


class TinyResNet(nn.Module):
    """An identity and a projection shortcut at stride 2, and an average pool."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
            return mpt.MPTConv2d(
                inputs, outputs, kernel, stride, kernel // 2, bias=False, config=LAYERWISE
            )

        self.stem = nn.Sequential(conv(3, 4, 3), BN(4), activation())
        self.first = nn.Sequential(conv(4, 4, 3), BN(4), activation(), conv(4, 4, 3), BN(4))
        self.second = nn.Sequential(conv(4, 6, 3, 2), BN(6), activation(), conv(6, 6, 3), BN(6))
        self.projection = nn.Sequential(conv(4, 6, 1, 2), BN(6))
        self.act = activation()
        self.head = nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.first(x) + x)
        x = self.act(self.second(x) + self.projection(x))
        return self.head(x)


@pytest.mark.parametrize("activation", [mpt.BinaryActivation, nn.ReLU], ids=["binary", "relu"])
def test_shortcuts(activation: Callable[[], nn.Module], pinned: tuple[str, str]) -> None:
    packed = check(randomise(TinyResNet(activation)), torch.randn(3, 3, 6, 6))
    kernels = {row.kernel for row in packed.plan().steps if row.kept is not None}
    wanted = {pinned[1]} if activation is nn.ReLU else set(pinned)
    # A 1x1 convolution has no patches to count.
    assert kernels == wanted | ({"adders"} if "popcount" in wanted else set())


@pytest.mark.parametrize("name", ["conv2", "conv4", "vgg_small"])
@pytest.mark.parametrize("activation", ["binary", "relu"])
def test_chosen_by_instruction_counts(name: str, activation: str) -> None:
    packed = check(small(name, activation, 0.02), torch.randn(2, 3, 8, 8))
    for row in packed.plan().steps:
        if row.kept is not None:
            assert row.why.startswith(f"{estimates.SOURCE}: {row.kernel} ")
            assert row.predicted is not None


@pytest.mark.parametrize("batch", [1, 63, 65, 130])
def test_odd_batches(batch: int, pinned: tuple[str, str]) -> None:
    model = nn.Sequential(
        mpt.MPTConv2d(2, 3, 3, stride=2, padding=1, config=LAYERWISE),
        BN(3),
        mpt.BinaryActivation(),
        mpt.MPTConv2d(3, 4, 3, padding=1, config=LAYERWISE),
        nn.MaxPool2d(2),
        BN(4),
        mpt.BinaryActivation(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    check(randomise(model), torch.randn(batch, 2, 7, 7))


def test_an_empty_batch() -> None:
    packed = mpt.pack(small("conv2", "binary"), torch.randn(1, 3, 8, 8), backend="triton")
    assert packed(torch.zeros(0, 3, 8, 8, device=DEVICE)).shape == (0, 10)


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 3, "stride": (2, 1), "padding": 1},
    {"kernel_size": 3, "dilation": 2, "padding": 2, "groups": 2},
    {"kernel_size": (2, 5), "padding": (1, 3), "stride": (1, 2)},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_geometries(options: dict[str, Any], pinned: tuple[str, str]) -> None:
    layers = [BN(4), mpt.BinaryActivation(), mpt.MPTConv2d(4, 4, config=LAYERWISE, **options)]
    tail = [BN(4), mpt.BinaryActivation(), nn.AvgPool2d(2, ceil_mode=True)]
    check(randomise(nn.Sequential(*layers, *tail)), torch.randn(5, 4, 7, 6))


@pytest.mark.parametrize("route", routes.BIT_ROUTES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_thresholds_at_the_ends(route: str, with_residual: bool) -> None:
    """Every route decides alike at thresholds no batch norm gives, flipped and chosen by a bit."""
    from mpt_fast.packed.gpu.convolutions import bit_launch

    signs = torch.randn(2, 2, 3, 3).sign().to(torch.int8).numpy()
    taps = Taps(
        (6, 2, 3, 3),
        np.arange(0, 6 * 18 + 1, 18, dtype=np.int32),
        np.tile(np.arange(18, dtype=np.int32), 6),
        signs[[0, 0, 1, 1, 1, 1]].ravel(),
    )
    ends = np.iinfo(np.int32)
    limits = np.array([ends.min, ends.max, 0, 1, -18, 19], np.int32)
    flip = np.array([False, True, True, False, False, True])
    step = ConvSign(
        src=0,
        taps=taps,
        padding=(1, 1),
        threshold=limits,
        flip=flip,
        residual=0 if with_residual else -1,
        residual_threshold=limits[::-1].copy() if with_residual else None,
    )
    x = torch.randn(3, 2, 4, 3)
    residual = torch.randn(3, 6, 4, 3)
    planes, chooses = (mpt.functional.pack_bits(v, 0).to(DEVICE) for v in (x, residual))
    launch = bit_launch(route, step, Value("bits", 2, 4, 3), DEVICE)
    got = launch(planes, chooses if with_residual else None, 3).cpu()
    sums = torch.nn.functional.conv2d(
        torch.where(x >= 0, 1.0, -1.0), torch.from_numpy(taps.to_dense()), padding=1
    )
    column = torch.from_numpy(limits.astype(np.int64)).view(1, 6, 1, 1)
    if with_residual:
        column = torch.where(residual >= 0, column.flip(1), column)
    bits = torch.where(torch.from_numpy(flip).view(1, 6, 1, 1), sums <= column, sums >= column)
    assert torch.equal(mpt.functional.unpack_bits(got, 3, 0), torch.where(bits, 1.0, -1.0))


MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def test_pixels_and_double_images() -> None:
    model = small("conv2", "binary")
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    normalised = normalize(x, MEAN, STD)
    packed = mpt.pack(model, normalised, backend="triton", pixels=(MEAN, STD))
    on_device = OnDevice(packed)
    assert torch.equal(on_device(x), on_device(normalised))
    assert_same(on_device, model, normalised)  # type: ignore[arg-type]  # called alike
    assert_same(on_device, model, normalised.double())  # type: ignore[arg-type]  # called alike


def test_each_dtype_of_images_has_vectors_of_its_own() -> None:
    from mpt_fast.packed.gpu.executor import DeviceProgram

    x = torch.randn(2, 3, 8, 8)
    program = mpt.pack(small("conv2", "relu"), x).program
    run, fresh = DeviceProgram(program, DEVICE), DeviceProgram(program, DEVICE)
    run(x.to(DEVICE))
    assert torch.equal(run(x.double().to(DEVICE)), fresh(x.double().to(DEVICE)))


def test_a_file_runs_on_triton(tmp_path: Path) -> None:
    model, x = small("conv2", "binary"), torch.randn(3, 3, 8, 8)
    mpt.pack(model, x).save(tmp_path / "ticket.mpt")
    assert_same(OnDevice(mpt.load(tmp_path / "ticket.mpt", "triton")), model, x)  # type: ignore[arg-type]  # called alike


def test_an_image_that_is_not_finite_marks_its_own_logits() -> None:
    from mpt_fast.packed.gpu.executor import DeviceProgram

    x = torch.randn(3, 3, 8, 8)
    program = mpt.pack(small("conv2", "relu"), x).program
    run = DeviceProgram(program, DEVICE)
    good = run(x.to(DEVICE))
    x[1, 0, 0, 0] = float("inf")
    marked = run(x.to(DEVICE))
    assert bool(marked[1].isnan().all())
    assert torch.equal(marked[::2], good[::2])


def test_logits_may_be_sums_or_bits() -> None:
    for tail in ([], [BN(3), mpt.BinaryActivation()]):
        conv = mpt.MPTConv2d(2, 3, 3, padding=1, config=LAYERWISE)
        check(
            randomise(nn.Sequential(BN(2), mpt.BinaryActivation(), conv, *tail)),
            torch.randn(5, 2, 4, 4),
        )


def test_three_terms_and_a_maximum_of_sums() -> None:
    """Steps that no lowered network has to have: a Combine of four kinds, pools of sums."""
    from mpt_fast.packed.gpu.executor import DeviceProgram
    from mpt_fast.packed.reference import run_reference
    from mpt_fast.runtime.program import Combine, MaxPool

    taps = Taps(
        (2, 2, 1, 1), np.array([0, 2, 4], np.int32), np.array([0, 1, 0, 1], np.int32),
        np.array([1, -1, 1, 1], np.int8),
    )  # fmt: skip
    one, half = np.ones(2), np.array([0.5, -0.25])

    def joined(srcs: tuple[int, ...], kind: Any, act: Any = "none") -> Combine:
        count = len(srcs)
        return Combine(srcs=srcs, scales=(half,) * count, shifts=(one,) * count, act=act, kind=kind)

    steps = (
        joined((0,), "bits", "sign"),
        Conv(src=1, taps=taps),
        joined((0, 1, 2), "f64"),
        joined((0, 1, 2, 3), "f32", "relu"),
        MaxPool(src=2, kernel=(2, 2), stride=(1, 1), padding=(1, 1)),
        joined((5, 5), "f32"),
    )
    for output, shape in ((4, (2, 3, 4)), (6, (2, 4, 5))):
        program = Program((2, 3, 4), steps, output, (2, 3, 4), shape)
        x = torch.randn(3, 2, 3, 4)
        got = DeviceProgram(program, DEVICE)(x.to(DEVICE)).cpu()
        want = run_reference(program, x).float()
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-6)


def test_the_measured_table_chooses_each_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 3, 8, 8)
    packed = mpt.pack(small("conv2", "binary", 0.1), x, backend="triton")
    program = packed.program
    step = next(s for s in program.steps if isinstance(s, ConvSign))
    values = program.values()
    here = ("NVIDIA H200", "3.9.0")
    monkeypatch.setattr(costs, "_here", lambda: here)
    for route in routes.BIT_ROUTES:
        layer = routes.Layer(
            step, "bits", values[step.src], values[program.steps.index(step) + 1], 3
        )
        times = {f"triton/{r}": 2.0 + (r != route) for r in routes.BIT_ROUTES}
        document = costs.table(
            *here, [costs.Measured(layer.case, times, "measured on NVIDIA H200")]
        )
        path = tmp_path / f"{route}.json"
        path.write_text(json.dumps(document))
        monkeypatch.setenv(costs.VARIABLE, str(path))
        row = next(r for r in packed.plan(3).steps if r.why.startswith("measured on NVIDIA H200: "))
        assert (row.kernel, row.predicted) == (route, 2e-6)
        assert f"{route} 2.0 us" in row.why
    # Far from every measured size the estimates speak again.
    assert all("measured" not in row.why for row in packed.plan(300).steps)


def shape_of(density: float, images: int, size: int = 4, channels: int = 512) -> estimates.Shape:
    kept = int(density * channels * channels * 9)
    square = (size, size)
    return estimates.Shape(images, channels, channels, (3, 3), (1, 1), square, square, 1, kept, 0)


def test_estimates_follow_the_design_notes() -> None:
    """Bit-slicing at low density, tensor cores at a high one, popcount for one image."""

    def best(density: float, images: int) -> str:
        shape = shape_of(density, images)
        return min(routes.BIT_ROUTES, key=lambda name: estimates.ESTIMATES[name](shape))

    assert best(0.05, 512) == "adders"
    assert best(0.9, 512) == "int8"
    assert best(0.05, 1) == "popcount"
    # 220 and 22 us where the activations are read from L2 again and again, and the launches.
    assert estimates.adders(shape_of(0.5, 512)) == pytest.approx(226e-6, rel=0.1)
    assert estimates.adders(shape_of(0.05, 512)) == pytest.approx(28e-6, rel=0.1)


def test_graphs_are_captured_once_per_shape_and_dtype() -> None:
    captured: list[tuple[tuple[int, ...], torch.dtype]] = []

    def capture(run: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
        captured.append((tuple(example.shape), example.dtype))
        return run

    graphs = Graphs(lambda x: 2 * x, capture)
    for x in (torch.ones(2), torch.ones(2), torch.ones(2).double(), torch.ones(3)):
        assert torch.equal(graphs(x), 2 * x)
    assert captured == [((2,), torch.float32), ((2,), torch.float64), ((3,), torch.float32)]
    for size in range(4, 4 + MOST_GRAPHS):
        graphs(torch.ones(size))
    graphs(torch.ones(2))  # had to make room, so is captured again
    assert captured[-1] == captured[0]


def test_moving_the_module_drops_what_was_captured() -> None:
    x = torch.randn(2, 3, 8, 8, device=DEVICE)
    packed = mpt.pack(small("conv2", "relu"), x.cpu(), backend="triton")
    packed(x)
    assert set(packed._on_devices) == {x.device}
    packed.to(DEVICE)
    assert not packed._on_devices


def test_what_triton_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 2, 3))
    with pytest.raises(PackError, match=r"1 runs in PyTorch .* use backend='cpu'"):
        mpt.pack(model, x, backend="triton")
    packed = mpt.pack(small("conv2", "relu"), x, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=r"input is on cpu; .* x\.cuda\(\)"):
        packed(x)
    monkeypatch.setattr(backends, "triton_available", lambda: False)
    with pytest.raises(backends.BackendError, match="needs a GPU and the triton package"):
        mpt.pack(small("conv2", "relu"), x, backend="triton")


def test_triton_is_never_chosen_by_itself() -> None:
    with backends.preferring("triton"):
        packed = mpt.pack(small("conv2", "relu"), torch.randn(1, 3, 8, 8))
    assert packed.backend in ("cpu", "reference")
