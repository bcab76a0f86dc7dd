"""FLOPs, sizes and widths against the published and recomputed figures."""

import pytest
import torch
from torch import nn

from mpt_fast import models
from mpt_fast.sparse import Cost, cost, small_dense_width


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return models.imagenet_resnet50(config=None)


def of_resnet50(model: nn.Module, sparsity: float, distribution: str) -> Cost:
    return cost(model, (3, 224, 224), sparsity, distribution=distribution)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def counted(resnet50: nn.Module) -> dict[tuple[str, float], Cost]:
    return {
        (distribution, sparsity): of_resnet50(resnet50, sparsity, distribution)
        for distribution in ("uniform", "erk")
        for sparsity in (0.8, 0.9, 0.95, 0.965)
    }


def test_dense_resnet50_has_the_stride_in_its_3x3(counted: dict) -> None:
    assert counted["erk", 0.8].dense_flops == pytest.approx(8.2e9, rel=0.005)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("uniform", (0.2231, 0.1260, 0.0774, 0.0628)),
        ("erk", (0.4138, 0.2418, 0.1217, 0.0852)),
    ],
)
def test_resnet50_inference(counted: dict, distribution: str, expected: tuple) -> None:
    found = [counted[distribution, s].inference_ratio for s in (0.8, 0.9, 0.95, 0.965)]
    # .06285 is printed as .0628: half a unit of the last digit and the layers' whole entries
    assert found == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(("sparsity", "megabytes"), [(0.8, 23.683), (0.9, 13.499), (0.95, 8.399)])
def test_resnet50_size(counted: dict, sparsity: float, megabytes: float) -> None:
    assert counted["erk", sparsity].size_bytes / 1e6 == pytest.approx(megabytes, abs=1e-3)


def test_resnet50_size_at_965(counted: dict) -> None:
    """The 6.904 MB beside the ERK figures is the network with a dense first layer (uniform)."""
    assert counted["uniform", 0.965].size_bytes / 1e6 == pytest.approx(6.904, abs=1e-3)
    assert counted["erk", 0.965].size_bytes / 1e6 == pytest.approx(6.869, abs=1e-3)


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.8, 0.559), (0.9, 0.504), (0.95, 0.476)])
def test_resnet50_pruning(counted: dict, sparsity: float, ratio: float) -> None:
    """In 100 prunings from step 10k to 25k of 32k; the paper prints .56 and .51."""
    found = counted["uniform", sparsity].training_ratio(
        "pruning", steps=32_000, t_start=10_000, t_end=25_000, frequency=150
    )
    assert found == pytest.approx(ratio, abs=6e-4)


@pytest.mark.parametrize(
    ("distribution", "sparsity", "train", "test"),
    [
        ("uniform", 0.8, 0.23, 0.23),
        ("uniform", 0.9, 0.13, 0.13),
        ("uniform", 0.95, 0.08, 0.08),
        ("uniform", 0.965, 0.07, 0.07),
        ("erk", 0.8, 0.42, 0.42),
        ("erk", 0.9, 0.25, 0.24),
        ("erk", 0.95, 0.13, 0.12),
        ("erk", 0.965, 0.09, 0.09),
    ],
)
def test_rigl_on_resnet50(
    counted: dict, distribution: str, sparsity: float, train: float, test: float
) -> None:
    """The README's table, which corrects Table 4; it rounds up at places: one unit."""
    found = counted[distribution, sparsity]
    assert found.inference_ratio == pytest.approx(test, abs=0.0101)
    assert found.training_ratio("rigl") == pytest.approx(train, abs=0.0101)


@pytest.mark.parametrize(
    ("distribution", "sparsity", "ratio"),
    [("uniform", 0.95, 0.42), ("uniform", 0.965, 0.34), ("erk", 0.95, 0.63), ("erk", 0.965, 0.45)],
)
def test_rigl_5x_where_table_4_is_misprinted(
    counted: dict, distribution: str, sparsity: float, ratio: float
) -> None:
    found = counted[distribution, sparsity].training_ratio("rigl", multiplier=5)
    assert found == pytest.approx(ratio, abs=0.02)


