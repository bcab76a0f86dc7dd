"""The methods, each a small strategy on `SparseTraining`: when the masks move, and by what.

| class | masks move | drops | grows |
|---|---|---|---|
| Static | never | | |
| SNIP | once, at step 0 | all but the largest abs(gradient * weight) of each layer | |
| SET | every delta_t, after the optimiser's step | smallest weights | at random |
| SNFS | every delta_t, after the optimiser's step | smallest weights | largest mean gradient |
| RigL | every delta_t, instead of the optimiser's step | smallest weights | largest gradient |
| GradualPruning | every `frequency` steps, denser to sparser | smallest weights | |
| DNW | after every step | smallest weights | what outgrew them |

Names that mislead in the reference code: its mask_init "scratch" is `Static` here, and its
optimiser called static only re-initialises weak weights.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mpt_fast.sparse import weights as _weights
from mpt_fast.sparse.manager import ParkedWeights, SparseTraining
from mpt_fast.sparse.update import DECAYS, Decay, drop_and_grow, drop_fraction, top_mask
from mpt_fast.sparse.weights import SparseWeight

_EMA, _SUM = "ema/", "sum/"


class Static(SparseTraining):
    """Random masks that never change (static sparse training), or the given `masks`."""

    method = "static"


class DropAndGrow(SparseTraining):
    """Base of RigL, SET and SNFS: every delta_t steps move a fraction of each layer's entries.

    delta_t: steps between updates; the first is at t_start (0: the first step of all). alpha: the
    fraction of the kept entries that the first update moves; decay, power: how it falls to 0 at
    t_end, see `drop_fraction`. t_end: no update from this step on (about 3/4 of the training; None:
    never stops, which needs decay="constant"). A longer training scales t_end, not delta_t.
    Layers of density 1 have nothing to move and are left alone.
    """

    replaces_step: ClassVar[bool]

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float = 0.9,
        *,
        delta_t: int = 100,
        alpha: float = 0.3,
        t_end: int | None = None,
        decay: Decay = "cosine",
        power: float = 1.0,
        t_start: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(delta_t, bool) or not isinstance(delta_t, int) or delta_t < 1:
            raise ValueError(f"delta_t must be an int of at least 1, got {delta_t!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
        if decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
        if t_end is not None and t_end <= t_start:
            raise ValueError(f"t_end must be above t_start ({t_start}), got {t_end}")
        if not (math.isfinite(power) and power > 0):
            raise ValueError(f"power must be finite and above 0, got {power!r}")
        self.delta_t, self.alpha, self.t_end = delta_t, alpha, t_end
        self.decay, self.power, self.t_start = decay, power, t_start
        drop_fraction(0, alpha, t_end, decay)
        self._pending = False
        super().__init__(model, optimizer, sparsity, **options)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "delta_t": self.delta_t,
            "alpha": self.alpha,
            "t_end": self.t_end,
            "decay": self.decay,
            "power": self.power,
            "t_start": self.t_start,
        }

    @property
    def due(self) -> bool:
        """Whether this step updates the masks."""
        t = self.t - self.t_start
        inside = t >= 0 and (self.t_end is None or self.t < self.t_end)
        return inside and (self._pending or t % self.delta_t == 0)

    def _grow_score(self, layer: SparseWeight, index: int) -> Tensor:
        """What grows: the largest of these, in the weight's shape."""
        raise NotImplementedError

    def _update(self) -> bool:
        if not self.due:
            self._pending = False
            return False
        # Gradients that overflowed under a GradScaler rank nothing: it skips this batch too.
        self._pending = not self.replaces_step or not self._gradients_finite()
        if self._pending:
            return False
        self._move()
        return True

    def _after_optimizer(self) -> None:
        super()._after_optimizer()
        if self._pending and not self.replaces_step:
            self._pending = False
            self.t -= 1  # the update belongs to the step that this optimiser step ends
            self._move()
            self.t += 1

    @torch.no_grad()
    def _move(self) -> None:
        fraction = drop_fraction(
            self.t,
            self.alpha,
            self.t_end,
            self.decay,
            t_start=self.t_start,
            power=self.power,
        )
        for index, layer in enumerate(self.layers.values()):
            if layer.kept == layer.weight.numel():
                continue
            score = self._grow_score(layer, index)
            update = drop_and_grow(layer.weight.detach(), layer.mask, score, fraction)
            for tensor in (layer.weight, *layer.slots(self.optimizer)):
                tensor.masked_fill_(update.new, 0)
            layer.set_mask(update.mask)
        self.apply_masks()
        self._compare_processes()

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"pending": self._pending}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        super()._load_state(state)
        self._pending = bool(state["pending"])


