"""Whole runs: they learn, touch no weight, leave a complete folder, and fail early and clearly."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_fast import data
from mpt_fast.config import TicketConfig
from mpt_fast.nn import MPTLinear
from mpt_fast.selection import cubic_sparsity, realised_sparsity, ticket_layers
from mpt_fast.training import (
    Cadence,
    CheckpointError,
    Recipe,
    RecipeError,
    Trainer,
    TrainingError,
    evaluate,
    evaluate_run,
    load_run,
    train,
)
from mpt_fast.training.distributed import World

Make = Callable[..., Recipe]
CPU = torch.device("cpu")


def trainer_for(
    model: nn.Module, recipe: Recipe, folder: Path, kind: type[Trainer] = Trainer
) -> Trainer:
    return kind(
        model,
        data.load("digits"),
        recipe,
        folder,
        device=CPU,
        world=World(),
        cadence=Cadence(),
        quiet=True,
    )


class Poison(nn.Module):
    """Passes its input on, and NaN from its call number `after` on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        self.after -= 1
        return x if self.after >= 0 else x * float("nan")


def small_net(middle: nn.Module, **config: Any) -> nn.Sequential:
    torch.manual_seed(0)
    ticket = TicketConfig(**config)
    net = nn.Sequential(nn.Flatten(), MPTLinear(64, 32, config=ticket))
    net.add_module("middle", middle)
    net.add_module("last", MPTLinear(32, 10, config=ticket))
    return net


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ({"activation": "relu"}, 0.6),
        ({"activation": "binary", "optimizer": "adam", "weight_decay": 0.0}, 0.8),
        ({"dense": True, "lr": 0.05}, 0.8),
        ({"dense": True, "activation": "binary", "optimizer": "adamw", "lr": 0.01}, 0.8),
        ({"activation": "binary", "bn": "affine", "optimizer": "adam", "lr": 0.03}, 0.8),
        ({"scope": "layer", "power": 2.0, "grad_clip": 5.0, "nesterov": True, "lr": 0.5}, 0.6),
        ({"selection": "threshold", "label_smoothing": 0.1, "channels_last": False}, 0.6),
        ({"selection": "sort", "amp": "bf16", "warmup_epochs": 1}, 0.6),
    ],
)
def test_runs_learn_the_digits(
    tmp_path: Path, tiny: Make, values: dict[str, Any], least: float
) -> None:
    recipe = tiny(epochs=5, batch_size=64, width=0.25, **values)
    result = train(recipe, tmp_path / "run", quiet=True)
    assert result.accuracy >= least
    assert result.best_accuracy >= result.accuracy
    assert not result.model.training


def test_no_weight_changes_and_every_score_does(tmp_path: Path, tiny: Make) -> None:
    recipe = tiny()
    before = recipe.build((1, 8, 8), 10).state_dict()
    after = train(recipe, tmp_path / "run", quiet=True).model.state_dict()
    for name in before:
        if name.endswith(".weight"):
            assert torch.equal(before[name], after[name]), name
        elif name.endswith(".scores"):
            assert bool((before[name] != after[name]).float().mean() > 0.5), name


def test_affine_norm_trains_with_the_scores(tmp_path: Path, tiny: Make) -> None:
    recipe = tiny(activation="binary", bn="affine", epochs=1)
    model = train(recipe, tmp_path / "run", quiet=True).model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(bool((norm.weight != 1).all()) for norm in norms)


