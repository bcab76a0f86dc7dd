"""Seed-only tickets: a file that stores the weights' seed and the masks, and no sign at all.

A ticket's weights are random and never trained, so the recipe's seed draws them again: the file
holds the recipe, the coded masks and what else the network has (batch norms, biases). A kept weight
costs nothing beyond its place in the mask, n H(density) bits for n weights, where a packed file
adds one bit of sign per kept weight. The regenerated weights are compared with a digest of the
trained run's, so that a PyTorch that draws other numbers is refused, not believed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mpt_fast.runtime.coding import (
    CODINGS,
    CodedMask,
    CodingError,
    decode_mask,
    encode_mask,
    entropy_bits,
)
from mpt_fast.runtime.container import FileError, compact, read_whole, seal, unseal, write_whole
from mpt_fast.selection import ticket_layers
from mpt_fast.training import checkpoint
from mpt_fast.training.guards import frozen_digests
from mpt_fast.training.recipe import Recipe, RecipeError
from mpt_fast.training.run import load_run
from mpt_fast.training.snapshot import assume_sparsity

__all__ = ["SeedTicketSize", "load_seed_ticket", "save_seed_ticket"]

FORMAT = "mpt_fast seed ticket"
_VERSION = 1
_PRUNED_TO_KEPT = 0.5  # threshold between the scores 0 and 1 that stand for a mask


@dataclass(frozen=True)
class SeedTicketSize:
    """Bytes of the file, of the entropy of its masks, of the network in fp32; weights, kept."""

    file_bytes: int
    bound_bytes: float
    fp32_bytes: int
    weights: int
    kept: int


def save_seed_ticket(
    run: str | Path, path: str | Path, which: Literal["last", "best"] = "last"
) -> SeedTicketSize:
    """Write the ticket of a run's checkpoint as seed and masks.

    Raises RecipeError for a run whose weights were trained (dense or fine-tuned), FileError where
    the folder cannot be written, and as `load_run` does.
    """
    model, recipe = load_run(run, which)
    if recipe.dense or recipe.finetune != "none":
        raise RecipeError(
            f"{run}: its weights were trained and no seed draws them; save it with mpt-fast pack"
        )
    state = checkpoint.read(Path(run) / f"{which}.safetensors").state
    layers = ticket_layers(model)
    tensors: dict[str, np.ndarray] = {}
    masks: dict[str, Any] = {}
    bits = 0.0
    for index, (name, layer) in enumerate(layers.items()):
        kept = np.flatnonzero(layer.mask().reshape(-1).numpy())
        coded = encode_mask(kept, layer.weight.numel())
        masks[name] = [coded.coding, coded.rice, kept.size]
        bits += entropy_bits(layer.weight.numel(), kept.size)
        for stream in ("high", "low"):
            if getattr(coded, stream).size:
                tensors[f"{index}.{stream}"] = getattr(coded, stream)
    others = _others(model)
    for index, value in enumerate(others.values()):
        wide = value.float() if value.dtype == torch.float32 else value.double()
        tensors[f"other.{index}"] = wide.reshape(-1).numpy()
    about = {
        "version": _VERSION,
        "recipe": recipe.to_dict(),
        "input_shape": list(state["input_shape"]),
        "num_classes": state["num_classes"],
        "sparsity": state["sparsity"],
        "masks": masks,
        "others": list(others),
        "weights": _weight_digest(model),
    }
    content = seal({FORMAT: compact(about)}, tensors)
    write_whole(content, path)
    weights = sum(layer.weight.numel() for layer in layers.values())
    kept_total = sum(entry[2] for entry in masks.values())
    return SeedTicketSize(len(content), bits / 8, 4 * weights, weights, kept_total)


def load_seed_ticket(path: str | Path) -> tuple[nn.Module, Recipe]:
    """The network of a seed-only ticket, in evaluation mode on the CPU, and its recipe.

    Weights, signs and gains are those of the trained run to the bit. Scores are not in the file:
    in their place stand 1 where a weight is kept and 0 where it is pruned.

    Raises FileError naming the file if it is damaged, of another kind, or if this PyTorch draws
    other weights from the seed than the one that trained.
    """
    try:
        return _load(read_whole(path))
    except (FileError, CodingError, RecipeError, KeyError, TypeError, IndexError) as error:
        raise FileError(f"{path}: {error}") from None


def _load(content: bytes) -> tuple[nn.Module, Recipe]:
    texts, tensors = unseal(content)
    if set(texts) != {FORMAT}:
        raise FileError("not a seed-only ticket; save one with mpt-fast pack --seed-only")
    about = json.loads(texts[FORMAT])
    if about.get("version") != _VERSION:
        raise FileError(f"version {about.get('version')}, and this mpt_fast reads {_VERSION}")
    recipe = Recipe.from_dict(about["recipe"])
    channels, height, width = about["input_shape"]
    model = recipe.build((channels, height, width), about["num_classes"])
    if _weight_digest(model) != about["weights"]:
        raise FileError(
            "this PyTorch draws other weights from the seed than the one that trained the ticket; "
            "use that one, or the packed file of the run"
        )
    assume_sparsity(model, about["sparsity"])
    state = model.state_dict()
    layers = ticket_layers(model)
    if list(layers) != list(about["masks"]) or list(_others(model)) != about["others"]:
        raise FileError("its layers are not those of its recipe; it was made by another mpt_fast")
    for index, (name, layer) in enumerate(layers.items()):
        mask = _mask(about["masks"][name], tensors, index, layer.weight.numel())
        state[f"{name}.scores"] = mask.view(layer.weight.shape).to(layer.scores.dtype)
        state[f"{name}.threshold"] = torch.full_like(layer.threshold, _PRUNED_TO_KEPT)
        state[f"{name}.tie_limit"] = torch.zeros_like(layer.tie_limit)
    for index, name in enumerate(about["others"]):
        values = torch.from_numpy(tensors[f"other.{index}"].copy())
        if values.numel() != state[name].numel():
            raise FileError(f"{name!r} has {values.numel()} values, expected {state[name].numel()}")
        state[name] = values.view(state[name].shape).to(state[name].dtype)
    model.load_state_dict(state)
    return model.eval(), recipe


def _mask(entry: Any, tensors: Mapping[str, np.ndarray], index: int, size: int) -> Tensor:
    coding, rice, kept = entry
    if coding not in CODINGS or type(rice) is not int or type(kept) is not int:
        raise FileError(f"mask {index} is described by {entry!r}")
    empty = np.zeros(0, np.uint8)
    coded = CodedMask(
        coding, rice, tensors.get(f"{index}.high", empty), tensors.get(f"{index}.low", empty)
    )
    mask = torch.zeros(size)
    mask[torch.from_numpy(decode_mask(coded, size, kept))] = 1
    return mask


def _others(model: nn.Module) -> dict[str, Tensor]:
    """Everything of the network that is neither weight, score nor mask of a ticket layer."""
    own = {
        f"{name}.{part}"
        for name in ticket_layers(model)
        for part in ("weight", "scores", "threshold", "tie_limit")
    }
    return {name: value for name, value in model.state_dict().items() if name not in own}


def _weight_digest(model: nn.Module) -> str:
    """One digest of all ticket layers' weights."""
    found = frozen_digests(model)
    text = "".join(found[f"{name}.weight"] for name in ticket_layers(model))
    return hashlib.sha256(text.encode()).hexdigest()
