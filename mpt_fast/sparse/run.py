"""Sparse training as runs: a dense recipe, a `SparseConfig`, and the package's trainer.

The folder is a dense run's (`mpt-fast eval`, `pack` and `bench` take it as it is); the checkpoint
holds the masks, the step count and the method's buffers too.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpt_fast import training
from mpt_fast.config import check_sparsity
from mpt_fast.sparse.distributions import DISTRIBUTIONS
from mpt_fast.sparse.manager import SparseTraining
from mpt_fast.sparse.methods import METHODS
from mpt_fast.sparse.update import DECAYS
from mpt_fast.training import Recipe, RecipeError, Result, Trainer
from mpt_fast.training.checkpoint import Checkpoint
from mpt_fast.training.trainer import make_optimizer

_PREFIX = "sparse/"


@dataclasses.dataclass(frozen=True)
class SparseConfig:
    """How a run is kept sparse, in shares of its length, JSON-able.

    method: a name of `METHODS`. sparsity, distribution, custom, dense_first: see
    `layer_sparsities` (first layer dense or not; None as the distribution says). delta_t, alpha,
    decay, power, grad_accumulation: of RigL, SET and SNFS. start, stop: the part of the steps in
    which masks move, as shares of the run; the paper's 0 and 0.75, for pruning 0.3125 and 0.78125
    (None takes those). frequency: steps between prunings. seed: of the masks.

    Raises RecipeError naming the field.
    """

    method: str = "rigl"
    sparsity: float = 0.9
    distribution: str = "erk"
    delta_t: int = 100
    alpha: float = 0.3
    decay: str = "cosine"
    power: float = 1.0
    grad_accumulation: int = 1
    start: float | None = None
    stop: float | None = None
    frequency: int = 100
    dense_first: bool | None = None
    custom: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", tuple(METHODS)),
            ("distribution", DISTRIBUTIONS),
            ("decay", DECAYS),
        ):
            if getattr(self, name) not in choices:
                raise RecipeError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        try:
            check_sparsity(self.sparsity)
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error)) from None
        for name in ("delta_t", "frequency", "grad_accumulation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name} must be an integer of at least 1, got {value!r}")
        if not 0 <= self.alpha <= 1:
            raise RecipeError(f"alpha must lie in [0, 1], got {self.alpha!r}")
        start, stop = self.window
        if not 0 <= start < stop <= 1:
            raise RecipeError(f"start and stop must rise within [0, 1], got {start} and {stop}")

    @property
    def window(self) -> tuple[float, float]:
        """(start, stop) with the method's defaults filled in."""
        pruning = self.method == "pruning"
        start = self.start if self.start is not None else (0.3125 if pruning else 0.0)
        stop = self.stop if self.stop is not None else (0.78125 if pruning else 0.75)
        return start, stop

    def build(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
    ) -> SparseTraining:
        """The method on this model, for a run of `steps` steps."""
        options: dict[str, Any] = {
            "distribution": self.distribution,
            "custom": self.custom,
            "dense_first": self.dense_first,
            "seed": self.seed,
        }
        start, stop = (round(share * steps) for share in self.window)
        if self.method in ("rigl", "set", "snfs"):
            options |= {
                "delta_t": self.delta_t,
                "alpha": self.alpha,
                "decay": self.decay,
                "power": self.power,
                "t_start": start,
                "t_end": max(stop, start + 1),
            }
        if self.method == "rigl":
            options["grad_accumulation"] = self.grad_accumulation
        if self.method == "pruning":
            options |= {"t_start": start, "t_end": max(stop, start + 1)}
            options["frequency"] = self.frequency
        return METHODS[self.method](model, optimizer, self.sparsity, **options)


class SparseTrainer(Trainer):
    """The package's trainer with a `SparseTraining` between the backward pass and the optimiser.

    Weight decay acts on matrices and kernels only, not on biases and batch norm, as in the paper.
    """

    def __init__(self, *args: Any, config: SparseConfig, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.recipe.dense:
            raise RecipeError("sparse training trains weights: it needs a recipe with dense: true")
        self.config = config
        steps = self.recipe.epochs * len(self.loader)
        self.sparse = config.build(self.model, self.optimizer, steps)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.trained if p.dim() > 1]},
            {"params": [p for p in self.trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return make_optimizer(self.recipe, [group for group in groups if group["params"]])

    def _optimize(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if not self.sparse.step():
            if self.recipe.grad_clip > 0:
                nn.utils.clip_grad_norm_(self.trained, self.recipe.grad_clip)
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def _realised_sparsity(self) -> float:
        return self.sparse.sparsity

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = self.sparse.state_dict()
        tensors = {f"{_PREFIX}{name}": value for name, value in found["tensors"].items()}
        config = dataclasses.asdict(self.config)
        return tensors, {"sparse": {"config": config, "state": found["state"]}}

    def _restore_extra(self, found: Checkpoint) -> None:
        if "sparse" not in found.state:
            raise RecipeError(f"{self.out_dir}: cannot resume: not a run of sparse training")
        then, now = found.state["sparse"]["config"], dataclasses.asdict(self.config)
        for name, value in now.items():
            if then.get(name) != value:
                raise RecipeError(
                    f"{self.out_dir}: cannot resume: {name} is {value!r} here and "
                    f"{then.get(name)!r} in the run; use the run's value or another folder"
                )
        tensors = {
            name.removeprefix(_PREFIX): value
            for name, value in found.tensors.items()
            if name.startswith(_PREFIX)
        }
        self.sparse.load_state_dict({"tensors": tensors, "state": found.state["sparse"]["state"]})


def train(
    recipe: Recipe,
    config: SparseConfig,
    out_dir: str | Path,
    resume: bool = False,
    **options: Any,
) -> Result:
    """Train sparsely into a folder; `mpt_fast.training.train` with a `SparseConfig`.

    recipe: of a dense network (dense=True). options: those of `mpt_fast.training.train`. Killed at
    any moment, the run resumes from its last complete checkpoint, on a CPU to the same bits.
    """
    maker = functools.partial(SparseTrainer, config=config)
    return training.train(recipe, out_dir, resume, make_trainer=maker, **options)