class RigL(DropAndGrow):
    """RigL (Evci et al., 2020): grows where the gradient of the loss is largest.

    The gradient is that to the masked weight tensor, without weight decay. An update takes the
    place of the optimiser's step. grad_accumulation: the gradient that ranks is the mean over the
    last so many steps (for small batches; below delta_t).
    """

    method = "rigl"
    replaces_step = True

    def __init__(self, *args: Any, grad_accumulation: int = 1, **options: Any) -> None:
        self.grad_accumulation = grad_accumulation
        self._sums: dict[str, Tensor] = {}
        super().__init__(*args, **options)
        if not 1 <= grad_accumulation <= self.delta_t:
            self.remove()
            raise ValueError(
                f"grad_accumulation must lie in 1..delta_t ({self.delta_t}), "
                f"got {grad_accumulation!r}"
            )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"grad_accumulation": self.grad_accumulation}

    def _update(self) -> bool:
        if self.grad_accumulation > 1:
            self._accumulate()
        moved = super()._update()
        if moved:
            self._sums.clear()
        return moved

    def _accumulate(self) -> None:
        """Add this step's gradients if the coming update looks back as far as here."""
        since = self.t - self.t_start
        ahead = 0 if self.due else -since if since < 0 else -since % self.delta_t
        if ahead >= self.grad_accumulation or not self._gradients_finite():
            return
        for name, layer in self.layers.items():
            gradient = layer.gradient()
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient.clone()

    def _grow_score(self, layer: SparseWeight, index: int) -> Tensor:
        return self._sums.get(layer.name, layer.gradient()).abs()

    def _buffers(self) -> dict[str, Tensor]:
        return {f"{_SUM}{name}": value for name, value in self._sums.items()}

    def _load_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        self._sums = _like_weights(tensors, _SUM, self.layers)


class SET(DropAndGrow):
    """SET (Mocanu et al., 2018): grows at random among the entries that were not kept.

    The update follows the optimiser's step of the same batch, as in RigL's reference code.
    """

    method = "set"
    replaces_step = False

    def _grow_score(self, layer: SparseWeight, index: int) -> Tensor:
        draw = _weights.generator(self.seed, 1, self.t, index)
        return torch.rand(layer.weight.shape, generator=draw).to(layer.weight.device)


class SNFS(DropAndGrow):
    """SNFS (Dettmers and Zettlemoyer, 2019) without redistribution between layers.

    Grows where the exponential mean of the gradients of all entries (coefficient `momentum`) is
    largest, so it needs the dense gradient at every step: 2 f_S + f_D instead of 3 f_S. The update
    follows the optimiser's step of the same batch. With a GradScaler call `unscale_` before `step`.
    """

    method = "snfs"
    replaces_step = False

    def __init__(self, *args: Any, momentum: float = 0.9, **options: Any) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
        self.momentum = momentum
        self._means: dict[str, Tensor] = {}
        super().__init__(*args, **options)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"momentum": self.momentum}

    def _update(self) -> bool:
        if self._gradients_finite():
            for name, layer in self.layers.items():
                gradient = layer.gradient()
                mean = self._means.setdefault(name, torch.zeros_like(gradient))
                mean.lerp_(gradient, 1 - self.momentum)
        return super()._update()

    def _grow_score(self, layer: SparseWeight, index: int) -> Tensor:
        return self._means[layer.name].abs()

    def _buffers(self) -> dict[str, Tensor]:
        return {f"{_EMA}{name}": value for name, value in self._means.items()}

    def _load_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        self._means = _like_weights(tensors, _EMA, self.layers)


