"""Seed-only tickets: weights, signs and gains come back to the bit, or the file is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpt_fast.runtime.container import FileError, compact, seal, unseal
from mpt_fast.selection import ticket_layers, update_masks
from mpt_fast.training import (
    Recipe,
    RecipeError,
    finetune_run,
    load_run,
    load_seed_ticket,
    save_seed_ticket,
    train,
)
from mpt_fast.training.seed_ticket import FORMAT

Make = Callable[..., Recipe]


@pytest.fixture
def trained(tmp_path: Path, tiny: Make) -> Callable[..., Path]:
    def run(**values: Any) -> Path:
        train(tiny(epochs=1, **values), tmp_path / "run", quiet=True)
        return tmp_path / "run"

    return run


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"activation": "binary", "bn": "affine", "optimizer": "adam", "sparsity": 0.9,
         "scope": "layer"},
        {"selection": "threshold", "sparsity": 0.3},
        {"power": 2.0, "layer_power": {"linear.*": 3.0}},
        {"compat": "biprop", "scope": "layer", "sparsity": 0.7},
        {"weight_init": "bernoulli"},
    ],
)  # fmt: skip
def test_the_network_comes_back_to_the_bit(
    trained: Callable[..., Path], tmp_path: Path, values: dict[str, Any]
) -> None:
    folder = trained(**values)
    size = save_seed_ticket(folder, tmp_path / "a.ticket")
    model, recipe = load_seed_ticket(tmp_path / "a.ticket")
    expected, same = load_run(folder)
    assert recipe == same
    assert not model.training
    for mine, theirs in zip(
        ticket_layers(model).values(), ticket_layers(expected).values(), strict=True
    ):
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.sign_code(), theirs.sign_code())
        assert torch.equal(mine.gain(), theirs.gain())
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(model(x), expected(x))
    update_masks(model)  # as evaluation does
    assert torch.equal(model(x), expected(x))
    kept = sum(int(layer.mask().sum()) for layer in ticket_layers(expected).values())
    assert size.kept == kept
    assert size.file_bytes == (tmp_path / "a.ticket").stat().st_size
    assert size.bound_bytes <= size.weights / 8


def test_no_sign_is_stored(trained: Callable[..., Path], tmp_path: Path) -> None:
    """The file's arrays are the masks' streams and the batch norms, of which this net has none."""
    folder = trained(sparsity=0.9, scope="layer")
    size = save_seed_ticket(folder, tmp_path / "a.ticket")
    _, tensors = unseal((tmp_path / "a.ticket").read_bytes())
    assert {name.split(".")[1] for name in tensors} == {"high", "low"}
    coded = sum(tensor.nbytes for tensor in tensors.values())
    assert size.bound_bytes < coded < 1.1 * size.bound_bytes + 2 * len(tensors)


def test_trained_weights_have_no_seed(trained: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained()
    finetune_run(folder, tmp_path / "tuned", "last", quiet=True, epochs=1)
    with pytest.raises(RecipeError, match="its weights were trained"):
        save_seed_ticket(tmp_path / "tuned", tmp_path / "a.ticket")


def test_dense_runs_have_no_seed(trained: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="its weights were trained"):
        save_seed_ticket(trained(dense=True), tmp_path / "a.ticket")


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    texts, tensors = unseal(path.read_bytes())
    about = json.loads(texts[FORMAT])
    change(about)
    path.write_bytes(seal({FORMAT: compact(about)}, tensors))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a["recipe"].update(seed=1), "draws other weights from the seed"),
        (lambda a: a.update(version=2), "version 2, and this mpt_fast reads 1"),
        (lambda a: a["recipe"].update(nonsense=1), "unknown recipe field"),
        (lambda a: a["masks"]["convs.0"].__setitem__(2, 10**9), "kept of"),
        (lambda a: a["masks"]["convs.0"].__setitem__(2, 1), "promised|gaps"),
        (lambda a: a["masks"]["convs.0"].__setitem__(0, "zip"), "is described by"),
        (lambda a: a["others"].append("x"), "are not those of its recipe"),
    ],
)
def test_altered_files_are_refused(
    trained: Callable[..., Path], tmp_path: Path, change: Any, reason: str
) -> None:
    path = tmp_path / "a.ticket"
    save_seed_ticket(trained(), path)
    changed(path, change)
    with pytest.raises(FileError, match=reason) as caught:
        load_seed_ticket(path)
    assert str(caught.value).startswith(str(path))


def test_a_flipped_byte_is_found(trained: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "a.ticket"
    save_seed_ticket(trained(), path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FileError, match="digest"):
        load_seed_ticket(path)