def test_the_folder_is_complete_and_consistent(tmp_path: Path, tiny: Make) -> None:
    folder = tmp_path / "runs" / "first"
    seen: list[dict[str, Any]] = []
    result = train(tiny(epochs=3), folder, quiet=True, on_epoch=lambda row: seen.append(dict(row)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "metrics.csv",
        "metrics.jsonl",
        "recipe.yaml",
        "result.json",
    ]
    assert Recipe.load(folder / "recipe.yaml") == result.recipe
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history == seen
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [5, 10, 15]
    with (folder / "metrics.csv").open(newline="") as file:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == rows
    summary = json.loads((folder / "result.json").read_text())
    assert summary["accuracy"] == result.accuracy == rows[-1]["test_accuracy"]
    assert summary["frozen_tensors_unchanged"] == len(ticket_layers(result.model))
    assert result.best_accuracy == max(row["test_accuracy"] for row in rows)


def test_a_run_is_loaded_and_evaluated_as_it_ended(tmp_path: Path, tiny: Make) -> None:
    result = train(tiny(activation="binary", sparsity=0.7), tmp_path / "run", quiet=True)
    model, recipe = load_run(tmp_path / "run")
    assert recipe == result.recipe
    assert not model.training
    images = data.load("digits").test.batch(range(50))
    x = data.load("digits").normalize(images)
    assert torch.equal(model(x), result.model(x))
    found = evaluate_run(tmp_path / "run", device="cpu")
    assert found.accuracy == result.accuracy
    assert (found.correct, found.total) == (round(result.accuracy * 364), 364)
    assert evaluate_run(tmp_path / "run", "best").accuracy == result.best_accuracy
    assert abs(evaluate(model.double(), data.load("digits")).loss - found.loss) < 1e-5


def test_the_same_recipe_gives_the_same_bits(tmp_path: Path, tiny: Make) -> None:
    runs = [train(tiny(seed=s), tmp_path / str(i), quiet=True) for i, s in enumerate((3, 3, 4))]
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["linear.0.scores"], states[2]["linear.0.scores"])


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_progressive_sparsity_follows_the_cubic(
    tmp_path: Path, tiny: Make, sparsity: float
) -> None:
    recipe = tiny(epochs=5, progressive_epochs=3, sparsity=sparsity, lr=0.01)
    result = train(recipe, tmp_path / "run", quiet=True)
    size = sum(layer.weight.numel() for layer in ticket_layers(result.model).values())
    for epoch, row in enumerate(result.history):
        assert abs(row["sparsity"] - cubic_sparsity(epoch, 3, sparsity)) <= 1 / size
    model, _ = load_run(tmp_path / "run")
    assert realised_sparsity(model).kept == realised_sparsity(result.model).kept


