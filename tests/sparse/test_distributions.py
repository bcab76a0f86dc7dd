"""Densities of every distribution against the published and recomputed figures."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_fast import models
from mpt_fast.sparse import erk_epsilon, kept_entries, layer_sparsities, sparse_parameters


def shapes_of(name: str, **arguments: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = models.build(name, config=None, **arguments)
    return {name: tuple(weight.shape) for name, weight in sparse_parameters(model).items()}


RESNET50 = shapes_of("imagenet_resnet50")
LENET = shapes_of("lenet_300_100")


def densities(shapes: dict[str, tuple[int, ...]], sparsity: float, **options: object) -> dict:
    return {n: 1 - s for n, s in layer_sparsities(shapes, sparsity, **options).items()}


@pytest.mark.parametrize(
    ("sparsity", "epsilon"), [(0.8, 99.5617), (0.9, 48.7866), (0.95, 24.3721), (0.965, 17.0607)]
)
def test_resnet50_epsilon(sparsity: float, epsilon: float) -> None:
    assert erk_epsilon(RESNET50, sparsity) == pytest.approx(epsilon, abs=5e-5)


def test_resnet50_densities_at_80() -> None:
    found = densities(RESNET50, 0.8)
    dense = {name for name, density in found.items() if density == 1}
    stage1 = {f"layer1.{block}.conv{i}" for block in range(3) for i in (1, 3)}
    assert dense == stage1 | {"layer1.0.shortcut.0", "layer2.0.conv1"}
    expected = {
        "conv1": 0.8572,
        "layer1.0.conv2": 0.3619,
        "layer2.1.conv2": 0.1769,
        "layer3.1.conv2": 0.0874,
        "layer4.1.conv2": 0.0435,
        "layer2.1.conv1": 0.9753,
        "layer2.1.conv3": 0.9753,
        "layer2.0.shortcut.0": 0.5849,
        "layer3.1.conv1": 0.4869,
        "layer3.0.conv1": 0.5849,
        "layer3.0.shortcut.0": 0.2921,
        "layer4.1.conv3": 0.2433,
        "layer4.0.conv1": 0.2921,
        "layer4.0.shortcut.0": 0.1459,
        "fc": 0.1482,
    }
    for name, density in expected.items():
        assert found[name] == pytest.approx(density, abs=5e-5), name


def test_resnet50_at_90_has_one_dense_layer() -> None:
    found = densities(RESNET50, 0.9)
    assert [name for name, density in found.items() if density == 1] == ["layer1.0.conv1"]


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0.98, (0.0154, 0.0445, 0.3674)),
        (0.95, (0.0385, 0.1113, 0.9185)),
        (0.9, (0.0796, 0.2302, 1.0)),
    ],
)
def test_lenet_densities(sparsity: float, expected: tuple[float, ...]) -> None:
    assert tuple(densities(LENET, sparsity).values()) == pytest.approx(expected, abs=5e-5)


def test_wrn22_2_densities() -> None:
    shapes = shapes_of("wrn22_2")
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_076_912
    del shapes["conv1"]
    found = densities(shapes, 0.8)
    three = [found[n] for n, shape in shapes.items() if shape[2:] == (3, 3)]
    groups = [three[0], *three[1:6], three[6], *three[7:12], three[12], *three[13:]]
    expected = [0.888, *[0.575] * 5, 0.419, *[0.275] * 5, 0.203, *[0.135] * 5]
    assert groups == pytest.approx(expected, abs=5e-4)
    assert all(found[n] == 1 for n, shape in shapes.items() if shape[2:] != (3, 3))


@pytest.mark.parametrize(
    ("nominal", "real"), [(0.75, 0.742), (0.85, 0.841), (0.9, 0.89), (0.95, 0.94)]
)
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_mobilenet_keeps_depthwise_and_first_dense(
    nominal: float, real: float, distribution: str
) -> None:
    shapes = shapes_of("mobilenet_v1")
    assert len(shapes) == 1 + 13 + 1  # stem, pointwise, classifier: no depthwise one
    found = layer_sparsities(shapes, nominal, distribution, dense_first=True)
    kept = sum(kept_entries(math.prod(shapes[n]), s) for n, s in found.items())
    with torch.device("meta"):
        model = models.mobilenet_v1(config=None)
    size = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    depthwise = size - sum(math.prod(shape) for shape in shapes.values())
    assert 1 - (kept + depthwise) / size == pytest.approx(real, abs=2e-3)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95])
def test_the_whole_network_keeps_what_the_sparsity_says(distribution: str, sparsity: float) -> None:
    for shapes in (LENET, RESNET50):
        found = layer_sparsities(shapes, sparsity, distribution, dense_first=False)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        kept = sum(kept_entries(sizes[n], s) for n, s in found.items())
        # Each layer rounds up to a whole entry once.
        assert -1e-6 < kept - (1 - sparsity) * sum(sizes.values()) <= 2 * len(shapes)
        assert all(0 <= s < 1 for s in found.values())


def test_er_of_a_linear_network_is_erk() -> None:
    assert layer_sparsities(LENET, 0.9, "er") == layer_sparsities(LENET, 0.9, "erk")


def test_pytorch_channels_come_first() -> None:
    """ER of a 5x5 kernel between 2 and 3 channels: (2 + 3) / 6 per entry, whatever the kernel."""
    shapes = {"a": (3, 2, 5, 5), "b": (30, 20, 1, 1)}
    er = densities(shapes, 0.9, distribution="er")
    assert er["a"] / er["b"] == pytest.approx((5 / 6) / (50 / 600))
    erk = densities(shapes, 0.9, distribution="erk")
    assert erk["a"] / erk["b"] == pytest.approx((15 / 150) / (52 / 600))


def test_power_0_is_uniform_density() -> None:
    found = densities(LENET, 0.9, distribution="erk", power=0.0)
    assert tuple(found.values()) == pytest.approx([0.1] * 3, rel=1e-4)


def test_uniform_keeps_a_first_convolution_dense_and_a_first_linear_layer_sparse() -> None:
    assert layer_sparsities(RESNET50, 0.9, "uniform")["conv1"] == 0
    assert layer_sparsities(RESNET50, 0.9, "uniform")["fc"] == 0.9
    assert set(layer_sparsities(LENET, 0.9, "uniform").values()) == {0.9}


def test_custom_sparsities_stand_outside_the_budget() -> None:
    first, *rest = LENET
    found = layer_sparsities(LENET, 0.9, "erk", custom={first: 0.99})
    assert found[first] == 0.99
    alone = layer_sparsities({name: LENET[name] for name in rest}, 0.9, "erk")
    assert {name: found[name] for name in rest} == alone


@pytest.mark.parametrize("size", [1, 10, 999, 1000])
def test_kept_entries(size: int) -> None:
    assert [kept_entries(size, s) for s in (0.0, 0.9, 0.999)] == [
        size,
        size - math.floor(0.9 * size),
        size - math.floor(0.999 * size),
    ]


@settings(max_examples=60, deadline=None)
@given(
    sides=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    sparsity=st.floats(0.0, 0.999),
    power=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_any_network_gets_densities_that_meet_the_budget(
    sides: list[tuple[int, int]], sparsity: float, power: float
) -> None:
    """Small layers become dense one after the other; what is left is always shared out."""
    shapes = {str(i): pair for i, pair in enumerate(sides)}
    found = layer_sparsities(shapes, sparsity, "erk", power=power)
    assert all(0 <= s < 1 for s in found.values())
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(kept_entries(sizes[n], s) for n, s in found.items())
    target = sum(kept_entries(size, sparsity) for size in sizes.values())
    assert -1e-6 <= kept - target <= len(shapes)


def test_errors_name_the_thing() -> None:
    with pytest.raises(ValueError, match="distribution must be one of uniform, er, erk, got 'x'"):
        layer_sparsities(LENET, 0.9, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown layer 'linear.1'; did you mean linear\."):
        layer_sparsities(LENET, 0.9, custom={"linear.1": 0.5})
    with pytest.raises(ValueError, match="must lie in"):
        layer_sparsities(LENET, 1.0)
    with pytest.raises(ValueError, match="no layer to make sparse"):
        layer_sparsities({}, 0.5)
