"""Which tensors of a model are made sparse, and what goes with each of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpt_fast.nn import TicketLayer

Filter = Callable[[nn.Module, str], bool]


@dataclass(eq=False)
class SparseWeight:
    """One weight tensor with its mask.

    pruned: bool, the weight's shape and memory format, True where the weight is not kept.
    sparsity: the fraction it is to have.
    """

    name: str
    weight: nn.Parameter
    sparsity: float
    pruned: Tensor

    @property
    def mask(self) -> Tensor:
        """bool, the weight's shape: True where the weight is kept."""
        return ~self.pruned

    @property
    def kept(self) -> int:
        """Entries kept."""
        return self.pruned.numel() - int(self.pruned.sum())

    def set_mask(self, mask: Tensor) -> None:
        """Take a bool mask of the weight's shape, any memory format or device."""
        self.pruned.copy_(~mask)

    def gradient(self) -> Tensor:
        """The gradient to the masked weight tensor, all entries; RuntimeError if there is none."""
        if self.weight.grad is None:
            raise RuntimeError(
                f"layer {self.name!r} has no gradient; call loss.backward() before step(), and "
                "leave layers that the loss does not reach out with filter_fn"
            )
        return self.weight.grad

    def slots(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """The optimiser's tensors that have an entry per weight (momentum, Adam's moments, ...)."""
        state: dict[str, Any] = optimizer.state.get(self.weight, {})
        return [
            value
            for value in state.values()
            if isinstance(value, Tensor) and value.shape == self.weight.shape
        ]


def sparse_parameters(model: nn.Module, filter_fn: Filter | None = None) -> dict[str, nn.Parameter]:
    """The weights that sparse training masks, by name, each once even if layers share it.

    These are the weights of nn.Conv1d/2d/3d without groups and of nn.Linear, under the layer's
    name, and the matrices of nn.RNN, nn.GRU and nn.LSTM, under the parameter's. Never masked:
    biases, normalisation, embeddings, depthwise and grouped convolutions (ERK would make them
    absurd, and they hold next to nothing), tickets, frozen weights. filter_fn(module, name): False
    leaves a layer dense.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, weight in _matrices(module, module_name):
            if id(weight) in seen or not weight.requires_grad:
                continue
            if filter_fn is not None and not filter_fn(module, name):
                continue
            seen.add(id(weight))
            found[name] = weight
    return found


def _matrices(module: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
    if isinstance(module, TicketLayer):
        return []
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _own(module, name) if module.groups == 1 else []
    if isinstance(module, nn.Linear):
        return _own(module, name)
    if isinstance(module, nn.RNNBase):
        return [
            (f"{name}.{key}" if name else key, parameter)
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.dim() == 2
        ]
    return []


def _own(module: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, module.get_parameter("weight"))]


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on nothing but `key`: every process draws the same."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def random_mask(shape: torch.Size, kept: int, draw: torch.Generator) -> Tensor:
    """bool `shape` on the CPU with exactly `kept` True, by a random permutation."""
    mask = torch.zeros(shape.numel(), dtype=torch.bool)
    mask[torch.randperm(shape.numel(), generator=draw)[:kept]] = True
    return mask.view(shape)


def digest(weights: list[SparseWeight]) -> int:
    """A 63-bit digest of all masks, to compare between processes."""
    found = hashlib.sha256()
    for entry in weights:
        found.update(entry.name.encode())
        found.update(np.packbits(entry.pruned.cpu().contiguous().numpy()).tobytes())
    return int.from_bytes(found.digest()[:8], "little") >> 1