class SNIP(SparseTraining):
    """SNIP (Lee et al., 2019): at step 0 keep the largest abs(gradient * weight) of each layer.

    The model is dense until then; the first batch goes into the masks. Ranked within each layer at
    the layer's own sparsity, as in RigL's comparison (App. M: the gradient alone is far worse than
    random).
    """

    method = "snip"

    def __init__(self, *args: Any, **options: Any) -> None:
        self._chosen = False
        super().__init__(*args, **options)

    def _initial_masks(self) -> dict[str, Tensor]:
        return {}

    def _update(self) -> bool:
        if self._chosen or not self._gradients_finite():
            return False
        for layer in self.layers.values():
            saliency = (layer.gradient() * layer.weight).abs()
            layer.set_mask(top_mask(saliency, self._target(layer)))
        self.apply_masks()
        self._chosen = True
        self._compare_processes()
        return True

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"chosen": self._chosen}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        super()._load_state(state)
        self._chosen = bool(state["chosen"])


class GradualPruning(ParkedWeights):
    """Gradual magnitude pruning (Zhu and Gupta, 2017), from dense to sparse.

    Every `frequency` steps of [t_start, t_end], after the optimiser's step, each layer keeps its
    largest weights at s_t = s_f (1 - (1 - (t - t_start) / (t_end - t_start))^3), s_f its final
    sparsity. Masked weights keep their values, frozen, and return if they are the larger ones.
    """

    method = "pruning"

    def __init__(
        self,
        *args: Any,
        t_start: int,
        t_end: int,
        frequency: int = 1000,
        **options: Any,
    ) -> None:
        if not 0 <= t_start < t_end:
            raise ValueError(f"pruning needs 0 <= t_start < t_end, got {t_start} and {t_end}")
        if frequency < 1:
            raise ValueError(f"frequency must be at least 1, got {frequency!r}")
        self.t_start, self.t_end, self.frequency = t_start, t_end, frequency
        self._next: int | None = t_start
        super().__init__(*args, **{"distribution": "uniform", **options})

    def settings(self) -> dict[str, Any]:
        own = {"t_start": self.t_start, "t_end": self.t_end, "frequency": self.frequency}
        return super().settings() | own

    def _initial_masks(self) -> dict[str, Tensor]:
        return {}

    def _after_optimizer(self) -> None:
        super()._after_optimizer()
        t = self.t - 1  # `step` has counted this batch already
        if self._next is None or t < self._next:
            return
        share = pruning_share(t, self.t_start, self.t_end)
        self._park_top(
            {n: self._target(layer, layer.sparsity * share) for n, layer in self.layers.items()}
        )
        later = t + self.frequency - (t - self.t_start) % self.frequency
        self._next = min(later, self.t_end) if t < self.t_end else None
        self._compare_processes()

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"next": self._next}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        super()._load_state(state)
        self._next = state["next"]


def pruning_share(t: float, t_start: int, t_end: int) -> float:
    """1 - (1 - (t - t_start) / (t_end - t_start))^3, from 0 at t_start to 1 at t_end."""
    progress = min(max((t - t_start) / (t_end - t_start), 0.0), 1.0)
    return 1 - (1 - progress) ** 3


class DNW(ParkedWeights):
    """Discovering neural wirings (Wortsman et al., 2019): the mask is the largest weights, always.

    All weights are trained, those outside the mask by the gradient to the masked weight tensor
    (straight through); after every step of the optimiser each layer keeps its largest ones. The
    optimiser's slots therefore stay dense.
    """

    method = "dnw"
    slots_follow_masks = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._choose()

    def _initial_masks(self) -> dict[str, Tensor]:
        return {}

    def _mask_gradients(self) -> None:
        """Every entry is trained."""

    def _before_optimizer(self) -> None:
        self._return()

    def _after_optimizer(self) -> None:
        self._choose()

    def _choose(self) -> None:
        self._park_top({name: self._target(layer) for name, layer in self.layers.items()})


def _like_weights(
    tensors: Mapping[str, Tensor], prefix: str, layers: Mapping[str, SparseWeight]
) -> dict[str, Tensor]:
    """Saved buffers, each in its weight's device and memory format."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        layer = layers[name.removeprefix(prefix)]
        found[layer.name] = torch.empty_like(layer.weight.detach()).copy_(value)
    return found


METHODS: dict[str, type[SparseTraining]] = {
    kind.method: kind for kind in (RigL, SET, SNFS, Static, SNIP, GradualPruning, DNW)
}
"""Every method by its name."""
