"""Fine-tuning: the mask stays, only the chosen part's weights move, runs resume and load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpt_fast.selection import ticket_layers
from mpt_fast.training import (
    Recipe,
    RecipeError,
    TrainingError,
    evaluate_run,
    finetune_run,
    load_run,
    train,
)

Make = Callable[..., Recipe]


@pytest.fixture
def ticket(tmp_path: Path, tiny: Make) -> Path:
    recipe = tiny(activation="binary", optimizer="adam", weight_decay=0.0, bn="affine", width=0.25,
                  sparsity=0.6, progressive_epochs=1)  # fmt: skip
    train(recipe, tmp_path / "ticket", quiet=True)
    return tmp_path / "ticket"


def tuned(ticket: Path, part: str = "all", name: str = "tuned", **changes: Any) -> Any:
    fields = {"epochs": 2, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, **changes}
    return finetune_run(ticket, ticket.parent / name, part, quiet=True, **fields)


@pytest.mark.parametrize("part", ["first", "last", "all"])
def test_only_the_part_moves_and_no_mask(ticket: Path, part: str) -> None:
    before, _ = load_run(ticket)
    result = tuned(ticket, part)
    after, recipe = load_run(ticket.parent / "tuned")
    assert recipe.finetune == part
    old, new = ticket_layers(before), ticket_layers(after)
    moved = [name for name in old if not torch.equal(old[name].weight, new[name].weight)]
    names = list(old)
    assert moved == {"first": names[:1], "last": names[-1:], "all": names}[part]
    for name in names:
        assert torch.equal(old[name].mask(), new[name].mask())
        assert torch.equal(old[name].scores, new[name].scores)
    norm = dict(after.named_parameters())["linear.1.weight"]
    same = torch.equal(norm, dict(before.named_parameters())["linear.1.weight"])
    assert same == (part != "all")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(after(x), result.model(x))
    assert evaluate_run(ticket.parent / "tuned").accuracy == result.accuracy


def test_pruned_weights_stay_where_they_were(ticket: Path) -> None:
    before, _ = load_run(ticket)
    tuned(ticket, weight_decay=0.0)
    after, _ = load_run(ticket.parent / "tuned")
    for old, new in zip(ticket_layers(before).values(), ticket_layers(after).values(), strict=True):
        pruned = ~old.mask()
        assert torch.equal(old.weight[pruned], new.weight[pruned])
        assert torch.equal(new.gain(), new.weight[old.mask()].abs().double().mean().float())


def test_it_lowers_the_loss(ticket: Path) -> None:
    start = evaluate_run(ticket).loss
    assert tuned(ticket, epochs=6, batch_size=64).history[-1]["test_loss"] < start


def test_it_resumes_to_the_same_bits(ticket: Path) -> None:
    whole = tuned(ticket, name="whole", epochs=3)

    class StopError(Exception):
        pass

    def stop(row: Any) -> None:
        if row["epoch"] == 1:
            raise StopError

    from mpt_fast.training import run as runs
    from mpt_fast.training.finetune import finetuning_recipe, prepare_finetuning

    model, recipe = load_run(ticket)
    changes = {"epochs": 3, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
    prepare_finetuning(model, "all")
    folder = ticket.parent / "parts"
    with pytest.raises(StopError):
        runs.train(
            finetuning_recipe(recipe, "all", changes), folder, quiet=True, model=model,
            on_epoch=stop,
        )  # fmt: skip
    resumed = tuned(ticket, name="parts", epochs=3, resume=True)
    mine, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("middle", {}, "part must be one of first, last, all"),
        ("all", {"sparsity": 0.9}, "sparsity belongs to the ticket"),
        ("all", {"power": 2.0}, "power belongs to the ticket"),
        ("all", {"learning_rate": 1}, "unknown recipe field"),
    ],
)
def test_what_cannot_change(ticket: Path, part: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        tuned(ticket, part, **changes)


def test_dense_runs_are_refused(tmp_path: Path, tiny: Make) -> None:
    train(tiny(dense=True, epochs=1), tmp_path / "ticket", quiet=True)
    with pytest.raises(RecipeError, match="fine-tuning needs a ticket"):
        tuned(tmp_path / "ticket")


def test_a_part_without_weights_cannot_happen(ticket: Path) -> None:
    """Every part has a layer; a model with nothing to train would be an error, not a no-op."""
    model, recipe = load_run(ticket)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        train(recipe, ticket.parent / "none", quiet=True, model=model)


def test_a_fine_tuning_recipe_needs_its_ticket(ticket: Path, tiny: Make) -> None:
    with pytest.raises(RecipeError, match="needs the ticket that it starts from"):
        train(tiny(finetune="last"), ticket.parent / "no", quiet=True)
