"""Shared suite of bitsliced_conv2d and bitsliced_conv2d_sign, on every backend."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    CONV_CASES,
    MALFORMED_TAPS,
    PROPERTY,
    ConvCase,
    conv_cases,
    few_taps,
    naive_conv2d,
)
from torch import Tensor

from mpt_fast.kernels import backend as backends
from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d, bitsliced_conv2d_sign, op
from mpt_fast.kernels.pack_bits.reference import pack_bits, unpack_bits
from mpt_fast.kernels.taps import Taps

backend = backend_fixture(op.BACKENDS, routes=("adders", "int8"))

needs_triton = pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")

INT32 = torch.iinfo(torch.int32)


def lanes_of(planes: Tensor) -> Tensor:
    """+1 and -1 of every lane of [C, H, W, words], those past the batch too: [lanes, C, H, W]."""
    return unpack_bits(planes, planes.shape[-1] * 64, 0, torch.float64)


@functools.lru_cache(maxsize=64)
def expected_sums(case: ConvCase) -> Tensor:
    """int32 [O, Ho, Wo, lanes] by a float64 convolution of the +1/-1 expansion."""
    sums = F.conv2d(lanes_of(case.planes()), case.weight(torch.int8).double(), **case.geometry)
    return sums.to(torch.int32).movedim(0, -1)


def sign_operands(case: ConvCase, with_residual: bool) -> dict[str, Any]:
    """Thresholds that divide the sums of `case`, some flipped, the ends of int32 among them."""
    generator = torch.Generator().manual_seed(case.seed + 2)

    def thresholds() -> Tensor:
        drawn = torch.randint(-4, 5, (case.outputs,), generator=generator, dtype=torch.int32)
        drawn[-1] = INT32.min if case.seed % 2 else INT32.max
        return drawn

    operands: dict[str, Any] = {
        "threshold": thresholds(),
        "flip": torch.randint(0, 2, (case.outputs,), generator=generator) > 0,
    }
    if with_residual:
        shape = (*expected_sums(case).shape[:-1], case.planes().shape[-1])
        words = torch.randint(INT32.min, INT32.max, shape, generator=generator)
        operands["residual"] = words * 2**32 + torch.randint(0, 2**32, shape, generator=generator)
        operands["residual_threshold"] = thresholds()
    return operands


def expected_decisions(sums: Tensor, operands: dict[str, Any]) -> Tensor:
    """Planes of the decisions, one lane at a time with Python integers."""
    values = sums.numpy()
    words = values.shape[-1] // 64
    bits = np.zeros(values.shape, dtype=bool)
    thresholds, flips = operands["threshold"].tolist(), operands["flip"].tolist()
    others = operands["residual_threshold"].tolist() if "residual" in operands else None
    residual = operands["residual"].numpy() if "residual" in operands else None
    for o, *rest, lane in np.ndindex(values.shape):
        place = (o, *rest, lane)
        limit = thresholds[o]
        if residual is not None and others is not None:
            word = int(residual[(o, *rest, lane // 64)]) % 2**64
            if word >> (lane % 64) & 1:
                limit = others[o]
        value = int(values[place])
        bits[place] = value <= limit if flips[o] else value >= limit
    packed = np.packbits(bits, axis=-1, bitorder="little").view("<i8")
    return torch.from_numpy(packed.reshape(*values.shape[:-1], words))


@functools.cache
def looped(name: str) -> Tensor:
    """Sums of a case by the definition, [N, O, Ho, Wo]."""
    case = CONV_CASES[name]
    signs = case.signs().numpy().astype(np.int32)
    return torch.from_numpy(naive_conv2d(signs, case.weight().numpy(), **case.geometry))


@pytest.mark.parametrize("name", CONV_CASES)
def test_sums_match_loops(backend: str, name: str) -> None:
    case = CONV_CASES[name]
    sums = bitsliced_conv2d(case.planes(), case.taps(), **case.geometry, backend=backend)
    assert_close(sums[..., : case.batch], looped(name).movedim(0, -1))
    assert_close(sums, expected_sums(case))
    assert sums.is_contiguous()


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", CONV_CASES)
def test_decisions_match_loops(backend: str, name: str, with_residual: bool) -> None:
    case = CONV_CASES[name]
    operands = sign_operands(case, with_residual)
    planes = bitsliced_conv2d_sign(
        case.planes(), case.taps(), **operands, **case.geometry, backend=backend
    )
    assert_close(planes, expected_decisions(expected_sums(case), operands))
    assert planes.is_contiguous()


@PROPERTY
@given(case=conv_cases(), with_residual=st.booleans())
def test_random_convolutions(backend: str, case: ConvCase, with_residual: bool) -> None:
    case = few_taps(case, backend)
    planes, taps = case.planes(), case.taps()
    sums = bitsliced_conv2d(planes, taps, **case.geometry, backend=backend)
    assert_close(sums, expected_sums(case))
    operands = sign_operands(case, with_residual)
    decisions = bitsliced_conv2d_sign(planes, taps, **operands, **case.geometry, backend=backend)
    limit = operands["threshold"].view(-1, 1, 1, 1)
    if with_residual:
        positive = unpack_bits(operands["residual"], sums.shape[-1], -1, torch.int8) > 0
        limit = torch.where(positive, operands["residual_threshold"].view(-1, 1, 1, 1), limit)
    flip = operands["flip"].view(-1, 1, 1, 1)
    bits = torch.where(flip, sums <= limit, sums >= limit)
    assert_close(decisions, pack_bits(bits.int() - 1, -1))


def test_thresholds_at_every_possible_sum(backend: str) -> None:
    """Each t from below the least to above the greatest sum, flipped and not, a channel each."""
    case = ConvCase(batch=64, channels_per_group=1, outputs_per_group=1, image=(3, 3), density=1.0)
    kernel = case.weight().double()
    x = case.signs()
    x[:2] = torch.cat([kernel, -kernel])  # agree everywhere, and nowhere
    limits = torch.arange(-10, 11, dtype=torch.int32).repeat(2)
    channels = limits.numel()
    operands = {"threshold": limits, "flip": torch.arange(channels) >= channels // 2}
    weight = case.weight().expand(channels, -1, -1, -1)
    planes = bitsliced_conv2d_sign(
        pack_bits(x, 0), Taps.from_dense(weight), **operands, **case.geometry, backend=backend
    )
    sums = F.conv2d(x, weight.double(), padding=1).to(torch.int32).movedim(0, -1)
    assert {int(sums.min()), int(sums.max())} == {-9, 9}
    assert_close(planes, expected_decisions(sums, operands))


def test_thread_count_does_not_change_the_result(backend: str) -> None:
    case = ConvCase(batch=130, outputs_per_group=7)
    before = torch.get_num_threads()
    try:
        for threads in (1,) if backend == "triton" else (1, 2, 3):
            torch.set_num_threads(threads)
            sums = bitsliced_conv2d(case.planes(), case.taps(), **case.geometry, backend=backend)
            assert_close(sums, expected_sums(case))
    finally:
        torch.set_num_threads(before)


def test_strided_operands_and_int_geometry(backend: str) -> None:
    case = ConvCase(batch=70, stride=(2, 2))
    planes = case.planes().transpose(1, 2).contiguous().transpose(1, 2)
    taps = case.taps()
    doubled = torch.stack([taps.index, taps.index], 1)[:, 0]
    assert not planes.is_contiguous()
    assert not doubled.is_contiguous()
    sums = bitsliced_conv2d(planes, taps._replace(index=doubled), 2, 1, 1, 1, backend=backend)
    assert_close(sums, expected_sums(case))


def test_default_geometry(backend: str) -> None:
    case = ConvCase(padding=(0, 0))
    assert_close(bitsliced_conv2d(case.planes(), case.taps(), backend=backend), expected_sums(case))


def test_inputs_are_left_alone(backend: str) -> None:
    case = ConvCase()
    planes, taps, operands = case.planes(), case.taps(), sign_operands(case, True)
    before = [t.clone() for t in (planes, *taps[:3], *operands.values())]
    bitsliced_conv2d(planes, taps, **case.geometry, backend=backend)
    bitsliced_conv2d_sign(planes, taps, **operands, **case.geometry, backend=backend)
    after = (planes, *taps[:3], *operands.values())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("name", MALFORMED_TAPS)
def test_malformed_taps_are_refused(backend: str, name: str) -> None:
    case = ConvCase(density=1.0)
    taps = MALFORMED_TAPS[name](case.taps())
    with pytest.raises(ValueError, match=r"indptr|index|value|shape|taps"):
        bitsliced_conv2d(case.planes(), taps, **case.geometry, backend=backend)
    with pytest.raises(ValueError, match=r"indptr|index|value|shape|taps"):
        bitsliced_conv2d_sign(
            case.planes(),
            taps,
            **sign_operands(case, False),
            **case.geometry,
            backend=backend,
        )


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "planes of int32": ({"planes": torch.zeros(3, 6, 5, 1, dtype=torch.int32)}, "planes must be"),
    "planes of rank 3": ({"planes": torch.zeros(3, 6, 5, dtype=torch.int64)}, "planes must have"),
    "other channels": ({"planes": torch.zeros(4, 6, 5, 1, dtype=torch.int64)}, "4 channels"),
    "empty image": ({"planes": torch.zeros(3, 0, 5, 1, dtype=torch.int64)}, "does not fit"),
    "real taps": ({"taps": ConvCase().taps(torch.float32)}, "use sparse_conv2d"),
    "kernel past the image": ({"padding": 0, "dilation": 3}, "does not fit into an image"),
    "stride 0": ({"stride": 0}, "stride must be"),
    "negative padding": ({"padding": (1, -1)}, "padding must be"),
    "dilation 0": ({"dilation": 0}, "dilation must be"),
    "three strides": ({"stride": (1, 1, 1)}, "stride must be"),
    "groups 0": ({"groups": 0}, "groups must be"),
    "groups past the channels": ({"groups": 2}, "per group"),
    "outputs that do not divide": (
        {
            "planes": torch.zeros(9, 6, 5, 1, dtype=torch.int64),
            "groups": 3,
        },
        "do not divide",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(backend: str, name: str) -> None:
    changes, message = BAD_ARGUMENTS[name]
    case = ConvCase()
    arguments = {"planes": case.planes(), "taps": case.taps(), **case.geometry, **changes}
    with pytest.raises(ValueError, match=message):
        bitsliced_conv2d(**arguments, backend=backend)
    with pytest.raises(ValueError, match=message):
        bitsliced_conv2d_sign(**arguments, **sign_operands(case, False), backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": torch.zeros(4, dtype=torch.int64)}, "threshold must be int32"),
        ({"threshold": torch.zeros(3, dtype=torch.int32)}, "threshold must have shape"),
        ({"flip": torch.zeros(4, dtype=torch.uint8)}, "flip must be bool"),
        ({"flip": torch.zeros(5, dtype=torch.bool)}, "flip must have shape"),
        ({"residual": None}, "together"),
        ({"residual_threshold": None}, "together"),
        ({"residual": torch.zeros(4, 6, 5, 2, dtype=torch.int64)}, "residual must have shape"),
        ({"residual": torch.zeros(4, 6, 5, 1, dtype=torch.int32)}, "residual must be int64"),
        ({"residual_threshold": torch.zeros(1, dtype=torch.int32)}, "residual_threshold must"),
    ],
)
def test_bad_sign_operands(backend: str, changes: dict[str, Any], message: str) -> None:
    case = ConvCase()
    operands = {**sign_operands(case, True), **changes}
    with pytest.raises(ValueError, match=message):
        bitsliced_conv2d_sign(
            case.planes(), case.taps(), **operands, **case.geometry, backend=backend
        )


def test_unknown_backend_is_refused() -> None:
    case = ConvCase()
    with pytest.raises(BackendError, match="fpga"):
        bitsliced_conv2d(case.planes(), case.taps(), **case.geometry, backend="fpga")


@pytest.mark.parametrize("name", ["grouped", "no image", "every weight pruned", "stride 2"])
def test_opcheck(backend: str, name: str) -> None:
    case = CONV_CASES[name]
    geometry = tuple(case.geometry.values())
    torch.library.opcheck(
        torch.ops.mpt_fast.bitsliced_conv2d.default,
        (case.planes(), *case.taps(), *geometry, backend),
    )
    for with_residual in (False, True):
        operands = sign_operands(case, with_residual)
        torch.library.opcheck(
            torch.ops.mpt_fast.bitsliced_conv2d_sign.default,
            (
                case.planes(),
                *case.taps(),
                operands["threshold"],
                operands["flip"],
                *geometry,
                operands.get("residual"),
                operands.get("residual_threshold"),
                backend,
            ),
        )


def test_compiles_as_one_graph(backend: str) -> None:
    case = ConvCase(stride=(2, 2))
    operands = sign_operands(case, True)

    def both(planes: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
        return (
            bitsliced_conv2d(planes, taps, **case.geometry, backend=backend),
            bitsliced_conv2d_sign(planes, taps, **operands, **case.geometry, backend=backend),
        )

    sums, decisions = torch.compile(both, fullgraph=True, backend="aot_eager")(
        case.planes(), case.taps()
    )
    assert_close(sums, expected_sums(case))
    assert_close(decisions, expected_decisions(expected_sums(case), operands))


@needs_triton
@pytest.mark.parametrize("size", [1, 4, 8, 16, 32, 56])
@pytest.mark.parametrize("row", [2, 4, 16, 64, 96])
def test_launches_fit_the_device(size: int, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the interpreter: 128-bit loads where the batch allows, and enough programs."""
    from mpt_fast.kernels.bitsliced_conv2d import triton

    monkeypatch.setattr(triton, "interpreted", lambda: False)
    outputs = 512
    launch = triton.Launch.of(size * size, row, outputs, sign=True)
    assert row % launch.across == 0  # loads carry no mask
    assert launch.pixels * launch.across <= triton.TILE_WORDS
    if row % 4 == 0 and launch.pixels * launch.across >= 128:
        assert launch.words_per_thread == 4
    tiles = -(-size * size // launch.pixels) * row // launch.across
    programs = tiles * -(-outputs // launch.outputs)
    assert 1 <= launch.outputs <= triton.OUTPUTS_PER_PROGRAM
    assert programs >= triton.PROGRAMS or launch.outputs == 1


@needs_triton
def test_planes_hold_every_count() -> None:
    from mpt_fast.kernels.bitsliced_conv2d import triton

    for most in (0, 1, 255, 256, 1023, 1024, 2**20 - 1):
        assert most < 2 ** (4 + triton.high_planes(most))
    with pytest.raises(ValueError, match="counter planes"):
        triton.high_planes(2**20)
    assert (triton.group_of(511), triton.group_of(512)) == (16, 32)


@needs_triton
@pytest.mark.parametrize("route", ["adders", "int8"])
def test_the_measured_table_chooses_the_route(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpt_fast.kernels.bitsliced_conv2d import triton, triton_int8

    case = ConvCase(batch=64)
    asked: list[costs.Case] = []

    def measured(of: costs.Case) -> list[str]:
        asked.append(of)
        return ["reference", "triton/int8" if route == "int8" else "triton", "triton/other"]

    ran: list[str] = []
    for name, module in (("adders", triton), ("int8", triton_int8)):
        run = module.run

        def recorded(*operands: Any, name: str = name, run: Any = run) -> Tensor:
            ran.append(name)
            return run(*operands)

        monkeypatch.setattr(module, "run", recorded)
    monkeypatch.setattr(costs, "ranking", measured)
    sums = bitsliced_conv2d(case.planes(), case.taps(), **case.geometry, backend="triton")
    assert_close(sums, expected_sums(case))
    assert ran == [route]
    taps = case.taps().index.numel()
    assert asked == [costs.Case("bitsliced_conv2d", (64 * 30, 4, 27, taps))]
