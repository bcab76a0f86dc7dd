"""kept_conv2d on every backend: against autograd through a dense convolution, in float64."""

import helpers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.kernels import cpu
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.kept_conv2d import KeptWeight, kept_conv2d, reference
from mpt_fast.kernels.kept_conv2d.op import BACKENDS, kept_gradient
from mpt_fast.kernels.taps import Taps

backend = helpers.backend_fixture(BACKENDS)

# (x shape, weight shape, stride, padding, dilation, groups, density)
CASES = {
    "3x3": ((3, 5, 7, 9), (6, 5, 3, 3), 1, 1, 1, 1, 0.3),
    "lanes": ((17, 3, 4, 4), (2, 3, 3, 3), 1, 1, 1, 1, 0.5),
    "blocks of lanes": ((70, 2, 3, 5), (3, 2, 3, 3), 1, 1, 1, 1, 0.4),
    "many channels": ((2, 80, 4, 6), (40, 80, 3, 3), 1, 1, 1, 1, 0.05),
    "stride": ((4, 3, 9, 8), (4, 3, 3, 3), 2, 1, 1, 1, 0.5),
    "dilation": ((2, 3, 9, 9), (4, 3, 3, 3), 1, (2, 1), (2, 1), 1, 0.5),
    "groups": ((2, 6, 5, 5), (4, 3, 3, 3), 1, 1, 1, 2, 0.5),
    "wide padding": ((2, 2, 5, 5), (3, 2, 2, 2), 1, 2, 1, 1, 0.5),
    "1x1 on one pixel": ((5, 40, 1, 1), (30, 40, 1, 1), 1, 0, 1, 1, 0.1),
    "dense": ((2, 2, 5, 5), (3, 2, 3, 3), 1, 1, 1, 1, 1.0),
}


def operands(case: str, dtype: torch.dtype = torch.float64) -> tuple:
    shape, weight_shape, *geometry, density = CASES[case]
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(weight_shape, generator=draw, dtype=torch.float64).to(dtype)
    mask = torch.rand(weight_shape, generator=draw) < density
    mask[0, 0, 0, 0] = True
    return x, weight * mask, mask, geometry


def dense(x: Tensor, weight: Tensor, geometry: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, an arbitrary gradient of it, and the gradients to x and weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = F.conv2d(x, weight, None, *geometry)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grad = grad.to(out.dtype)
    out.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    return out.detach(), grad, x.grad, weight.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_against_a_dense_convolution(backend: str, case: str, dtype: torch.dtype) -> None:
    x, weight, mask, geometry = operands(case, dtype)
    want, grad, want_x, want_weight = dense(x.double(), weight.double(), geometry)
    kept = KeptWeight.of(mask, geometry[3])
    value = kept.gather(weight).requires_grad_()
    inputs = x.requires_grad_()
    out = kept_conv2d(inputs, value, kept, *geometry, backend=backend)
    out.backward(grad.to(dtype))
    assert inputs.grad is not None
    assert value.grad is not None
    tolerance = helpers.TOLERANCE[dtype] * 2
    helpers.assert_close(out.detach(), want.to(dtype), tolerance)
    helpers.assert_close(inputs.grad, want_x.to(dtype), tolerance)
    helpers.assert_close(value.grad, kept.gather(want_weight).to(dtype), tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 7, 8, 13, 16])
def test_results_do_not_depend_on_threads_or_instruction_set(
    width: int, dtype: torch.dtype
) -> None:
    """Instruction sets have tiles of up to 4 and 8 pixels, threads blocks of 16 to 64 images."""
    if not cpu.available():
        pytest.skip("the engine is not built: " + cpu.missing_reason())
    draw = torch.Generator().manual_seed(width)
    mask = torch.rand(24, 40, 3, 3, generator=draw) < 0.08
    kept = KeptWeight.of(mask)
    x = torch.randn(70, 40, 3, width, generator=draw, dtype=torch.float64).to(dtype)
    grad = torch.randn(70, 24, 3, width, generator=draw, dtype=torch.float64).to(dtype)
    lists = [taps_of(part, dtype) for part in (kept.taps, kept.turned)]
    arguments = (x.numpy(), grad.numpy(), *lists[0], kept.shape, *make_geometry(1, 1))
    engine = cpu.engine()
    results = [
        (
            *engine.kept_conv2d_gradients(*arguments, turned=lists[1], isa=isa, threads=threads),
            engine.kept_conv2d(
                x.numpy(), *lists[0], kept.shape, *make_geometry(1, 1), isa=isa, threads=threads
            ),
        )
        for isa in engine.isas()
        for threads in (1, 3)
    ]
    for found in results:
        for one, other in zip(found, results[0], strict=True):
            assert np.array_equal(one, other)


def taps_of(taps: Taps, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    return taps.indptr.numpy(), taps.index.numpy(), taps.value.to(dtype).numpy()


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (12, 7, 1, 1), (6, 9, 2, 4), (6, 1, 5, 5)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.7, 1.0])
def test_the_engines_lists_are_the_reference_s(
    shape: tuple[int, ...], density: float, groups: int
) -> None:
    if not cpu.available():
        pytest.skip("the engine is not built: " + cpu.missing_reason())
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < density
    found = cpu.engine().kept_lists(mask.numpy(), groups)
    for mine, want in zip(found, reference.lists(mask, groups), strict=True):
        assert torch.equal(torch.from_numpy(mine), want)
        assert torch.from_numpy(mine).dtype == want.dtype


