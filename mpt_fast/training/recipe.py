"""Recipe: everything that decides how a network is trained, as a frozen dataclass and as YAML."""

import dataclasses
import difflib
import importlib.resources
import math
import textwrap
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mpt_fast.config import (
    COMPATIBILITIES,
    FAN_MODES,
    NONLINEARITIES,
    SCOPES,
    SCORE_INITS,
    SELECTIONS,
    WEIGHT_INITS,
    TicketConfig,
)
from mpt_fast.data import AUGMENTATIONS, Mixing
from mpt_fast.data import NAMES as DATA_NAMES

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Recipe", "RecipeError", "recipe_for"]


class RecipeError(ValueError):
    """A recipe that cannot be used: the message names the field and what it may be."""


def _field(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A recipe field with its one-line meaning and the values it may take."""
    metadata = {"text": text, "choices": choices, "low": low, "high": high, "above": above}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


TRAINED = ("scores+norm", "scores", "norm", "scores+bias", "bias")
FINETUNED = ("none", "first", "last", "all")
_RESERVED = (
    "num_classes", "in_channels", "activation", "width", "image_size", "config", "bn", "compat",
)  # fmt: skip

_GROUPS = {
    "model": "The network",
    "sparsity": "The ticket (unused by a dense network)",
    "optimizer": "The optimiser and its schedule",
    "amp": "How it is computed",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run. Two runs of a recipe on equal CPUs with equal threads end in equal bits.

    Every field has a default and is checked on creation; RecipeError (a ValueError) names a wrong
    one. `Recipe.load` reads a built-in recipe or a file, `dump` writes every field with its
    meaning.
    """

    model: str = _field("conv4", "name of a function of mpt_fast.models")
    options: Mapping[str, Any] = _field(
        {}, "further arguments of that function, such as {v2: true}"
    )
    data: str = _field("digits", "data set", choices=DATA_NAMES)
    train_images: int = _field(0, "use only so many training images; 0 means all", low=0)
    image_size: int = _field(
        224, "side of the images of an image folder; others have their own", low=1
    )
    activation: str = _field(
        "relu", "the ticket's activations; its dense twin has relu", choices=("relu", "binary")
    )
    width: float = _field(1.0, "factor on the number of channels", above=0)
    bn: str = _field(
        "frozen",
        "the ticket's batch norm, with or without scale and shift",
        choices=("frozen", "affine"),
    )
    dense: bool = _field(False, "train the dense twin's weights instead of finding a ticket")

    sparsity: float = _field(0.5, "fraction of the weights that is pruned", low=0)
    scope: str = _field("global", "one threshold for all layers, or one per layer", choices=SCOPES)
    selection: str = _field("exact", "how the kept weights are chosen", choices=SELECTIONS)
    power: float = _field(1.0, "power-propagation p of s*|s|^(p-1); 1 means none", low=1)
    layer_power: Mapping[str, Any] = _field(
        {}, "p of single layers by name or pattern, such as {linear.*: 2}"
    )
    weight_init: str = _field(
        "kaiming_normal", "distribution of the frozen weights", choices=WEIGHT_INITS
    )
    mode: str = _field("fan_in", "fan that the distribution's width follows", choices=FAN_MODES)
    nonlinearity: str = _field(
        "relu", "whose gain the distribution's width has", choices=NONLINEARITIES
    )
    score_init: str = _field(
        "kaiming_uniform", "what is drawn uniformly: importance, or raw score", choices=SCORE_INITS
    )
    scale_fan: bool | str = _field(
        False, "true scales the fan by the density, pruned does as biprop does", choices=("pruned",)
    )
    progressive_epochs: int = _field(
        0, "epochs of the cubic rise from sparsity 0.5; 0 means none", low=0
    )
    trains: str = _field(
        "scores+norm",
        "what of the ticket is trained; norm: scale and shift of an affine batch norm",
        choices=TRAINED,
    )
    finetune: str = _field(
        "none",
        "with the masks fixed, train the weights of that part (mpt-fast finetune)",
        choices=FINETUNED,
    )
    compat: str = _field(
        "none",
        "biprop computes gains, ties, signs of 0 and logits as it does",
        choices=COMPATIBILITIES,
    )

    optimizer: str = _field(
        "sgd", "optimiser of the scores (dense: of the weights)", choices=("sgd", "adam", "adamw")
    )
    lr: float = _field(0.1, "learning rate before the schedule", above=0)
    momentum: float = _field(0.9, "momentum of sgd", low=0, high=1)
    nesterov: bool = _field(False, "Nesterov momentum (sgd)")
    weight_decay: float = _field(1e-4, "decay of everything trained, scores included", low=0)
    schedule: str = _field(
        "cosine", "learning rate over the epochs", choices=("cosine", "multistep", "constant")
    )
    warmup_epochs: int = _field(0, "epochs of linear warm-up", low=0)
    milestones: tuple[int, ...] = _field((), "epochs at which multistep multiplies by gamma")
    gamma: float = _field(0.1, "factor at each milestone", above=0)
    epochs: int = _field(5, "passes over the training images", low=1)
    batch_size: int = _field(128, "images per step, over all processes", low=1)
    label_smoothing: float = _field(0.0, "label smoothing of the training loss", low=0, high=1)
    grad_clip: float = _field(0.0, "largest gradient norm; 0 means no clipping", low=0)
    augment: str = _field("none", "augmentation of the training images", choices=AUGMENTATIONS)
    augmix: bool = _field(False, "mix chains of augmentations (AugMix) after `augment`")
    augmix_width: int = _field(3, "chains mixed per image", low=1)
    augmix_depth: int = _field(-1, "operations per chain; -1 draws 1 to 3", low=-1)
    augmix_severity: int = _field(3, "strength of the operations, 1 to 10", low=1, high=11)
    jsd: float = _field(
        0.0,
        "weight of AugMix's Jensen-Shannon loss over three views (12 in the paper); 0: off",
        low=0,
    )
    noise_std: float = _field(0.1, "deviation of Gaussian noise on pixels in [0, 1]", low=0)
    noise_share: float = _field(0.0, "chance that an image gets that noise", low=0)
    seed: int = _field(0, "seed of weights, scores, order and augmentation", low=0)

    amp: str = _field(
        "auto",
        "mixed precision; auto is bf16 where the processor has it",
        choices=("auto", "none", "bf16", "fp16"),
    )
    channels_last: bool = _field(True, "memory layout of images and weights")
    deterministic: bool = _field(False, "only deterministic algorithms on a GPU (a CPU always is)")
    threads: int = _field(0, "CPU threads; 0 means as torch is set", low=0)  # fmt: skip

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.sparsity >= 1:
            raise RecipeError(f"sparsity must lie in [0, 1), got {self.sparsity!r}")
        if self.warmup_epochs >= self.epochs:
            raise RecipeError(
                f"warmup_epochs must be below epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if self.progressive_epochs and self.scope != "global":
            raise RecipeError("progressive_epochs needs scope: global")
        if self.progressive_epochs >= self.epochs and not self.dense:
            raise RecipeError(
                f"progressive_epochs must be below epochs ({self.epochs}), or the run ends before "
                f"its sparsity is reached; got {self.progressive_epochs}"
            )
        if self.milestones and self.schedule != "multistep":
            raise RecipeError(f"milestones need schedule: multistep, got {self.schedule}")
        if list(self.milestones) != sorted(self.milestones) or min(self.milestones, default=1) < 1:
            raise RecipeError(f"milestones must rise from 1, got {list(self.milestones)}")
        if self.model not in _model_names():
            raise RecipeError(_choice_error("model", self.model, _model_names()))
        self._check_augmentation()
        self._check_mappings()
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise RecipeError("nesterov needs optimizer: sgd and a momentum above 0")
        try:
            self.ticket_config()
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error)) from None

    def _check_mappings(self) -> None:
        from mpt_fast import models

        if self.options:
            known = [name for name in models.option_names(self.model) if name not in _RESERVED]
            for name in self.options:
                if name not in known:
                    raise RecipeError(_choice_error(f"option of {self.model}", str(name), known))
        for name, power in self.layer_power.items():
            if isinstance(power, bool) or not isinstance(power, (int, float)) or not power >= 1:
                raise RecipeError(f"layer_power of {name} must be a number >= 1, got {power!r}")

    def _check_augmentation(self) -> None:
        if self.augmix_depth == 0:
            raise RecipeError("augmix_depth must be -1 (drawn) or at least 1, got 0")
        if self.noise_share > 1:
            raise RecipeError(f"noise_share is a chance and at most 1, got {self.noise_share}")
        if self.jsd and not (self.augmix or self.noise_share):
            raise RecipeError("jsd compares augmented views: set augmix: true or a noise_share")
        if self.augmix and self.noise_share:
            raise RecipeError("augmix and noise_share exclude each other; choose one")

    def ticket_config(self) -> TicketConfig:
        """The ticket's configuration at its final sparsity."""
        names = {field.name for field in dataclasses.fields(TicketConfig)}
        return TicketConfig(**{k: v for k, v in self.to_dict().items() if k in names})

    def mixing(self) -> Mixing | None:
        """AugMix or noise for the training images; None where the recipe has neither."""
        if not (self.augmix or self.noise_share):
            return None
        return Mixing(
            augmix=self.augmix,
            width=self.augmix_width,
            depth=self.augmix_depth,
            severity=self.augmix_severity,
            noise_std=self.noise_std,
            noise_share=self.noise_share,
            jsd=self.jsd > 0,
        )

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
        """The network for images (C, H, W), drawn from `seed` on the CPU, in float32.

        A dense recipe gives the twin of the ticket: the same shapes, ReLU and affine batch norm
        whatever the ticket's, trainable weights. The global random state is left as it was.
        """
        import torch

        from mpt_fast import models
        from mpt_fast.selection import cubic_sparsity, set_power, ticket_layers, update_masks

        channels, height, width = image_shape
        options: Mapping[str, Any] = {
            "num_classes": num_classes,
            "in_channels": channels,
            "activation": self.activation,
            "width": self.width,
            "image_size": (height, width),
            **self.options,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.dense and self.compat == "biprop":  # its dense networks keep signs and norm
                options = {**options, "bn": self.bn, "compat": self.compat}
                return models.build(self.model, config=None, **options)
            if self.dense:
                return models.dense_twin(self.model, **options)
            config = self.ticket_config()
            model = models.build(self.model, bn=self.bn, config=config, **options)
        if self.layer_power:
            set_power(model, self.layer_power)
        self._freeze(model)
        if self.progressive_epochs:  # weights are drawn for the final sparsity, masks start denser
            start = cubic_sparsity(0, self.progressive_epochs, self.sparsity)
            for layer in ticket_layers(model).values():
                layer.config = dataclasses.replace(config, sparsity=start)
            update_masks(model)
        return model

    def _freeze(self, model: "nn.Module") -> None:
        """Leave gradients only to what `trains` names; scores are those of the ticket layers."""
        for name, parameter in model.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if kind == "scores":
                trained = "scores" in self.trains
            elif "bias" in self.trains:
                trained = kind == "bias"
            else:
                trained = "norm" in self.trains
            parameter.requires_grad_(parameter.requires_grad and trained)

    def to_dict(self) -> dict[str, Any]:
        """All fields, by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with these fields and defaults for the rest; RecipeError on an unknown key."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise RecipeError(_choice_error("recipe field", str(key), names, list_all=False))
        return cls(**values)

    def replace(self, **overrides: Any) -> "Recipe":
        """A copy with some fields changed; RecipeError on an unknown one."""
        return self.from_dict({**self.to_dict(), **overrides})

    def differences(self, other: "Recipe") -> list[str]:
        """Names of the fields in which two recipes differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [name for name in mine if mine[name] != theirs[name]]

    def dump(self) -> str:
        """YAML with every field, its value and its meaning; `from_yaml` reads it back."""
        lines: list[str] = []
        for field in dataclasses.fields(self):
            if field.name in _GROUPS:
                lines += ["", f"# {_GROUPS[field.name]}."]
            value = getattr(self, field.name)
            plain = list(value) if isinstance(value, tuple) else value
            choices = field.metadata["choices"]
            listed = f" ({', '.join(choices)})" if choices and field.type is str else ""
            note = textwrap.wrap(f"{field.metadata['text']}{listed}", 96)
            entry = yaml.safe_dump([plain], default_flow_style=True, width=1000).strip()[1:-1]
            lines += [*(f"# {line}" for line in note), f"{field.name}: {entry}"]
        return "\n".join(lines[1:]) + "\n"

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> "Recipe":
        """The recipe in a YAML text; `source` names it in errors."""
        try:
            values = yaml.load(text, _StrictLoader)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"{source}: not valid YAML ({reason})") from None
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise RecipeError(f"{source}: must be lines of `field: value`")
        try:
            return cls.from_dict(values)
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from None

    @classmethod
    def load(cls, name: str | Path, **overrides: Any) -> "Recipe":
        """A built-in recipe by name (see `names`) or a YAML file by path, with overrides."""
        path = Path(name)
        if path.suffix in (".yaml", ".yml"):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not UTF-8 text"
                raise RecipeError(f"{path}: cannot be read ({reason})") from None
        elif str(name) in cls.names():
            text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        else:
            raise RecipeError(
                _choice_error("recipe", str(name), cls.names()) + ", or a path that ends in .yaml"
            )
        return cls.from_yaml(text, str(name)).replace(**overrides)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names of the built-in recipes."""
        files = (entry.name for entry in _folder().iterdir())
        return tuple(sorted(name[: -len(".yaml")] for name in files if name.endswith(".yaml")))


def recipe_for(
    model: str,
    data: str = "digits",
    *,
    activation: str = "relu",
    dense: bool = False,
    **overrides: Any,
) -> Recipe:
    """The papers' optimiser settings for a model, then the overrides.

    Tickets: SGD with momentum 0.9 and weight decay 1e-4 (ResNets 5e-4), or, for binary activations
    and for VGG-Small, Adam without decay; learning rate 0.1 in both. Dense twins: SGD at 0.05
    (ResNets 0.1) with decay 5e-4. A sparsity above 0.5 over all layers together is reached
    progressively over half the epochs, 10 at most.
    """
    residual = "resnet" in model
    values: dict[str, Any] = {
        "model": model,
        "data": data,
        "activation": activation,
        "dense": dense,
    }
    if dense:
        values |= {"lr": 0.1 if residual else 0.05, "weight_decay": 5e-4}
    elif activation == "binary" or "vgg" in model:
        values |= {"optimizer": "adam", "weight_decay": 0.0}
    elif residual:
        values |= {"weight_decay": 5e-4}
    if data in ("cifar10", "cifar100"):
        values |= {"augment": "crop-flip", "epochs": 100}
    elif data == "imagefolder":
        values |= {"augment": "resized-crop-flip", "epochs": 100, "label_smoothing": 0.1}
    elif data == "digits":
        values |= {"batch_size": 64, "epochs": 20}
    recipe = Recipe.from_dict({**values, **overrides})
    rises = not dense and recipe.scope == "global" and recipe.sparsity > 0.5
    if rises and recipe.selection != "threshold" and "progressive_epochs" not in overrides:
        return recipe.replace(progressive_epochs=min(10, recipe.epochs // 2))
    return recipe


def _folder() -> Any:
    return importlib.resources.files("mpt_fast") / "recipes"


def _model_names() -> tuple[str, ...]:
    from mpt_fast import models

    return models.NAMES


def _choice_error(
    what: str, value: str, choices: list[str] | tuple[str, ...], *, list_all: bool = True
) -> str:
    close = difflib.get_close_matches(value, choices, n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"unknown {what} {value!r}{hint}" + (
        f" (known: {', '.join(choices)})" if list_all or not close else ""
    )


def _checked(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value in the field's own type; RecipeError if it is of another or out of bounds."""
    name, choices = field.name, field.metadata["choices"]
    if field.type is str:
        if not isinstance(value, str):
            raise RecipeError(f"{name} must be text, got {value!r}")
        if choices and value not in choices:
            raise RecipeError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return value
    if field.type is bool or field.type == bool | str:
        if not (isinstance(value, bool) or (isinstance(value, str) and value in choices)):
            allowed = ", ".join(("true", "false", *choices))
            raise RecipeError(f"{name} must be one of {allowed}, got {value!r}")
        return value
    if field.type is int:
        return _bounded(field, _integer(name, value))
    if field.type is float:
        return _bounded(field, _real(name, value))
    if field.type == Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise RecipeError(f"{name} must be a mapping such as {{name: value}}, got {value!r}")
        return dict(value)
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"{name} must be a list of integers, got {value!r}")
    return tuple(_integer(name, entry) for entry in value)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"{name} must be an integer, got {value!r}")
    return value


def _real(name: str, value: Any) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-4, without a point, as text
        try:
            value = float(value)
        except ValueError:
            raise RecipeError(f"{name} must be a number, got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecipeError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _bounded(field: "dataclasses.Field[Any]", value: Any) -> Any:
    low, high, above = (field.metadata[key] for key in ("low", "high", "above"))
    if low is not None and value < low:
        raise RecipeError(f"{field.name} must be at least {low}, got {value}")
    if above is not None and value <= above:
        raise RecipeError(f"{field.name} must be above {above}, got {value}")
    if high is not None and value >= high:
        raise RecipeError(f"{field.name} must be below {high}, got {value}")
    return value


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice, where YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"field {key.value!r} stands there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)
