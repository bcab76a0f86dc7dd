"""SparseTraining: the masks of a model while it trains, whatever the method that moves them.

It changes a model's weights in place and listens to its optimiser's steps through the optimiser's
own hooks; neither is replaced, so that closures, schedulers, GradScaler and
DistributedDataParallel go on as they were.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpt_fast.sparse import weights as _weights
from mpt_fast.sparse.distributions import Distribution, kept_entries, layer_sparsities
from mpt_fast.sparse.update import top_mask
from mpt_fast.sparse.weights import Filter, SparseWeight, sparse_parameters

_MASK, _PARKED = "mask/", "parked/"


class SparseTraining:
    """Keeps a model sparse while an optimiser trains it; the base of every method.

        loss.backward()                      # gradients of all entries, averaged by DDP if any
        if not sparse.step(): optimizer.step()

    From construction on, weights outside the masks are exactly 0 (methods that start dense mask
    when they say so), and so are the optimiser's slots there, by the optimiser's post-step hook,
    whatever its momentum, weight decay or Nesterov step would do.

    model: any nn.Module, wrapped or not; see `sparse_parameters` for what is masked. optimizer: any
    torch optimiser that holds those weights. sparsity: in [0, 1), of the masked layers together;
    distribution, custom, dense_first, erk_power: see `layer_sparsities`. filter_fn(module, name):
    False leaves a layer dense. masks: bool tensors by layer name instead of random ones (they
    decide each layer's sparsity). seed: of the masks and of what SET draws.

    Gradient accumulation: call `step` after the last backward of a batch. Clipping: unscale, call
    `step`, then clip what it left. Several processes: the gradient is averaged before its magnitude
    is taken, because DistributedDataParallel has averaged `.grad` when `step` reads it; random
    choices depend on (seed, step, layer) only, and after each update the masks are compared.

    Raises ValueError for layers, sparsities or masks that do not fit.
    """

    method: ClassVar[str]
    slots_follow_masks: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float = 0.9,
        *,
        distribution: Distribution = "erk",
        custom: Mapping[str, float] | None = None,
        dense_first: bool | None = None,
        erk_power: float = 1.0,
        filter_fn: Filter | None = None,
        masks: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        found = sparse_parameters(model, filter_fn)
        if not found:
            raise ValueError("the model has no convolution or linear layer to make sparse")
        _check_optimizer(found, optimizer)
        if masks is None:
            shapes = {name: tuple(weight.shape) for name, weight in found.items()}
            target = layer_sparsities(
                shapes,
                sparsity,
                distribution,
                custom=custom,
                dense_first=dense_first,
                power=erk_power,
            )
        else:
            target = _sparsities_of(masks, found)
        self.optimizer = optimizer
        self.seed = seed
        self.t = 0
        self.layers = {
            name: SparseWeight(
                name, weight, target[name], torch.zeros_like(weight, dtype=torch.bool)
            )
            for name, weight in found.items()
        }
        for name, mask in (self._initial_masks() if masks is None else masks).items():
            self.layers[name].set_mask(mask)
        self.apply_masks()
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._before_optimizer()),
            optimizer.register_step_post_hook(lambda *_: self._after_optimizer()),
        ]

    # What a method decides.

    def _initial_masks(self) -> dict[str, Tensor]:
        """Masks by name; those left out start dense. Here: uniformly random, exact in number."""
        return {
            name: _weights.random_mask(
                layer.weight.shape, self._target(layer), _weights.generator(self.seed, 0, index)
            )
            for index, (name, layer) in enumerate(self.layers.items())
        }

    def _update(self) -> bool:
        """Called by `step` with the gradients of all entries; True if it used the batch up."""
        return False

    def _before_optimizer(self) -> None:
        """Called by the optimiser at the start of its step."""

    def _after_optimizer(self) -> None:
        """Called by the optimiser at the end of its step."""
        self.apply_masks()

    # What a user calls.

    @torch.no_grad()
    def step(self) -> bool:
        """After backward, before the optimiser's step. True: the batch went into the masks.

        A step that updates the masks takes the place of the optimiser's (Algorithm 1 of RigL), so
        skip `optimizer.step()` then. Otherwise gradients outside the masks are 0 afterwards.
        """
        replaced = self._update()
        if not replaced:
            self._mask_gradients()
        self.t += 1
        return replaced

    def optimizer_step(self, scaler: torch.amp.GradScaler | None = None) -> bool:
        """`step`, then the optimiser's step unless the masks took its place; True if they did.

        With a scaler its three calls are made too: unscale_, step and update. An update whose
        gradients overflowed waits for the next step that has finite ones.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        replaced = self.step()
        if not replaced:
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()
        return replaced

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set weights outside the masks, and the optimiser's slots there, to exactly 0."""
        for layer in self.layers.values():
            layer.weight.masked_fill_(layer.pruned, 0)
            if self.slots_follow_masks:
                for slot in layer.slots(self.optimizer):
                    slot.masked_fill_(layer.pruned, 0)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the masks by layer name: bool, True where the weight is kept."""
        return {name: layer.mask for name, layer in self.layers.items()}

    @property
    def kept(self) -> dict[str, int]:
        """Entries kept, by layer name."""
        return {name: layer.kept for name, layer in self.layers.items()}

    @property
    def sparsities(self) -> dict[str, float]:
        """Fraction pruned now, by layer name."""
        return {
            name: 1 - kept / self.layers[name].weight.numel() for name, kept in self.kept.items()
        }

    @property
    def sparsity(self) -> float:
        """Fraction pruned now of all masked layers together."""
        size = sum(layer.weight.numel() for layer in self.layers.values())
        return 1 - sum(self.kept.values()) / size

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with, JSON-able: the method and its hyper-parameters."""
        return {"method": self.method, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": by name, "state": JSON-able}; with it a run resumes exactly.

        Weights and slots are in the model's and the optimiser's own state. Masks and the layers'
        sparsities are those of the run, whatever the method was constructed with.
        """
        tensors = {f"{_MASK}{name}": layer.mask for name, layer in self.layers.items()}
        tensors |= {name: value.clone() for name, value in self._buffers().items()}
        sparsities = {name: layer.sparsity for name, layer in self.layers.items()}
        state = self._state() | {"settings": self.settings(), "sparsities": sparsities}
        return {"tensors": tensors, "state": state}

    @torch.no_grad()
    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the model and the optimiser before.

        Raises ValueError if it is of other layers, another method or other hyper-parameters.
        """
        tensors, state = dict(found["tensors"]), dict(found["state"])
        then = state.pop("settings")
        for key, value in self.settings().items():
            if then.get(key) != value:
                raise ValueError(
                    f"the checkpoint's {key} is {then.get(key)!r} and this one's {value!r}; "
                    "construct the method as it was"
                )
        saved = {
            name.removeprefix(_MASK): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(_MASK)
        }
        _sparsities_of(saved, {name: layer.weight for name, layer in self.layers.items()})
        for name, mask in saved.items():
            self.layers[name].set_mask(mask)
        self._load_buffers(tensors)
        for name, sparsity in state.pop("sparsities").items():
            self.layers[name].sparsity = float(sparsity)
        self._load_state(state)
        self.apply_masks()

    def remove(self) -> None:
        """Stop listening to the optimiser; weights stay as they are."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # What methods share.

    def _state(self) -> dict[str, Any]:
        return {"t": self.t}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.t = int(state["t"])

    def _buffers(self) -> dict[str, Tensor]:
        """Tensors of the method besides the masks, by name."""
        return {}

    def _load_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        for name in tensors:
            raise ValueError(f"the checkpoint holds {name!r}, which {self.method} does not use")

    def _target(self, layer: SparseWeight, sparsity: float | None = None) -> int:
        """Entries that the layer keeps at its own sparsity, or another."""
        return kept_entries(layer.weight.numel(), layer.sparsity if sparsity is None else sparsity)

    def _mask_gradients(self) -> None:
        for layer in self.layers.values():
            if layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(layer.pruned, 0)

    def _gradients_finite(self) -> bool:
        """Whether every layer's gradient is; RuntimeError naming a layer that has none."""
        sums = [layer.gradient().abs().sum() for layer in self.layers.values()]
        return all(bool(torch.isfinite(total)) for total in sums)

    def _compare_processes(self) -> None:
        """Raise RuntimeError unless every process holds the same masks."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        layers = list(self.layers.values())
        mine = torch.tensor(_weights.digest(layers), device=layers[0].weight.device)
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        if any(int(other) != int(mine) for other in theirs):
            raise RuntimeError(
                f"step {self.t}: the processes hold different masks; average the gradients before "
                "step(), as DistributedDataParallel does, and use one seed"
            )


class ParkedWeights(SparseTraining):
    """Base of methods whose masked weights keep their values and may come back (GMP, DNW).

    The model holds 0 there; the values are parked beside it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._parked: dict[str, Tensor] = {}
        super().__init__(*args, **options)

    @torch.no_grad()
    def _return(self) -> None:
        """Put the parked values back into the model."""
        for name, value in self._parked.items():
            self.layers[name].weight.add_(value)  # one of the two is 0 at every entry
        self._parked.clear()

    @torch.no_grad()
    def _park(self) -> None:
        """Take the values outside the masks out of the model."""
        for name, layer in self.layers.items():
            self._parked[name] = layer.weight.detach().masked_fill(~layer.pruned, 0)
        self.apply_masks()

    @torch.no_grad()
    def _park_top(self, kept: Mapping[str, int]) -> None:
        """Keep the largest abs(weight) of each layer, parked ones included; park the rest."""
        self._return()
        for name, layer in self.layers.items():
            layer.set_mask(top_mask(layer.weight.abs(), kept[name]))
        self._park()

    def _buffers(self) -> dict[str, Tensor]:
        return {f"{_PARKED}{name}": value for name, value in self._parked.items()}

    def _load_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        self._parked = {
            name.removeprefix(_PARKED): torch.empty_like(
                self.layers[name.removeprefix(_PARKED)].weight.detach()
            ).copy_(value)
            for name, value in tensors.items()
        }


def _check_optimizer(found: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, weight in found.items():
        if id(weight) not in held:
            raise ValueError(
                f"the optimizer does not hold layer {name!r}'s weight; give it model.parameters() "
                "or leave the layer out with filter_fn"
            )


def _sparsities_of(
    masks: Mapping[str, Tensor], found: Mapping[str, nn.Parameter]
) -> dict[str, float]:
    """Each mask's sparsity; ValueError unless there is one of the right shape for every layer."""
    for name in sorted({*masks, *found}):
        with contextlib.suppress(KeyError):
            if masks[name].shape == found[name].shape and masks[name].dtype == torch.bool:
                continue
        have = f"{masks[name].dtype} {tuple(masks[name].shape)}" if name in masks else "none"
        want = f"bool {tuple(found[name].shape)}" if name in found else "no such layer"
        raise ValueError(f"mask of layer {name!r} does not fit: given {have}, needed {want}")
    return {name: 1 - int(mask.sum()) / mask.numel() for name, mask in masks.items()}
