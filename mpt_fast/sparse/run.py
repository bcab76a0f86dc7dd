"""Sparse training as runs: a dense recipe, a `SparseConfig`, and the package's trainer.

The folder is a dense run's (`mpt-fast eval`, `pack` and `bench` take it as it is); the checkpoint
holds the masks, the step count and the method's buffers too. Two of RigL's baselines are runs
rather than methods: a small dense network (a recipe of another width) and a lottery restart (the
masks of a finished run over the weights that it began with).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpt_fast import data, training
from mpt_fast.config import check_sparsity
from mpt_fast.sparse.accounting import cost
from mpt_fast.sparse.distributions import DISTRIBUTIONS
from mpt_fast.sparse.manager import SparseTraining
from mpt_fast.sparse.methods import METHODS
from mpt_fast.sparse.small_dense import small_dense_width
from mpt_fast.sparse.update import DECAYS
from mpt_fast.training import Recipe, RecipeError, Result, Trainer, checkpoint
from mpt_fast.training.checkpoint import Checkpoint
from mpt_fast.training.trainer import make_optimizer

_PREFIX = "sparse/"
_MASK = f"{_PREFIX}mask/"
SMALL_DENSE = "small-dense"
KINDS = (*METHODS, SMALL_DENSE)
"""What `SparseConfig.method` may be."""
MASKED = ("static", "rigl", "set", "snfs")
"""Methods that can begin with given masks."""
_INITIAL = ("model", "options", "data", "image_size", "width", "compat", "bn", "seed")


@dataclasses.dataclass(frozen=True)
class SparseConfig:
    """How a run is kept sparse, in shares of its length, JSON-able.

    method: a name of `METHODS`, or "small-dense": a dense network, narrowed until it is as large as
    the sparse one would be. sparsity, distribution, custom, dense_first: see `layer_sparsities`
    (first layer dense or not; None as the distribution says). delta_t, alpha, decay, power,
    grad_accumulation: of RigL, SET and SNFS. start, stop: the part of the steps in which masks
    move, as shares of the run; the paper's 0 and 0.75, for pruning 0.3125 and 0.78125 (None takes
    those). frequency: steps between prunings. seed: of the masks. masks_from: folder of a sparse
    run whose last masks to begin with (a lottery restart, with a recipe that draws that run's
    initial weights); "": random ones. They have sparsities of their own.

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
    masks_from: str = ""

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", KINDS),
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
        if self.masks_from and self.method not in MASKED:
            raise RecipeError(
                f"masks_from: {self.method} does not begin with given masks; a lottery restart is "
                f"one of {', '.join(MASKED)}"
            )

    @property
    def window(self) -> tuple[float, float]:
        """(start, stop) with the method's defaults filled in."""
        pruning = self.method == "pruning"
        start = self.start if self.start is not None else (0.3125 if pruning else 0.0)
        stop = self.stop if self.stop is not None else (0.78125 if pruning else 0.75)
        return start, stop

    def build(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        masks: Mapping[str, Tensor] | None = None,
    ) -> SparseTraining:
        """The method on this model, for a run of `steps` steps, from given masks or its own.

        RecipeError for "small-dense", which has no masks.
        """
        if self.method == SMALL_DENSE:
            raise RecipeError(f"{SMALL_DENSE} has no masks; train it with mpt_fast.sparse.train")
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
        if masks is not None:
            options["masks"] = masks
        return METHODS[self.method](model, optimizer, self.sparsity, **options)