def test_progressive_start_survives_where_the_end_would_not(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: .* keeps no weight .*progressive_"):
        train(tiny(sparsity=0.97), tmp_path / "run", quiet=True)
    model = tiny(sparsity=0.97, progressive_epochs=1).build((1, 8, 8), 10)
    report = realised_sparsity(model)
    assert report.kept == report.size - int(0.5 * report.size)


def test_scale_fan_of_a_progressive_run_is_the_final_one(tiny: Make) -> None:
    values = {"sparsity": 0.8, "scale_fan": True}
    direct = tiny(**values).build((1, 8, 8), 10).state_dict()
    progressive = tiny(**values, progressive_epochs=1).build((1, 8, 8), 10).state_dict()
    assert torch.equal(direct["convs.0.weight"], progressive["convs.0.weight"])


def test_a_nan_loss_names_layer_and_step(tmp_path: Path, tiny: Make) -> None:
    trainer = trainer_for(small_net(Poison(after=8)), tiny(epochs=3), tmp_path)
    with pytest.raises(TrainingError, match=r"epoch 2, step 2: the loss is nan, .*'middle'"):
        trainer.run()
    model_of_last = load_state(tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in model_of_last.values())


def load_state(folder: Path) -> dict[str, Tensor]:
    from mpt_fast.training import checkpoint

    found = checkpoint.read(folder / "last.safetensors")
    return {name: value for name, value in found.tensors.items() if value.is_floating_point()}


class Spoiled(Trainer):
    """Calls `spoil` before step 2 of epoch 2."""

    spoil: Callable[[nn.Module], None]

    def _step(self, images: Tensor, labels: Tensor, sums: Tensor) -> float | None:
        if (self.at.epoch, self.at.step) == (1, 1):
            with torch.no_grad():
                type(self).spoil(self.model)
        return super()._step(images, labels, sums)


def spoiled(change: Callable[[nn.Module], None]) -> type[Trainer]:
    return type("SpoiledNow", (Spoiled,), {"spoil": staticmethod(change)})


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_layer_and_step(
    tmp_path: Path, tiny: Make, scope: str, value: float
) -> None:
    def spoil(model: nn.Module) -> None:
        model.get_parameter("last.scores")[3, 4] = value

    trainer = trainer_for(small_net(nn.ReLU(), scope=scope), tiny(), tmp_path, spoiled(spoil))
    with pytest.raises(TrainingError, match=r"epoch 2, step 2: .*'last'.*finite"):
        trainer.run()


def test_a_collapsed_layer_names_layer_and_step(tmp_path: Path, tiny: Make) -> None:
    def spoil(model: nn.Module) -> None:
        model.get_parameter("last.scores").zero_()

    trainer = trainer_for(small_net(nn.ReLU()), tiny(), tmp_path, spoiled(spoil))
    with pytest.raises(TrainingError, match=r"epoch 2, step 2: layer 'last' keeps no weight"):
        trainer.run()


def test_a_changed_weight_is_noticed(tmp_path: Path, tiny: Make) -> None:
    def spoil(model: nn.Module) -> None:
        model.get_parameter("last.weight")[0, 0] += 1e-6

    trainer = trainer_for(small_net(nn.ReLU()), tiny(), tmp_path, spoiled(spoil))
    with pytest.raises(TrainingError, match=r"frozen weight 'last\.weight' changed"):
        trainer.run()


def test_an_exploding_run_stops_early_and_keeps_a_good_checkpoint(
    tmp_path: Path, tiny: Make
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"epoch 1, step \d"):
        train(tiny(lr=1e38), folder, quiet=True)
    assert all(bool(torch.isfinite(value).all()) for value in load_state(folder).values())


def test_nothing_to_train_is_refused(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(TrainingError, match="nothing to train"):
        trainer_for(nn.Flatten(), tiny(), tmp_path)


def test_wrong_calls_are_named(tmp_path: Path, tiny: Make) -> None:
    folder = tmp_path / "run"
    with pytest.raises(data.DataError, match="larger than the 1433 training images"):
        train(tiny(batch_size=2000), folder, quiet=True)
    with pytest.raises(data.MissingDataError, match="cifar10: not found"):
        train(tiny(data="cifar10"), folder, data_root=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        train(tiny(), folder, device="gpu", quiet=True)
    with pytest.raises(RecipeError, match="fp16 needs a CUDA device"):
        train(tiny(amp="fp16"), folder, device="cpu", quiet=True)
    with pytest.raises(ValueError, match="must not be negative"):
        train(tiny(), folder, checkpoint_steps=-1, quiet=True)
    with pytest.raises(CheckpointError, match=r"best\.safetensors: no such checkpoint"):
        load_run(tmp_path / "gone", "best")
    with pytest.raises(ValueError, match="which must be 'last' or 'best'"):
        load_run(folder, "first")  # type: ignore[arg-type]  # that is the point


def test_threads_and_random_state_of_the_caller_come_back(tmp_path: Path, tiny: Make) -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    train(tiny(epochs=1, threads=1), tmp_path / "run", quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_evaluation_keeps_the_mode_and_counts_every_image() -> None:
    ds = data.load("digits")

    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0] * 3 + [2.0] + [0.0] * 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), 10)

    model = Always().train()
    found = evaluate(model, ds, batch_size=100)
    threes = int((ds.test.labels == 3).sum())
    assert model.training
    assert (found.correct, found.total) == (threes, len(ds.test))
    rest = len(ds.test) - threes
    total = torch.tensor(9.0 + torch.e**2).log()
    assert found.loss == pytest.approx(float((total - 2) * threes + total * rest) / found.total)


def test_quiet_shows_nothing_and_loud_shows_each_epoch(
    tmp_path: Path, tiny: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(), tmp_path / "quiet", quiet=True)
    assert capfd.readouterr() == ("", "")
    train(tiny(), tmp_path / "loud")
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 1/2" in err
    assert "epoch 2/2" in err


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