def test_wrn22_2() -> None:
    model = models.wrn22_2(config=None)
    for sparsity, ratio in ((0.8, 0.353), (0.9, 0.174)):
        found = cost(model, (3, 32, 32), sparsity, filter_fn=lambda _, name: name != "conv1")
        assert found.dense_flops == pytest.approx(3.155e8, abs=5e4)
        assert found.inference_ratio == pytest.approx(ratio, abs=5e-4)


def two_layers() -> nn.Sequential:
    """conv 2 -> 3 (3x3, pad 1) on 4x4, linear 48 -> 5."""
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 5))


def test_every_method_by_hand() -> None:
    found = cost(two_layers(), (2, 4, 4), kept={"0": 20, "2": 30})
    dense, sparse = 2 * (54 * 16 + 240), 2 * (20 * 16 + 30)
    assert (found.dense_flops, found.sparse_flops) == (dense, sparse)
    assert found.bits == 32 * (20 + 30 + 3 + 5) + 54 + 240
    expected = {
        "dense": 3 * dense,
        "static": 3 * sparse,
        "snip": 3 * sparse,
        "set": 3 * sparse,
        "small-dense": 3 * sparse,
        "snfs": 2 * sparse + dense,
        "dnw": 2 * sparse + dense,
        "rigl": (3 * sparse * 10 + 2 * sparse + dense) / 11,
    }
    for method, flops in expected.items():
        assert found.training_flops(method, delta_t=10) == pytest.approx(flops), method  # type: ignore[arg-type]
        assert found.training_flops(method, delta_t=10, multiplier=5) == pytest.approx(5 * flops)  # type: ignore[arg-type]
    # steps 0..3, pruned at 1 (nothing yet) and 3 (all): three dense steps and one sparse
    pruning = found.training_flops("pruning", steps=4, t_start=1, t_end=3, frequency=2)
    assert pruning == pytest.approx(3 * (3 * dense + sparse) / 4)


def test_a_dense_layer_stores_no_mask() -> None:
    assert cost(two_layers(), (2, 4, 4), kept={"0": 54, "2": 30}).bits == 32 * (84 + 8) + 240


def test_unknown_methods_and_layers() -> None:
    found = cost(two_layers(), (2, 4, 4), 0.5)
    with pytest.raises(ValueError, match="unknown method 'x'"):
        found.training_flops("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give steps, t_start and t_end"):
        found.training_flops("pruning")


@pytest.mark.parametrize(
    ("sparsity", "width"), [(0.8, 0.465), (0.9, 0.34), (0.95, 0.26), (0.965, 0.231)]
)
def test_small_dense_resnet50(counted: dict, sparsity: float, width: float) -> None:
    found = small_dense_width(
        lambda w: models.imagenet_resnet50(config=None, width=w),
        counted["erk", sparsity].bits,
        tolerance=2e-3,
    )
    assert found.width == pytest.approx(width, abs=0.006)
    assert found.bits == pytest.approx(counted["erk", sparsity].bits, rel=0.02)


@pytest.mark.parametrize(
    ("sparsity", "width"), [(0.75, 0.47), (0.85, 0.353), (0.9, 0.285), (0.95, 0.204)]
)
def test_small_dense_mobilenet(sparsity: float, width: float) -> None:
    """The published widths are those of the nominal sparsity of all weights, mask included."""
    size = 4_209_088
    found = small_dense_width(
        lambda w: models.mobilenet_v1(config=None, width=w),
        32 * (1 - sparsity) * size + size,
        tolerance=2e-3,
    )
    assert found.width == pytest.approx(width, abs=0.012)


def test_small_dense_needs_a_size_that_there_is() -> None:
    def build(width: float) -> nn.Module:
        return models.fc(config=None, width=width)

    with pytest.raises(ValueError, match="give a size between"):
        small_dense_width(build, 1e12)
    assert torch.get_default_device().type == "cpu"
