"""What the shared suite cannot reach: the weight formed from W, s and threshold, and splits."""

import pytest
import torch
from helpers import assert_close
from kernel_cases import CONV_CASES, ConvCase
from torch.nn import functional as F

from mpt_fast.kernels import backend
from mpt_fast.kernels.geometry import make_geometry
from mpt_fast.kernels.select_topk import select_topk

pytestmark = pytest.mark.skipif(not backend.triton_available(), reason="Triton is not installed")


@pytest.mark.parametrize("levels", [1000, 2], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", ["stride 2", "grouped"])
def test_weight_formed_from_scores_equals_the_code(name: str, levels: int) -> None:
    from mpt_fast.kernels.masked_conv2d import triton

    case = CONV_CASES[name]
    x, weight = case.floats(torch.float32), torch.randn(case.weight().shape)
    scores = (torch.randn(weight.shape) * levels).round() / levels
    selection = select_topk([weight], [scores], 0.6, "reference")
    layer = triton.Layer.of(case.image, weight.shape, make_geometry(**case.geometry))
    formed = triton.FromScores(
        triton.nhwc(weight),
        triton.nhwc(scores),
        selection.thresholds[0],
        selection.tie_limits[0],
    )
    code, gain = triton.nhwc(selection.codes[0]), torch.tensor(0.5)
    from_scores = triton.masked_conv2d_fwd(triton.nhwc(x), formed, gain, layer)
    assert torch.equal(from_scores, triton.masked_conv2d_fwd(triton.nhwc(x), code, gain, layer))
    dy = torch.randn(from_scores.shape)
    back = triton.masked_conv2d_bwd_x(dy, formed, gain, layer)
    assert torch.equal(back, triton.masked_conv2d_bwd_x(dy, code, gain, layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_shipped_tile(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and input gradient at the tiles of a device, which the interpreter enlarges."""
    from mpt_fast.kernels.masked_conv2d import triton

    monkeypatch.setattr(triton, "interpreted", lambda: False)
    case = ConvCase(channels_per_group=70, outputs_per_group=130, batch=1, image=(3, 4))
    x, code, gain = case.floats(dtype), case.weight(), torch.tensor(0.5)
    layer = triton.Layer.of(case.image, code.shape, make_geometry(**case.geometry))
    y = triton.masked_conv2d_fwd(triton.nhwc(x), triton.nhwc(code), gain, layer)
    want = F.conv2d(x.double(), 0.5 * code.double(), None, **case.geometry)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    assert_close(y.permute(0, 3, 1, 2), want.to(dtype), tolerance)
    dy = torch.randn(y.shape).to(dtype)
    parts = triton.masked_conv2d_bwd_weight(
        dy,
        triton.nhwc(x),
        triton.nhwc(code).to(dtype),
        triton.nhwc(code).to(dtype),
        layer,
        1.0,
        (True, False),
    )[0]
    assert parts is not None
    gradient = torch.nn.grad.conv2d_weight(
        x.double(), code.shape, dy.permute(0, 3, 1, 2).double(), padding=1
    )
    assert_close(parts.permute(0, 3, 1, 2), gradient.float(), tolerance)


def test_splits_cover_every_pixel_and_depend_on_sizes_alone() -> None:
    from mpt_fast.kernels.masked_conv2d import triton

    for pixels in (1, 31, 512, 33_000, 524_288):
        layer = triton.Layer(32, 32, 32, 32, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1)
        splits, steps = triton.wgrad_splits(layer, pixels, triton.WGRAD_NARROW)
        assert splits * steps * triton.WGRAD_NARROW.depth >= pixels
        assert (splits - 1) * steps * triton.WGRAD_NARROW.depth < pixels
