"""Runs: exact resume, the checkpoint's contents, errors; each on a network of a few kilobytes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpt_fast as mpt
from mpt_fast import sparse, training
from mpt_fast.training import (
    CheckpointError,
    Recipe,
    RecipeError,
    Trainer,
    TrainingError,
    checkpoint,
)

TINY = {
    "model": "lenet_300_100",
    "width": 0.2,
    "data": "digits",
    "epochs": 2,
    "batch_size": 128,
    "dense": True,
    "lr": 0.05,
    "amp": "none",
    "threads": 1,
}
CONFIG = {"sparsity": 0.7, "delta_t": 3, "frequency": 2}


class KilledError(Exception):
    pass


def killed_at(step: int, kind: type[Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    original = kind._optimize

    def optimize(self: Trainer) -> None:
        if self.at.epoch * len(self.loader) + self.at.step == step:
            raise KilledError
        original(self)

    monkeypatch.setattr(kind, "_optimize", optimize)


@pytest.mark.parametrize("method", sparse.KINDS)
def test_a_killed_run_ends_with_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict({**TINY, "optimizer": "adam", "lr": 0.003})
    config = sparse.SparseConfig(method, **CONFIG)
    options: dict[str, Any] = {"quiet": True, "device": "cpu", "checkpoint_steps": 4}
    whole = sparse.train(recipe, config, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        killed_at(14, Trainer if method == "small-dense" else sparse.SparseTrainer, patch)
        with pytest.raises(KilledError):
            sparse.train(recipe, config, tmp_path / "cut", **options)
    resumed = sparse.train(recipe, config, tmp_path / "cut", True, **options)
    one = checkpoint.read(tmp_path / "whole" / "last.safetensors")
    two = checkpoint.read(tmp_path / "cut" / "last.safetensors")
    assert one.tensors.keys() == two.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, two.tensors[name]), name
    assert one.state["sparse"] == two.state["sparse"]
    assert [r["test_loss"] for r in whole.history] == [r["test_loss"] for r in resumed.history]
    masked = method != "small-dense"
    assert any(name.startswith("sparse/mask/") for name in one.tensors) == masked
    assert whole.history[-1]["sparsity"] == pytest.approx(0.7 if masked else 0, abs=2e-3)


def test_a_run_is_a_dense_run_with_zeros(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(TINY)
    config = sparse.SparseConfig("rigl", **CONFIG)
    result = sparse.train(recipe, config, tmp_path / "run", quiet=True, device="cpu")
    model, _ = training.load_run(tmp_path / "run")
    weights = [p for p in model.parameters() if p.dim() > 1]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.7, abs=2e-3)
    packed = mpt.pack(model, torch.randn(2, 1, 8, 8))
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(packed(images), model(images).detach(), rtol=1e-4, atol=1e-4)
    assert result.accuracy > 0.3  # 0.1 is chance; two epochs


@pytest.mark.parametrize("method", ["rigl", "dnw"])
def test_a_run_in_bf16_stays_sparse(method: str, tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**TINY, "epochs": 1, "amp": "bf16"})
    config = sparse.SparseConfig(method, **CONFIG)
    result = sparse.train(recipe, config, tmp_path, quiet=True, device="cpu")
    masks = sparse.run_masks(tmp_path)
    weights = result.model.state_dict()
    assert all(not weights[f"{n}.weight"][~mask].any() for n, mask in masks.items())
    assert result.history[-1]["sparsity"] == pytest.approx(0.7, abs=2e-3)
    assert checkpoint.read(tmp_path / "last.safetensors").state["amp"] == "bf16"


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**TINY, "epochs": 1})
    options: dict[str, Any] = {"quiet": True, "device": "cpu"}
    training.train(recipe, tmp_path / "dense", **options)
    config = sparse.SparseConfig("static", masks_from=str(tmp_path / "dense"))
    with pytest.raises(RecipeError, match="not a run with masks; name one of mpt-fast rigl"):
        sparse.train(recipe, config, tmp_path / "a", **options)
    with pytest.raises(RecipeError, match="masks_from: snip does not begin with given masks"):
        sparse.SparseConfig("snip", masks_from="run")
    layer = nn.Linear(3, 3)
    with pytest.raises(RecipeError, match="small-dense has no masks"):
        sparse.SparseConfig("small-dense").build(layer, torch.optim.SGD(layer.parameters()), 5)


def test_settings_of_another_run_are_refused(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**TINY, "epochs": 1})
    run = tmp_path / "run"
    sparse.train(recipe, sparse.SparseConfig("rigl", **CONFIG), run, quiet=True, device="cpu")
    other = sparse.SparseConfig("rigl", **{**CONFIG, "delta_t": 4})
    with pytest.raises(RecipeError, match="delta_t is 4 here and 3 in the run"):
        sparse.train(recipe, other, run, True, quiet=True, device="cpu")
    with pytest.raises(TrainingError, match="resume it with `mpt-fast rigl --resume`"):
        training.train(recipe, run, True, quiet=True, device="cpu")
    dense = tmp_path / "dense"
    training.train(recipe, dense, quiet=True, device="cpu")
    with pytest.raises(RecipeError, match="not a run of sparse training"):
        sparse.train(
            recipe, sparse.SparseConfig("rigl", **CONFIG), dense, True, quiet=True, device="cpu"
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "sett", "method must be one of rigl, set"),
        ("sparsity", 1.0, "must lie in"),
        ("delta_t", 0, "delta_t must be an integer of at least 1"),
        ("alpha", 2.0, "alpha must lie in"),
        ("stop", 0.0, "start and stop must rise"),
        ("distribution", "erdos", "distribution must be one of uniform, er, erk"),
        ("decay", "linear", "decay must be one of"),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sparse.SparseConfig(**{field: value})


def test_a_ticket_recipe_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**TINY, "dense": False, "scope": "layer"})
    with pytest.raises(RecipeError, match="needs a recipe with dense: true"):
        sparse.train(recipe, sparse.SparseConfig(), tmp_path / "x", quiet=True, device="cpu")


def test_weight_decay_leaves_biases_and_batch_norm_alone(tmp_path: Path) -> None:
    # At width 0.25 torch 2.13 itself corrupts the heap (float32, channels_last, 4 channels).
    recipe = Recipe.from_dict(
        {**TINY, "model": "wrn10_1", "width": 0.5, "epochs": 1, "weight_decay": 0.1}
    )
    found: list[sparse.SparseTrainer] = []

    class Spy(sparse.SparseTrainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, config=sparse.SparseConfig("static", 0.5), **options)
            found.append(self)

    training.train(recipe, tmp_path / "run", quiet=True, device="cpu", make_trainer=Spy)
    groups = found[0].optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() == 1 for p in groups[1]["params"])


def fresh() -> tuple[nn.Module, torch.optim.Optimizer, sparse.RigL]:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    return model, optimizer, sparse.RigL(model, optimizer, 0.5, delta_t=2, t_end=50)


def test_state_dict_round_trip_in_an_ordinary_loop() -> None:
    def steps(parts: tuple[nn.Module, torch.optim.Optimizer, sparse.RigL], start: int) -> None:
        model, optimizer, method = parts
        for t in range(start, start + 5):
            torch.manual_seed(t)
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().sum().backward()
            method.optimizer_step()

    one, two = fresh(), fresh()
    steps(one, 0)
    # A copy: torch's optimisers keep the very tensors that they load.
    for part, saved in zip(two, [copy.deepcopy(part.state_dict()) for part in one], strict=True):
        part.load_state_dict(saved)
    steps(one, 5)
    steps(two, 5)
    assert torch.equal(one[0].weight, two[0].weight)  # type: ignore[arg-type]
    assert torch.equal(one[2].masks[""], two[2].masks[""])
    assert one[2].t == two[2].t == 10


@pytest.mark.parametrize("method", ["dnw", "pruning", "snip"])
def test_the_sparsity_is_the_runs_not_the_constructors(method: str) -> None:
    def made(sparsity: float) -> tuple[nn.Linear, sparse.SparseTraining]:
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        options = {"t_start": 0, "t_end": 1} if method == "pruning" else {}
        return model, sparse.METHODS[method](model, optimizer, sparsity, **options)

    (_, one), (model, two) = made(0.75), made(0.25)
    two.load_state_dict(one.state_dict())
    for _ in range(3):
        model(torch.randn(4, 8)).square().sum().backward()
        two.optimizer_step()
    assert two.kept == {"": 16}


def test_another_method_or_another_model_is_refused() -> None:
    _, _, method = fresh()
    saved = method.state_dict()
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="method is 'rigl' and this one's 'static'"):
        sparse.Static(model, optimizer, 0.5).load_state_dict(saved)
    small = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    other = sparse.RigL(small, optimizer, 0.5, delta_t=2, t_end=50)
    with pytest.raises(ValueError, match="mask of layer '' does not fit"):
        other.load_state_dict(saved)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        training.load_run(tmp_path / "nothing")


@pytest.fixture(autouse=True)
def _one_thread() -> Callable[[], None]:  # type: ignore[misc]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