class _WeightTrainer(Trainer):
    """The package's trainer of a network's weights, with a `SparseConfig` in its checkpoints.

    Weight decay acts on matrices and kernels only, not on biases and batch norm, as in the paper.
    """

    def __init__(self, *args: Any, config: SparseConfig, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.recipe.dense:
            raise RecipeError("sparse training trains weights: it needs a recipe with dense: true")
        self.config = config

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.trained if p.dim() > 1]},
            {"params": [p for p in self.trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return make_optimizer(self.recipe, [group for group in groups if group["params"]])

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"sparse": {"config": dataclasses.asdict(self.config)}}

    def _restore_extra(self, found: Checkpoint) -> None:
        if "sparse" not in found.state:
            raise RecipeError(f"{self.out_dir}: cannot resume: not a run of sparse training")
        then, now = found.state["sparse"]["config"], dataclasses.asdict(self.config)
        for name, value in now.items():
            before = then.get(name, "" if name == "masks_from" else None)  # runs from before it
            if before != value:
                raise RecipeError(
                    f"{self.out_dir}: cannot resume: {name} is {value!r} here and "
                    f"{before!r} in the run; use the run's value or another folder"
                )


class SmallDenseTrainer(_WeightTrainer):
    """Trains the small dense network as the sparse ones are trained."""

    def _realised_sparsity(self) -> float:
        return 0.0


class SparseTrainer(_WeightTrainer):
    """The package's trainer with a `SparseTraining` between the backward pass and the optimiser.

    masks: to begin with, by layer; None for the method's own.
    """

    def __init__(
        self, *args: Any, masks: Mapping[str, Tensor] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        steps = self.recipe.epochs * len(self.loader)
        self.sparse = self.config.build(self.model, self.optimizer, steps, masks)

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
        super()._restore_extra(found)
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

    recipe: of a dense network (dense=True), in full width also for "small-dense", whose run has
    the recipe of the narrow one. options: those of `mpt_fast.training.train`. Killed at any moment,
    the run resumes from its last complete checkpoint, on a CPU to the same bits.

    Raises RecipeError for a recipe that is not dense, masks_from that is no sparse run or draws
    other initial weights, and a network that no width makes so small.
    """
    if config.method == SMALL_DENSE:
        recipe = small_dense_recipe(recipe, config, options.get("data_root"))
        maker: Callable[..., Trainer] = functools.partial(SmallDenseTrainer, config=config)
    else:
        masks = lottery_masks(recipe, config.masks_from) if config.masks_from else None
        maker = functools.partial(SparseTrainer, config=config, masks=masks)
    return training.train(recipe, out_dir, resume, make_trainer=maker, **options)


def run_masks(folder: str | Path) -> dict[str, Tensor]:
    """The last masks of a sparse run, bool by layer name; RecipeError if it has none."""
    found = checkpoint.read(Path(folder) / "last.safetensors")
    masks = {
        name.removeprefix(_MASK): mask.bool()
        for name, mask in found.tensors.items()
        if name.startswith(_MASK)
    }
    if not masks:
        raise RecipeError(f"{folder}: not a run with masks; name one of mpt-fast rigl")
    return masks


def lottery_masks(recipe: Recipe, folder: str | Path) -> dict[str, Tensor]:
    """The masks of a finished run, for a recipe that draws the weights which that run began with.

    Raises RecipeError naming what the recipe would draw otherwise.
    """
    masks = run_masks(folder)
    then = Recipe.from_dict(checkpoint.read(Path(folder) / "last.safetensors").state["recipe"])
    for name in _INITIAL:
        mine, theirs = getattr(recipe, name), getattr(then, name)
        if mine != theirs:
            raise RecipeError(
                f"masks_from: {name} is {mine!r} here and {theirs!r} in {folder}; give the run's "
                "value: a lottery restart needs its initial weights"
            )
    return masks


def small_dense_recipe(
    recipe: Recipe, config: SparseConfig, data_root: str | Path | None = None
) -> Recipe:
    """The recipe of a dense network as large as this one would be at the config's sparsity.

    Sizes as in `small_dense_width`. Raises RecipeError if no width is that small.
    """
    dataset = data.load(recipe.data, data_root, image_size=recipe.image_size)
    shape, classes = dataset.image_shape, dataset.num_classes
    target = cost(
        recipe.build(shape, classes),
        shape,
        config.sparsity,
        distribution=config.distribution,  # type: ignore[arg-type]  # __post_init__ checked it
        custom=config.custom,
        dense_first=config.dense_first,
    )

    def build(width: float) -> nn.Module:
        return recipe.replace(width=width * recipe.width).build(shape, classes)

    try:
        found = small_dense_width(build, target.bits)
    except ValueError as error:
        raise RecipeError(f"{SMALL_DENSE} {recipe.model}: {error}") from None
    return recipe.replace(width=found.width * recipe.width)
