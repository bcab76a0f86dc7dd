"""Shared suite of xnor_conv2d, on every backend."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, backend_fixture
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import CONV_CASES, PROPERTY, ConvCase, conv_cases, naive_conv2d
from torch import Tensor

from mpt_fast.kernels import backend as backends
from mpt_fast.kernels import cpu
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.pack_bits.reference import pack_bits
from mpt_fast.kernels.taps import KernelList, Taps
from mpt_fast.kernels.xnor_conv2d import op, xnor_conv2d

backend = backend_fixture(op.BACKENDS)

CASES = {name: case for name, case in CONV_CASES.items() if case.kernel == (3, 3)} | {
    "wide": ConvCase(image=(2, 67), outputs_per_group=2),
    "one full word wide": ConvCase(image=(2, 64), outputs_per_group=2),
    "depthwise": ConvCase(groups=5, channels_per_group=1, outputs_per_group=2),
    "small images side by side": ConvCase(batch=17, image=(3, 5)),
    "many channels": ConvCase(channels_per_group=90, outputs_per_group=2, image=(3, 3)),
    "many channels, all kept": ConvCase(
        channels_per_group=90, outputs_per_group=2, image=(3, 3), density=1.0
    ),
}


def rows_of(case: ConvCase) -> Tensor:
    return pack_bits(case.signs(), -1)


def kernels_of(case: ConvCase) -> KernelList:
    return KernelList.from_taps(case.taps())


@pytest.mark.parametrize("name", CASES)
def test_matches_loops(backend: str, name: str) -> None:
    case = CASES[name]
    sums = xnor_conv2d(
        rows_of(case), case.image[1], kernels_of(case), **case.geometry, backend=backend
    )
    naive = naive_conv2d(
        case.signs().numpy().astype(np.int32), case.weight().numpy(), **case.geometry
    )
    assert_close(sums, torch.from_numpy(naive))
    assert sums.is_contiguous()


@pytest.mark.skipif(not backends.triton_available(), reason="Triton is not installed")
@pytest.mark.parametrize("name", CASES)
def test_planes_of_a_packed_network(name: str) -> None:
    """Triton also reads its patches from images in the lanes; bits past the batch mean nothing."""
    from mpt_fast.kernels.geometry import make_geometry
    from mpt_fast.kernels.xnor_conv2d import triton

    case = CASES[name]
    geometry = make_geometry(**case.geometry)
    layer = triton.prepare(kernels_of(case), case.channels_per_group, case.image, geometry)
    planes = case.planes()
    if case.batch % 64:
        planes[..., -1] |= -1 << (case.batch % 64)
    expected = F.conv2d(case.signs(), case.weight().double(), **case.geometry)
    assert_close(triton.run(planes, layer, case.batch), expected.to(torch.int32))


@PROPERTY
@given(case=conv_cases(kernels=st.just(3)))
def test_random_convolutions(backend: str, case: ConvCase) -> None:
    case = replace(case, batch=min(case.batch, 3))
    sums = xnor_conv2d(
        rows_of(case), case.image[1], kernels_of(case), **case.geometry, backend=backend
    )
    expected = F.conv2d(case.signs(), case.weight().double(), **case.geometry)
    assert_close(sums, expected.to(torch.int32))


def test_bits_that_mean_nothing_are_ignored(backend: str) -> None:
    """Input bits past the width and sign bits outside the mask."""
    case = ConvCase(image=(5, 6))
    kernels = kernels_of(case)
    expected = xnor_conv2d(rows_of(case), 6, kernels, **case.geometry, backend=backend)
    noisy = kernels._replace(sign=kernels.sign | (~kernels.mask & 511))
    assert not torch.equal(noisy.sign, kernels.sign)
    rows = rows_of(case) | -(1 << 6)
    assert_close(xnor_conv2d(rows, 6, noisy, **case.geometry, backend=backend), expected)


def test_no_kernels_at_all(backend: str) -> None:
    case = ConvCase(density=0.0)
    kernels = kernels_of(case)
    assert kernels.channel.numel() == 0
    sums = xnor_conv2d(rows_of(case), 5, kernels, **case.geometry, backend=backend)
    assert_close(sums, torch.zeros(3, 4, 6, 5, dtype=torch.int32))


def test_more_taps_than_sixteen_bits_count(backend: str) -> None:
    # 65 700 taps; the Triton kernel counts in 32 bits, and its interpreter would take minutes.
    channels = 40 if backend == "triton" else 7300
    rows = torch.full((2, channels, 3, 1), 7)
    rows[1] = 0
    kernels = KernelList.from_taps(Taps.from_dense(torch.ones(1, channels, 3, 3, dtype=torch.int8)))
    sums = xnor_conv2d(rows, 3, kernels, padding=1, backend=backend)
    inside = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.int32) * channels
    assert_close(sums, torch.stack([inside, -inside]).unsqueeze(1))


@pytest.mark.skipif(not cpu.available(), reason="the engine is not built on this machine")
@pytest.mark.parametrize("name", ["grouped", "wide", "many channels"])
def test_threads_do_not_change_the_engine_s_sums(name: str) -> None:
    case = CASES[name]
    arrays = [tensor.numpy() for tensor in kernels_of(case)]
    geometry = case.geometry.values()
    one, three = (
        cpu.engine().xnor_conv2d(
            rows_of(case).numpy(), case.image[1], *arrays, *geometry, threads=threads
        )
        for threads in (1, 3)
    )
    np.testing.assert_array_equal(one, three)


def _with(tensor: Tensor, position: int, value: int) -> Tensor:
    changed = tensor.clone()
    changed[position] = value
    return changed


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("indptr", lambda t: _with(t, 0, 1), "indptr must run from 0"),
        ("indptr", lambda t: _with(t, -1, 99), "indptr must run from 0"),
        ("indptr", lambda t: _with(t, 1, int(t[2]) + 1), "indptr must not descend"),
        ("indptr", lambda t: t[:1], "at least two"),
        ("indptr", lambda t: t.long(), "indptr must be int32"),
        ("channel", lambda t: _with(t, 0, 3), "channel must lie in 0..2"),
        ("channel", lambda t: _with(t, 0, -1), "channel must lie in 0..2"),
        ("channel", lambda t: _with(t, 1, 0), "channel must ascend"),
        ("channel", lambda t: t[1:], "sign must have shape"),
        ("sign", lambda t: _with(t, 0, 512), "sign must be 9 bits"),
        ("sign", lambda t: t.int(), "sign must be int16"),
        ("mask", lambda t: _with(t, 0, 0), "mask must be 9 bits and not 0"),
        ("mask", lambda t: _with(t, 0, 512), "mask must be 9 bits"),
        ("mask", lambda t: t[1:], "mask must have shape"),
    ],
)
def test_malformed_kernels_are_refused(backend: str, field: str, change: Any, message: str) -> None:
    case = ConvCase(density=1.0)
    kernels = kernels_of(case)
    kernels = kernels._replace(**{field: change(getattr(kernels, field))})
    with pytest.raises(ValueError, match=message):
        xnor_conv2d(rows_of(case), 5, kernels, **case.geometry, backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": torch.zeros(3, 3, 6, 1, dtype=torch.int32)}, "rows must be int64"),
        ({"rows": torch.zeros(3, 6, 1, dtype=torch.int64)}, "rows must have shape"),
        ({"width": 65}, "width 65 does not fit rows of 1 words"),
        ({"width": 0}, "width 0 does not fit"),
        ({"rows": torch.zeros(3, 2, 6, 1, dtype=torch.int64)}, "channel must lie in 0..1"),
        ({"groups": 2}, "do not divide into 2 groups"),
        ({"padding": 0, "width": 2}, "does not fit into an image"),
        ({"stride": 0}, "stride must be"),
    ],
)
def test_bad_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    case = ConvCase(density=1.0)
    arguments = {"rows": rows_of(case), "width": 5, "kernels": kernels_of(case), **case.geometry}
    with pytest.raises(ValueError, match=message):
        xnor_conv2d(**{**arguments, **changes}, backend=backend)


@pytest.mark.parametrize("kernel", [(1, 1), (5, 5), (3, 2)])
def test_other_kernel_sizes_name_the_remedy(kernel: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="use bitsliced_conv2d"):
        KernelList.from_taps(ConvCase(kernel=kernel).taps())


def test_backends_that_do_not_exist_are_refused() -> None:
    case = ConvCase()
    for name in {"cpu", "triton"} - set(op.BACKENDS):
        with pytest.raises(BackendError, match=f"no '{name}' backend"):
            xnor_conv2d(rows_of(case), 5, kernels_of(case), **case.geometry, backend=name)


@pytest.mark.parametrize("name", ["grouped", "no image", "every weight pruned"])
def test_opcheck(backend: str, name: str) -> None:
    case = CASES[name]
    torch.library.opcheck(
        torch.ops.mpt_fast.xnor_conv2d.default,
        (
            rows_of(case),
            case.image[1],
            *kernels_of(case),
            *case.geometry.values(),
            backend,
        ),
    )


def test_compiles_as_one_graph(backend: str) -> None:
    case = ConvCase(stride=(2, 1))

    def conv(rows: Tensor, kernels: KernelList) -> Tensor:
        return xnor_conv2d(rows, 5, kernels, **case.geometry, backend=backend)

    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    expected = F.conv2d(case.signs(), case.weight().double(), **case.geometry)
    assert_close(compiled(rows_of(case), kernels_of(case)), expected.to(torch.int32))
