"""`pack(activations="int8")`: units, what stays in float, files and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_checks import LAYERWISE, eager, randomise
from torch import Tensor, nn

import mpt_fast as mpt
from mpt_fast import models, runtime
from mpt_fast.kernels import backend as backends
from mpt_fast.packed import PackedModel, PackError, run_reference
from mpt_fast.packed.quantize import peaks
from mpt_fast.runtime.program import Combine, ConvAffine

SHAPE = (3, 12, 12)
IMAGES = torch.randn(48, *SHAPE, generator=torch.Generator().manual_seed(3))
NETWORKS = ("conv2", "vgg_small", "resnet18", "resnet20", "wrn10_1", "mobilenet_v1")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(
        name, activation="relu", bn="affine", width=0.15, image_size=12, config=LAYERWISE
    )
    return randomise(model).eval()


def in_levels(model: nn.Module, backend: str | None = None, **options: Any) -> PackedModel:
    return mpt.pack(model, IMAGES, backend, 1, **options, activations="int8", calibration=IMAGES)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_close_to_float_and_equal_to_their_reference(name: str, backend: str) -> None:
    """An 8-bit step is 1/255 of a tensor's largest value, so logits stay within a few percent."""
    model = network(name)
    packed = in_levels(model, backend)
    kinds = {value.kind for value in packed.program.values()}
    assert "u8" in kinds
    assert name != "resnet18" or "i16" in kinds  # its projections
    expected = eager(model, IMAGES)
    error = (packed(IMAGES).double() - expected).pow(2).mean().sqrt()
    assert error < 0.05 * expected.std()
    assert error > 1e-5 * expected.std()
    reference = run_reference(packed.program, IMAGES).reshape(48, -1)
    largest = float(reference.abs().max())
    assert torch.allclose(packed(IMAGES).double(), reference, rtol=0, atol=1e-6 * largest)


def test_units_are_those_of_the_largest_calibration_value() -> None:
    """A convolution of weight +1 after one: 8-bit levels of known values."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False), nn.Flatten()
    )
    for layer in (model[0], model[2]):
        nn.init.ones_(layer.weight)
    x = torch.linspace(-2, 5.08, 60).view(-1, 1, 1, 1)
    packed = mpt.pack(model, x, activations="int8", calibration=[x[:30], x[30:]])
    level = (x / (5.08 / 127)).round()  # the input: -127 to 127 of the largest magnitude
    level = (level.clamp(min=0) * np.float32((5.08 / 127) / (5.08 / 255))).round()
    assert torch.allclose(packed(x), (level * (5.08 / 255)).flatten(1), atol=1e-5)
    outside = packed(torch.full((1, 1, 1, 1), 50.0))  # beyond what calibration met: clamped
    assert float(outside) == pytest.approx(5.08, abs=0.03)


def test_peaks_are_taken_over_all_batches() -> None:
    program = mpt.pack(network("resnet20"), IMAGES).program
    whole = peaks(program, [IMAGES])
    parts = peaks(program, iter(IMAGES.split(7)))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert whole[0] == float(IMAGES.abs().max())
    assert (peaks(program, [IMAGES[:5]]) <= whole * (1 + 1e-5)).all()


def test_what_comes_behind_the_average_pool_stays_in_float() -> None:
    program = in_levels(network("resnet18")).program
    *_, last = (step for step in program.steps if isinstance(step, ConvAffine))
    assert last.kind is None
    assert program.values()[last.src].kind == "f32"
    first = program.steps[0]
    assert isinstance(first, Combine)
    assert (first.kind, first.covers) == ("i8", "quantise")


def test_8_bit_images_and_batches_of_them_calibrate_alike() -> None:
    pixels = torch.randint(0, 256, (20, *SHAPE), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    normal = torch.from_numpy(runtime.Pixels(mean, std).normalize(pixels.numpy()))
    made = [
        mpt.pack(network("conv2"), normal, pixels=(mean, std), activations="int8", calibration=c)
        for c in (pixels, [pixels[:7], pixels[7:]], normal)
    ]
    # Float sums of another batch size may differ in the last bit, and so may the units.
    expected = made[0](pixels)
    for packed in made:
        for step, first in zip(packed.program.steps, made[0].program.steps, strict=True):
            if isinstance(step, ConvAffine):
                assert isinstance(first, ConvAffine)
                np.testing.assert_allclose(step.scale, first.scale, rtol=1e-5)
        found = packed(pixels)
        assert (found - expected).abs().max() < 0.02 * expected.std()
        assert torch.equal(packed(normal), found)


def test_files_keep_the_levels(tmp_path: Path, backend: str) -> None:
    packed = in_levels(network("resnet18"), backend)
    packed.save(tmp_path / "net.mpt")
    loaded = mpt.load(tmp_path / "net.mpt", backend, 1)
    assert torch.equal(loaded(IMAGES), packed(IMAGES))
    assert [value.kind for value in loaded.program.values()] == [
        value.kind for value in packed.program.values()
    ]
    loaded.save(tmp_path / "again.mpt")
    assert (tmp_path / "again.mpt").read_bytes() == (tmp_path / "net.mpt").read_bytes()


def test_the_plan_shows_the_levels() -> None:
    rows = in_levels(network("resnet18"), "cpu").plan(64).steps
    levels = [row for row in rows if row.kernel.startswith("sparse 8-bit")]
    assert {row.kind for row in levels} == {"u8", "i16", "f32"}
    assert all(row.predicted is not None and row.predicted > 0 for row in levels)
    assert all("8-bit inputs" in row.why for row in levels)


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class BinaryNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), mpt.BinaryActivation(), nn.Conv2d(4, 2, 1))


def float_taps() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


def huge_kernel() -> nn.Module:
    conv = nn.Conv2d(3, 2, 12, bias=False)
    nn.init.ones_(conv.weight)
    return conv


REFUSED: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (float_taps, {"calibration": None}, "needs calibration images"),
    (float_taps, {"activations": "float"}, "calibration is for activations='int8' only"),
    (float_taps, {"activations": "int4"}, "'int4' is neither 'float' nor 'int8'"),
    (float_taps, {"calibration": []}, "calibration has no images"),
    (float_taps, {"calibration": IMAGES[:0]}, "calibration has no images"),
    (float_taps, {"calibration": [IMAGES[:, :2]]}, "calibration: input has shape"),
    (float_taps, {"calibration": [IMAGES / 0]}, "calibration: input has NaN or infinite"),
    (float_taps, {"calibration": ["image"]}, "calibration: input is str"),
    (float_taps, {"calibration": IMAGES.byte()}, "packed without its pixel normalisation"),
    (float_taps, {}, "^0: its weights are not one gain times"),
    (huge_kernel, {}, "its kernel has 144 entries, 8-bit activations take 128"),
    (BinaryNet, {}, "this one has binary ones"),
    (lambda: nn.ReLU(), {}, "no layer of this network has a form with 8-bit activations"),
    (lambda: nn.Sequential(huge_kernel(), Summed()), {}, r"cumsum \(cumsum\) runs in PyTorch"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refusals(make: Callable[[], nn.Module], options: dict[str, Any], message: str) -> None:
    options = {"activations": "int8", "calibration": IMAGES, **options}
    with pytest.raises(PackError, match=message) as caught:
        mpt.pack(make(), IMAGES, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not backends.triton_available(), reason="no Triton here")
def test_backend_triton_is_refused() -> None:
    with pytest.raises(PackError, match="8-bit activations run on the C\\+\\+ engine only"):
        in_levels(network("conv2"), "triton")
