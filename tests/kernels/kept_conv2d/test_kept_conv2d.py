"""kept_conv2d on every backend: against autograd through a dense convolution, in float64."""

import helpers
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mpt_fast.kernels import cpu
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.kept_conv2d import KeptWeight, kept_conv2d
from mpt_fast.kernels.kept_conv2d.op import BACKENDS, kept_gradient

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


def test_gradient_does_not_depend_on_threads_or_instruction_set() -> None:
    if not cpu.available():
        pytest.skip("the engine is not built: " + cpu.missing_reason())
    x, _, mask, geometry = operands("many channels", torch.float32)
    kept = KeptWeight.of(mask)
    grad = torch.randn(2, 40, 4, 6)
    taps = kept.taps
    lists = (taps.indptr.numpy(), taps.index.numpy(), taps.value.float().numpy())
    arguments = (x.numpy(), grad.numpy(), *lists, kept.shape, *make_geometry(*geometry))
    results = [
        torch.from_numpy(cpu.engine().kept_conv2d_gradient(*arguments, isa=isa, threads=threads))
        for isa in cpu.engine().isas()
        for threads in (1, 3)
    ]
    assert all(torch.equal(found, results[0]) for found in results)


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


def test_the_operation_and_its_fake(backend: str) -> None:
    x, _, mask, geometry = operands("stride", torch.float32)
    kept = KeptWeight.of(mask)
    grad = torch.randn(4, 4, 5, 4)
    arguments = (x, grad, kept.taps.indptr, kept.taps.index, list(kept.shape))
    torch.library.opcheck(
        torch.ops.mpt_fast.kept_conv2d_gradient.default,
        (*arguments, *(list(pair) for pair in make_geometry(*geometry)[:3]), 1, backend),
        test_utils=("test_schema", "test_faketensor"),
    )
