"""Shared suite of xnor_linear, on every backend."""

import numpy as np
import pytest
import torch
from helpers import assert_close, backend_fixture
from hypothesis import given
from kernel_cases import LINEAR_CASES, PROPERTY, LinearCase, linear_cases
from torch import Tensor

from mpt_fast.kernels import cpu
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.pack_bits.reference import pack_bits
from mpt_fast.kernels.taps import Taps
from mpt_fast.kernels.xnor_linear import op, pack_weight, xnor_linear

backend = backend_fixture(op.BACKENDS)


def packed_input(case: LinearCase) -> Tensor:
    return pack_bits(case.signs(), 1)


@pytest.mark.parametrize("name", LINEAR_CASES)
def test_matches_python_integers(backend: str, name: str) -> None:
    case = LINEAR_CASES[name]
    sums = xnor_linear(packed_input(case), *pack_weight(case.taps()), backend=backend)
    weight = case.weight().tolist()
    rows = [
        [sum(w * x for w, x in zip(row, image, strict=True)) for row in weight]
        for image in case.signs(torch.int32).tolist()
    ]
    expected = torch.tensor(rows, dtype=torch.int32).view(case.batch, case.outputs)
    assert_close(sums, expected)


@PROPERTY
@given(case=linear_cases)
def test_random_layers(backend: str, case: LinearCase) -> None:
    sums = xnor_linear(packed_input(case), *pack_weight(case.taps()), backend=backend)
    assert_close(sums, (case.signs() @ case.weight().double().T).to(torch.int32))


# Whole and partial vectors of 1, 4 and 8 words, fewer and more than eight vectors.
@pytest.mark.parametrize("inputs", [64, 255, 256, 300, 511, 512, 2048, 2300, 4608])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_every_number_of_words(backend: str, inputs: int, density: float) -> None:
    case = LinearCase(batch=6, inputs=inputs, outputs=3, density=density)
    sums = xnor_linear(packed_input(case), *pack_weight(case.taps()), backend=backend)
    assert_close(sums, (case.signs() @ case.weight().double().T).to(torch.int32))


def test_weights_that_need_a_mask_only_at_the_end(backend: str) -> None:
    case = LinearCase(batch=3, inputs=1300, outputs=2, density=1.0)
    weight = case.weight()
    weight[1, 700:] *= torch.arange(600) % 3 > 0
    sums = xnor_linear(packed_input(case), *pack_weight(Taps.from_dense(weight)), backend=backend)
    assert_close(sums, (case.signs() @ weight.double().T).to(torch.int32))


@pytest.mark.skipif(not cpu.available(), reason="the engine is not built on this machine")
def test_threads_do_not_change_the_engine_s_sums() -> None:
    case = LinearCase(batch=70, inputs=3000, outputs=40)
    operands = [t.numpy() for t in (packed_input(case), *pack_weight(case.taps()))]
    one, three = (cpu.engine().xnor_linear(*operands, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_bits_that_mean_nothing_are_ignored(backend: str) -> None:
    """Input bits past the inputs and sign bits outside the mask."""
    case = LinearCase()
    x, (sign, mask) = packed_input(case), pack_weight(case.taps())
    expected = xnor_linear(x, sign, mask, backend=backend)
    assert_close(xnor_linear(x | -(1 << 37), sign | ~mask, mask, backend=backend), expected)


def test_pack_weight_writes_signs_and_masks() -> None:
    weight = torch.zeros(1, 66, dtype=torch.int8)
    weight[0, [1, 2, 65]] = torch.tensor([1, -1, 1], dtype=torch.int8)
    sign, mask = pack_weight(Taps.from_dense(weight))
    assert sign.tolist() == [[2, 2]]
    assert mask.tolist() == [[6, 2]]


@pytest.mark.parametrize(
    "taps",
    [
        LinearCase().taps(torch.float32),
        Taps.from_dense(torch.ones(2, 3, 3, 3, dtype=torch.int8)),
    ],
    ids=["real", "3x3"],
)
def test_pack_weight_refuses_other_taps(taps: Taps) -> None:
    with pytest.raises(ValueError, match="use sparse_linear"):
        pack_weight(taps)


@pytest.mark.parametrize(
    ("x", "sign", "mask", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int32), None, None, "x must be int64"),
        (torch.zeros(2, dtype=torch.int64), None, None, "x must have shape"),
        (None, torch.zeros(3, 2, dtype=torch.int64), None, "sign must have shape"),
        (None, torch.zeros(3, 1), None, "sign must be int64"),
        (None, None, torch.zeros(2, 1, dtype=torch.int64), "mask must have shape"),
        (None, None, torch.zeros(3, 1, dtype=torch.bool), "mask must be int64"),
    ],
)
def test_bad_arguments(
    backend: str, x: Tensor | None, sign: Tensor | None, mask: Tensor | None, message: str
) -> None:
    good = torch.zeros(3, 1, dtype=torch.int64)
    x, sign, mask = (good if t is None else t for t in (x, sign, mask))
    with pytest.raises(ValueError, match=message):
        xnor_linear(x, sign, mask, backend=backend)


def test_backends_that_do_not_exist_are_refused() -> None:
    good = torch.zeros(3, 1, dtype=torch.int64)
    for name in {"cpu", "triton"} - set(op.BACKENDS):
        with pytest.raises(BackendError, match=f"no '{name}' backend"):
            xnor_linear(good, good, good, backend=name)


@pytest.mark.parametrize("name", ["odd", "no image"])
def test_opcheck(backend: str, name: str) -> None:
    case = LINEAR_CASES[name]
    torch.library.opcheck(
        torch.ops.mpt_fast.xnor_linear.default,
        (packed_input(case), *pack_weight(case.taps()), backend),
    )


def test_compiles_as_one_graph(backend: str) -> None:
    case = LinearCase()

    def linear(x: Tensor, sign: Tensor, mask: Tensor) -> Tensor:
        return xnor_linear(x, sign, mask, backend=backend)

    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    sums = compiled(packed_input(case), *pack_weight(case.taps()))
    assert_close(sums, (case.signs() @ case.weight().double().T).to(torch.int32))
