"""Recipes: strict in, complete out."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

import mpt_fast
from mpt_fast.training import Recipe, RecipeError, recipe_for


def test_dump_shows_every_field_and_reads_back() -> None:
    recipe = Recipe(lr=0.2, schedule="multistep", milestones=(1, 3), scale_fan=True, sparsity=0.8)
    text = recipe.dump()
    names = [field.name for field in dataclasses.fields(Recipe)]
    assert list(yaml.safe_load(text)) == names
    assert Recipe.from_yaml(text) == recipe
    assert Recipe.from_yaml(Recipe().dump()) == Recipe()
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", Recipe.names())
def test_built_in_recipes_are_complete_and_build(name: str) -> None:
    recipe = Recipe.load(name)
    folder = Path(mpt_fast.__path__[0]) / "recipes"
    assert (folder / f"{name}.yaml").read_text(encoding="utf-8") == recipe.dump()
    shape = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
    model = recipe.replace(width=0.25).build(shape[recipe.data], 10)
    assert model(torch.zeros(2, *shape[recipe.data])).shape == (2, 10)
    trained = {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == ({"weight", "bias"} & trained if recipe.dense else {"scores"})


def test_there_are_recipes() -> None:
    assert {"digits-float", "digits-binary", "fashion-conv4", "fashion-conv4-binary"} <= set(
        Recipe.names()
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"learning_rate": 0.1}, "unknown recipe field 'learning_rate'"),
        ({"prune_rate": 0.1}, "unknown recipe field 'prune_rate'"),
        ({"sparsty": 0.1}, "unknown recipe field 'sparsty'; did you mean sparsity?"),
        ({"model": "conv5"}, "unknown model 'conv5'; did you mean conv"),
        ({"data": "svhn"}, "data must be one of digits, "),
        ({"data": 3}, "data must be text, got 3"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must be at least 0"),
        ({"sparsity": "half"}, "sparsity must be a number, got 'half'"),
        ({"sparsity": True}, "sparsity must be a finite number, got True"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
        ({"epochs": True}, "epochs must be an integer, got True"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"momentum": 1}, "momentum must be below 1"),
        ({"dense": "yes"}, "dense must be one of true, false, got 'yes'"),
        ({"scale_fan": "biprop"}, "scale_fan must be one of true, false, pruned, got 'biprop'"),
        ({"milestones": 3}, "milestones must be a list of integers"),
        ({"milestones": [1]}, "milestones need schedule: multistep, got cosine"),
        ({"schedule": "multistep", "milestones": [3, 2]}, "milestones must rise from 1"),
        ({"schedule": "multistep", "milestones": [0]}, "milestones must rise from 1"),
        ({"warmup_epochs": 5}, r"warmup_epochs must be below epochs \(5\), got 5"),
        ({"progressive_epochs": 5}, r"progressive_epochs must be below epochs \(5\)"),
        ({"progressive_epochs": 2, "scope": "layer"}, "progressive_epochs needs scope: global"),
        ({"optimizer": "adam", "nesterov": True}, "nesterov needs optimizer: sgd"),
        ({"power": 0.5}, "power must be at least 1"),
        ({"weight_init": "ones", "scale_fan": True}, "scale_fan has no effect on weight_init"),
        ({"amp": "fp32"}, "amp must be one of auto, none, bf16, fp16"),
    ],
)
def test_wrong_fields_are_named(values: dict[str, object], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        Recipe.from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 0.1\nlr: 0.2\n", "field 'lr' stands there twice"),
        ("- lr\n", "must be lines of `field: value`"),
        ("lr: [", "not valid YAML"),
        ("lr: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("epoch: 3", "did you mean epochs"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=expected) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_load_takes_names_paths_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text("lr: 1e-3\nsparsity: 0.9\n")
    recipe = Recipe.load(path, epochs=7)
    assert (recipe.lr, recipe.sparsity, recipe.epochs) == (1e-3, 0.9, 7)
    (tmp_path / "empty.yaml").write_text("")
    assert Recipe.load(tmp_path / "empty.yaml") == Recipe()
    assert Recipe.load("digits-binary").optimizer == "adam"
    with pytest.raises(RecipeError, match="unknown recipe 'digits-flaot'; did you mean digits-flo"):
        Recipe.load("digits-flaot")
    with pytest.raises(RecipeError, match=r"gone\.yaml: cannot be read \(No such file"):
        Recipe.load(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match="unknown recipe field 'epoch'"):
        Recipe.load("digits-float", epoch=3)


def test_differences_name_the_fields() -> None:
    assert Recipe().differences(Recipe()) == []
    assert Recipe().differences(Recipe(lr=0.2, seed=1)) == ["lr", "seed"]


def test_building_is_seeded_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = Recipe(width=0.25).build((1, 8, 8), 10).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again = Recipe(width=0.25).build((1, 8, 8), 10).state_dict()
    other = Recipe(width=0.25, seed=1).build((1, 8, 8), 10).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["convs.0.weight"], other["convs.0.weight"])


def test_settings_of_the_papers() -> None:
    ticket = recipe_for("conv4", "fashion-mnist")
    assert (ticket.optimizer, ticket.lr, ticket.momentum) == ("sgd", 0.1, 0.9)
    assert (ticket.weight_decay, ticket.batch_size, ticket.schedule) == (1e-4, 128, "cosine")
    binary = recipe_for("conv4", "fashion-mnist", activation="binary")
    assert (binary.optimizer, binary.lr, binary.batch_size) == ("adam", 0.1, 128)
    assert recipe_for("resnet18", "cifar10").weight_decay == 5e-4
    assert recipe_for("conv4", dense=True).dense
    assert recipe_for("conv4", epochs=3, lr=0.5).lr == 0.5
    assert Recipe.load("fashion-conv4") == ticket
    assert Recipe.load("fashion-conv4-binary") == binary
