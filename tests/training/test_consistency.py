"""The Jensen-Shannon loss, and training with the robust augmentations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from mpt_fast.training import Recipe, RecipeError, train
from mpt_fast.training.consistency import jensen_shannon

Make = Callable[..., Recipe]


def test_jensen_shannon_is_the_mean_divergence_from_the_mean() -> None:
    logits = [torch.randn(6, 5, dtype=torch.float64) for _ in range(3)]
    mean = Categorical(torch.stack([x.softmax(1) for x in logits]).mean(0))
    expected = torch.stack([kl_divergence(Categorical(logits=x), mean) for x in logits]).mean()
    assert torch.allclose(jensen_shannon(logits), expected)


def test_equal_views_cost_nothing() -> None:
    x = torch.randn(4, 3)
    assert float(jensen_shannon([x, x, x])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [{"augmix": True}, {"augmix": True, "jsd": 12.0}, {"noise_share": 0.5, "jsd": 1.0}],
)
def test_runs_learn_with_it(tmp_path: Path, tiny: Make, values: dict[str, Any]) -> None:
    recipe = tiny(epochs=3, batch_size=64, width=0.25, activation="binary", optimizer="adam",
                  weight_decay=0.0, **values)  # fmt: skip
    result = train(recipe, tmp_path / "run", quiet=True)
    assert result.accuracy > 0.5
    assert Recipe.load(tmp_path / "run" / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"jsd": 1.0}, "jsd compares augmented views"),
        ({"augmix": True, "noise_share": 0.1}, "exclude each other"),
        ({"augmix_depth": 0}, "augmix_depth must be -1"),
        ({"augmix_severity": 11}, "augmix_severity must be below 11"),
        ({"noise_share": 1.5}, "noise_share is a chance"),
        ({"options": {"v3": True}}, "unknown option of conv4 'v3'"),
        ({"options": {"width": 2}}, "unknown option of conv4 'width'"),
        ({"options": [1]}, "options must be a mapping"),
        ({"layer_power": {"linear.0": 0.5}}, "layer_power of linear.0 must be a number >= 1"),
        ({"trains": "weights"}, "trains must be one of"),
        ({"finetune": "middle"}, "finetune must be one of"),
        ({"compat": "hidden-networks"}, "compat must be one of"),
        ({"compat": "biprop", "power": 2.0}, "compat='biprop' needs"),
    ],
)
def test_wrong_fields(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("trains", "kinds"),
    [
        ("scores", {"scores"}),
        ("scores+norm", {"scores", "weight", "bias"}),
        ("norm", {"weight", "bias"}),
        ("scores+bias", {"scores", "bias"}),
        ("bias", {"bias"}),
    ],
)
def test_what_is_trained(tiny: Make, trains: str, kinds: set[str]) -> None:
    model = tiny(activation="binary", bn="affine", trains=trains).build((1, 8, 8), 10)
    trained = {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == kinds
    weights = [p for n, p in model.named_parameters() if p.dim() > 1 and n.endswith("weight")]
    assert not any(p.requires_grad for p in weights)


def test_subsets_are_trained_on(tmp_path: Path, tiny: Make) -> None:
    result = train(tiny(train_images=600, epochs=1), tmp_path / "run", quiet=True)
    assert result.steps == 600 // 256