def test_lists_describe_the_mask_and_its_turned_kernels() -> None:
    """By the definition: entry (o, c, r, s) is entry (c, o, kh-1-r, kw-1-s) of the turned taps."""
    mask = torch.rand(4, 3, 3, 2, generator=torch.Generator().manual_seed(5)) < 0.4
    number = torch.arange(mask.numel(), dtype=torch.float64).view(mask.shape) + 1
    kept = KeptWeight.of(mask, groups=2)
    values = kept.gather(number)
    taps = kept.taps._replace(value=values)
    assert torch.equal(taps.to_dense(), number * mask)
    turned = kept.turned._replace(value=values[kept.turned_order]).to_dense()
    for o, c, r, s in mask.nonzero().tolist():
        found = turned[o // 2 * 3 + c, o % 2, 2 - r, 1 - s]
        assert found == number[o, c, r, s]
    assert int((turned != 0).sum()) == int(mask.sum())


def test_an_empty_mask_and_an_empty_batch(backend: str) -> None:
    kept = KeptWeight.of(torch.zeros(3, 2, 3, 3, dtype=torch.bool))
    x, grad = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    geometry = make_geometry(1, 1)
    assert kept_gradient(x, grad, kept, geometry, backend).shape == (0,)
    full = KeptWeight.of(torch.ones(3, 2, 3, 3, dtype=torch.bool))
    none = kept_gradient(x[:0], grad[:0], full, geometry, backend)
    assert torch.equal(none, torch.zeros(54))


def test_gather_and_scatter_are_inverse() -> None:
    mask = torch.rand(4, 3, 3, 3) < 0.4
    kept = KeptWeight.of(mask)
    dense_weight = torch.randn(4, 3, 3, 3) * mask
    assert kept.kept == int(mask.sum())
    assert torch.equal(kept.scatter(kept.gather(dense_weight)), dense_weight)


def test_linear_masks_are_1x1() -> None:
    mask = torch.rand(4, 6) < 0.5
    assert KeptWeight.of(mask).shape == (4, 6, 1, 1)


def test_bad_operands() -> None:
    kept = KeptWeight.of(torch.ones(3, 2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"value must have shape \(54\)"):
        kept_conv2d(torch.randn(1, 2, 4, 4), torch.randn(53), kept)
    with pytest.raises(ValueError, match=r"mask must be \[O, I\] or \[O, C, kh, kw\]"):
        KeptWeight.of(torch.ones(3, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be bool"):
        KeptWeight.of(torch.ones(3, 2))


def test_only_the_input_s_gradient(backend: str) -> None:
    x, weight, mask, geometry = operands("groups")
    _, grad, want_x, _ = dense(x, weight, geometry)
    kept = KeptWeight.of(mask, geometry[3])
    inputs = x.requires_grad_()
    kept_conv2d(inputs, kept.gather(weight), kept, *geometry, backend=backend).backward(grad)
    helpers.assert_close(inputs.grad, want_x, helpers.TOLERANCE[torch.float64])


def test_the_engine_refuses_what_has_no_turned_taps() -> None:
    if not cpu.available():
        pytest.skip("the engine is not built: " + cpu.missing_reason())
    kept = KeptWeight.of(torch.ones(3, 2, 3, 3, dtype=torch.bool))
    x, grad = np.zeros((1, 2, 5, 5), np.float32), np.zeros((1, 3, 2, 2), np.float32)
    lists = [taps_of(part, torch.float32) for part in (kept.taps, kept.turned)]
    call = cpu.engine().kept_conv2d_gradients
    with pytest.raises(ValueError, match="needs stride 1"):
        call(x, grad, *lists[0], kept.shape, (2, 2), (0, 0), (1, 1), 1, turned=lists[1])
    with pytest.raises(ValueError, match="grad does not have the shape"):
        call(x, grad, *lists[0], kept.shape, (1, 1), (0, 0), (1, 1), 1)
    for wrong in (np.zeros((3, 2), bool), np.zeros((3, 2, 3, 3), np.int8)):
        with pytest.raises(ValueError, match="mask must be a C-contiguous bool array"):
            cpu.engine().kept_lists(wrong, 1)
    with pytest.raises(ValueError, match="a multiple of groups"):
        cpu.engine().kept_lists(np.zeros((3, 2, 3, 3), bool), 2)


@pytest.mark.parametrize("case", ["3x3", "stride"])
def test_the_operations_and_their_fakes(backend: str, case: str) -> None:
    x, weight, mask, geometry = operands(case, torch.float32)
    kept = KeptWeight.of(mask)
    grad = dense(x, weight, geometry)[1]
    pairs = [list(pair) for pair in make_geometry(*geometry)[:3]]
    rest = (list(kept.shape), *pairs, 1, backend)
    taps, tests = kept.taps, ("test_schema", "test_faketensor")
    value = kept.gather(weight).contiguous()
    torch.library.opcheck(
        torch.ops.mpt_fast.kept_conv2d.default,
        (x, taps.indptr, taps.index, value, *rest),
        test_utils=tests,
    )
    turned = [kept.turned.indptr, kept.turned.index, value[kept.turned_order]]
    for lists in [[], turned] if case == "3x3" else [[]]:
        torch.library.opcheck(
            torch.ops.mpt_fast.kept_conv2d_gradients.default,
            (x, grad, taps.indptr, taps.index, lists, *rest),
            test_utils=tests,
        )
