"""biprop's recipe files: every key becomes a field of our Recipe, or says why it does not."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mpt_fast.biprop.networks import Network, network
from mpt_fast.config import NONLINEARITIES, SCALED_INITS, WEIGHT_INITS
from mpt_fast.training.recipe import Recipe, RecipeError

__all__ = ["BipropConfig", "KeyLine", "read_config"]

# What biprop assumes for a key that its file leaves out (only those that matter here).
_DEFAULTS: dict[str, Any] = {
    "arch": "ResNet18", "set": "ImageNet", "optimizer": "sgd", "lr": 0.1,
    "lr_policy": "constant_lr", "lr_adjust": 20, "lr_gamma": 0.1, "warmup_length": 0,
    "epochs": 90, "batch_size": 256, "momentum": 0.9, "nesterov": False,
    "weight_decay": 1e-4, "no_bn_decay": False, "label_smoothing": None, "prune_rate": 0.0,
    "prune_rate_epoch": 10, "conv_type": None, "bn_type": None, "freeze_weights": False,
    "learn_batchnorm": False, "tune_batchnorm": False, "bn_bias_only": False,
    "init": "kaiming_normal", "mode": "fan_in", "nonlinearity": "relu", "scale_fan": False,
    "width_mult": 1.0, "seed": None, "augmix": False, "jsd": False, "mixture_width": 3,
    "mixture_depth": -1, "aug_severity": 3, "gaussian_aug": False, "std_gauss": 0.1,
    "p_clean": 1.0,
}  # fmt: skip
_WITHOUT_EFFECT = {
    "name": "not needed: name the run's folder with --out",
    "log_dir": "not needed: name the run's folder with --out",
    "results": "not needed: the run's folder holds result.json and metrics.csv",
    "data": "the data set's place: used if it exists, --data-root overrides",
    "workers": "not needed: images lie in memory or are read ahead",
    "print_freq": "not needed: there is a progress bar",
    "multigpu": "not needed: --device, or torchrun for several processes",
    "gpu": "not needed: --device",
    "world_size": "not needed: torchrun says it",
    "rank": "not needed: torchrun says it",
    "save_every": "not needed: last and best checkpoint are kept, each epoch's metrics too",
    "histograms": "not needed: scores are in every checkpoint",
    "debug": "not needed",
    "start_epoch": "not needed: --resume goes on where the run stopped",
    "num_classes": "not needed: the data set says it",
    "multistep_lr_adjust": "without effect in biprop",
    "multistep_lr_gamma": "without effect in biprop",
}
_MUST_BE_UNSET = {
    "first_layer_dense": "mpt_fast's networks prune every layer",
    "first_layer_type": "mpt_fast's networks prune every layer",
    "last_layer_dense": "mpt_fast's networks prune every layer",
    "bn_weight_init": "biprop ignores its value and draws U(0, 1/sqrt(1200)) instead",
    "bn_bias_init": "mpt_fast starts every batch norm with shift 0",
    "grad_clip": "biprop does not say at what; set grad_clip of a recipe of your own",
    "all_augmix_augmentations": "these overlap with the corruptions of the test sets",
    "random_subnet": "a fine-tuning experiment of hidden-networks that biprop does not finish",
    "one_batch": "a debugging aid; use --set train_images=N",
    "score_init_constant": "only for SampleSubnetConv, which mpt_fast does not have",
    "evaluate": "read the checkpoint with mpt_fast.load_biprop_checkpoint",
    "pretrained": "read the checkpoint with mpt_fast.load_biprop_checkpoint",
    "resume": "a run of biprop cannot be gone on with; read it with load_biprop_checkpoint",
}
_STEPS = {  # epochs at which the rate falls to a tenth; twice the same: to a hundredth
    "xnor_lr": (30, 44, 54),
    "mpt132_w34_2_lr": (27, 44, 54, 54),
    "mpt11_w34_2_v2_lr": (50, 62, 70, 70),
    "mpt11_w18_2_lr": (46, 65, 80, 80),
    "mpt11_w18_2_v2_lr": (35, 50, 60, 60),
}
_SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "CIFAR10": ("cifar10", {"augment": "crop-flip"}),
    "ImageNet": ("imagefolder", {"augment": "resized-crop-flip", "image_size": 224}),
    "MNIST": ("mnist", {}),
}
_CONV_TYPES = {"SubnetConv": "layer", "GlobalSubnetConv": "global"}
_NORMS = {
    "NonAffineBatchNorm": "frozen",
    "AffineBatchNorm": "affine",
    "LearnedBatchNorm": "affine",
}
_JSD_WEIGHT = 12.0


@dataclass(frozen=True)
class KeyLine:
    """What became of one key of the file: its value there and our words or fields for it."""

    key: str
    value: Any
    became: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value} -> {self.became}"


@dataclass(frozen=True)
class BipropConfig:
    """A recipe file, read: our recipe, a line per key, and the place it names for the data."""

    recipe: Recipe
    lines: tuple[KeyLine, ...]
    data_root: Path | None
    prune_rate: float


def read_config(
    path: str | Path, prune_rate: float | None = None, **overrides: Any
) -> BipropConfig:
    """Read a recipe file of biprop.

    Args:
        path: the YAML file.
        prune_rate: fraction of the weights KEPT; overrides the file's, needed where that is -1.
        overrides: fields of our Recipe that replace what the file became, last.

    Raises RecipeError naming file, key and reason for a key that is unknown or cannot be honoured.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError(f"{path}: cannot be read ({reason})") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, Mapping):
        raise RecipeError(f"{path}: must be lines of `key: value`, as biprop's recipe files are")
    try:
        reader = _Reader(values, prune_rate)
        recipe = reader.recipe().replace(**overrides)
    except ValueError as error:  # RecipeError among them
        raise RecipeError(f"{path}: {error}") from None
    place = values.get("data")
    root = Path(place) if isinstance(place, str) and Path(place).is_dir() else None
    return BipropConfig(recipe, tuple(reader.lines), root, reader.prune_rate)


class _Reader:
    """Reads the keys in a fixed order; each reading adds its line."""

    def __init__(self, values: Mapping[str, Any], prune_rate: float | None) -> None:
        self.given = values
        self.lines: list[KeyLine] = []
        self.fields: dict[str, Any] = {"compat": "biprop", "amp": "none"}
        for key, value in values.items():
            self._check_key(str(key), value)
        if prune_rate is not None:
            self.given = {**values, "prune_rate": prune_rate}
        self.prune_rate = 0.0

    def recipe(self) -> Recipe:
        for read in (
            self._network,
            self._data,
            self._sparsity,
            self._initialisation,
            self._training,
            self._schedule,
            self._augmentation,
        ):
            read()
        for key, words in _WITHOUT_EFFECT.items():
            if key in self.given:
                self._say(key, words)
        if self.given.get("trainer", "default") != "default":
            raise RecipeError(f"trainer: {self.given['trainer']}: only the default trainer is here")
        if self.given.get("low_data", 1) not in (1, 1.0):
            raise RecipeError("low_data: use --set train_images=N of a recipe of your own")
        for key in ("trainer", "low_data"):
            if key in self.given:
                self._say(key, "the only one" if key == "trainer" else "all images")
        for key in _MUST_BE_UNSET:
            if key in self.given:
                self._say(key, "unset, as biprop's default")
        return Recipe.from_dict(self.fields)

    def _check_key(self, key: str, value: Any) -> None:
        known = {*_DEFAULTS, *_WITHOUT_EFFECT, *_MUST_BE_UNSET, "trainer", "low_data"}
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise RecipeError(f"{key}: biprop has no such key{hint}")
        if key in _MUST_BE_UNSET and value not in (None, False, "", "None"):
            raise RecipeError(f"{key}: {value}: {_MUST_BE_UNSET[key]}")

    def _get(self, key: str) -> Any:
        return self.given.get(key, _DEFAULTS[key])

    def _number(self, key: str, kind: Callable[[Any], Any] = float) -> Any:
        value = self._get(key)
        try:
            number = kind(value)
            if isinstance(value, bool) or float(number) != float(value):
                raise ValueError
        except (TypeError, ValueError):
            name = "an integer" if kind is int else "a number"
            raise RecipeError(f"{key}: {value!r} is not {name}") from None
        return number

    def _flag(self, key: str) -> bool:
        value = self._get(key)
        if value not in (True, False, None):
            raise RecipeError(f"{key}: {value!r} is neither true nor false")
        return bool(value)

    def _say(self, key: str, became: str) -> None:
        if key in self.given:
            self.lines.append(KeyLine(key, self.given[key], became))

    def _set(self, key: str, **fields: Any) -> None:
        self.fields |= fields
        self._say(key, ", ".join(f"{name}={value}" for name, value in fields.items()))

    def _network(self) -> None:
        found: Network = network(str(self._get("arch")).strip())
        self._set("arch", model=found.model, activation=found.activation, options=found.options)
        mult = self._number("width_mult")
        if found.width_per_mult is not None:
            self._set("width_mult", width=mult * found.width_per_mult)
        else:
            self._say("width_mult", "without effect: this network has one width")
        self.image = found.image

    def _data(self) -> None:
        name = str(self._get("set"))
        if name not in _SETS:
            raise RecipeError(f"set: {name}: mpt_fast reads {', '.join(_SETS)}")
        data, fields = _SETS[name]
        channels = 1 if data == "mnist" else 3
        if channels != self.image[0]:
            raise RecipeError(f"set: {name}: the images have {channels} channels and "
                              f"{self._get('arch')} takes {self.image[0]}")  # fmt: skip
        self._set("set", data=data, **fields)

    def _sparsity(self) -> None:
        kind = self._get("conv_type")
        norm = self._get("bn_type")
        if norm not in _NORMS:
            raise RecipeError(f"bn_type: {norm}: biprop has {', '.join(_NORMS)}")
        self._set("bn_type", bn=_NORMS[norm])
        if kind == "DenseConv":
            if self._flag("freeze_weights"):
                raise RecipeError("freeze_weights: with conv_type DenseConv nothing is trained")
            self._set("conv_type", dense=True)
            self._say("freeze_weights", "weights are trained, as conv_type DenseConv says")
            for key in ("prune_rate", "prune_rate_epoch"):
                self._say(key, "without effect: nothing is pruned")
            for key in ("learn_batchnorm", "tune_batchnorm", "bn_bias_only"):
                self._say(key, "without effect: biprop heeds it with freeze_weights only")
            return
        if kind not in _CONV_TYPES:
            raise RecipeError(
                f"conv_type: {kind}: mpt_fast has SubnetConv, GlobalSubnetConv and DenseConv"
            )
        self._set("conv_type", scope=_CONV_TYPES[kind])
        self._prune_rate()
        self._progressive(kind)
        self._trained()

    def _prune_rate(self) -> None:
        rate = self._number("prune_rate")
        if rate < 0:
            raise RecipeError("prune_rate: -1 means that it must be given; add --prune-rate K")
        if not 0 < rate <= 1:
            raise RecipeError(f"prune_rate: {rate:g}: the fraction kept must lie in (0, 1]")
        if rate == 1 and self.fields["scope"] == "global":
            raise RecipeError(
                "prune_rate: 1: GlobalSubnetConv then prunes every weight (its threshold is the "
                "largest score) and biprop computes NaN; give a rate below 1"
            )
        self.prune_rate = rate
        self._set("prune_rate", sparsity=1 - rate)

    def _progressive(self, kind: str) -> None:
        epochs = self._number("prune_rate_epoch", int)
        if kind != "GlobalSubnetConv" or self.prune_rate > 0.5 or epochs <= 0:
            self._say("prune_rate_epoch", "without effect: the rate does not change over epochs")
            return
        if epochs >= self._number("epochs", int):
            raise RecipeError(
                f"prune_rate_epoch: {epochs}: the run ends before it and with more weights than "
                "prune_rate says; set it below epochs"
            )
        self._set("prune_rate_epoch", progressive_epochs=epochs)

    def _trained(self) -> None:
        frozen = self._flag("freeze_weights")
        learn, tune = self._flag("learn_batchnorm"), self._flag("tune_batchnorm")
        bias = self._flag("bn_bias_only")
        if not frozen or (learn and not tune):
            trained = "scores+norm"
        elif learn:
            trained = "norm"
        elif bias:
            trained = "bias" if tune else "scores+bias"
        else:
            trained = "scores"
        if "scores" not in trained and self.fields["bn"] == "frozen":
            raise RecipeError("tune_batchnorm: trains batch norms only, and bn_type has nothing to "
                              "train; use AffineBatchNorm")  # fmt: skip
        self.fields["trains"] = trained
        for key in ("freeze_weights", "learn_batchnorm", "tune_batchnorm", "bn_bias_only"):
            self._say(key, f"trains={trained}")

    def _initialisation(self) -> None:
        init, gain = self._get("init"), self._get("nonlinearity")
        if init not in WEIGHT_INITS:
            reason = "crashes in biprop" if init == "binary" else "biprop has no such init"
            raise RecipeError(f"init: {init}: {reason}; use one of {', '.join(WEIGHT_INITS)}")
        if gain not in NONLINEARITIES:
            raise RecipeError(f"nonlinearity: {gain}: does not work in biprop either; use relu")
        self._set("init", weight_init=init)
        self._set("mode", mode=self._get("mode"))
        self._set("nonlinearity", nonlinearity=gain)
        scale = self._flag("scale_fan")
        if not scale or self.fields.get("dense"):
            self._set("scale_fan", scale_fan=False)
        elif init not in SCALED_INITS:
            self._say("scale_fan", f"without effect on init {init}, as in biprop")
        elif self.prune_rate == 1:
            raise RecipeError("scale_fan: divides by 1 - prune_rate, which is 0")
        else:
            self._set("scale_fan", scale_fan="pruned")

    def _training(self) -> None:
        optimizer = self._get("optimizer")
        if optimizer not in ("sgd", "adam"):
            raise RecipeError(f"optimizer: {optimizer}: biprop has sgd and adam")
        self._set("optimizer", optimizer=optimizer)
        for key, name in (("lr", "lr"), ("epochs", "epochs"), ("batch_size", "batch_size")):
            self._set(key, **{name: self._number(key, float if key == "lr" else int)})
        if optimizer == "sgd":
            self._set("momentum", momentum=self._number("momentum"))
            self._set("nesterov", nesterov=self._flag("nesterov"))
            self._set("weight_decay", weight_decay=self._number("weight_decay"))
        else:
            self.fields["weight_decay"] = 0.0
            for key in ("momentum", "nesterov", "weight_decay"):
                self._say(key, "without effect: biprop's Adam ignores it (weight_decay=0)")
        if self._flag("no_bn_decay") and self.fields["bn"] == "affine" and optimizer == "sgd":
            raise RecipeError("no_bn_decay: mpt_fast decays all that it trains; set it to false")
        self._say("no_bn_decay", "without effect here")
        smooth = 0.0 if self._get("label_smoothing") is None else self._number("label_smoothing")
        self._set("label_smoothing", label_smoothing=smooth)
        seed = self._get("seed")
        self._set("seed", seed=0 if seed is None else self._number("seed", int))

    def _schedule(self) -> None:
        policy = self._get("lr_policy") or "constant_lr"
        warmup = self._number("warmup_length", int)
        if policy in ("constant_lr", "cosine_lr"):
            self._set("lr_policy", schedule=policy.removesuffix("_lr"))
            self._set("warmup_length", warmup_epochs=warmup)
            for key in ("lr_adjust", "lr_gamma"):
                self._say(key, f"without effect with {policy}")
            return
        if policy == "multistep_lr":
            every = self._number("lr_adjust", int)
            milestones = tuple(range(every, self.fields["epochs"], every))
            self._set("lr_gamma", gamma=self._number("lr_gamma"))
            self._say("lr_adjust", f"milestones={list(milestones)}")
        elif policy in _STEPS:
            milestones = _STEPS[policy]
            for key in ("lr_adjust", "lr_gamma"):
                self._say(key, f"without effect with {policy}")
        else:
            reason = "mixes steps and a cosine" if policy == "cos_multi_lr" else "is not biprop's"
            raise RecipeError(f"lr_policy: {policy}: {reason}; no schedule of mpt_fast does that")
        self._set("lr_policy", schedule="multistep", milestones=list(milestones))
        self._say("warmup_length", f"without effect with {policy}, as in biprop")

    def _augmentation(self) -> None:
        gaussian, augmix, jsd = (self._flag(k) for k in ("gaussian_aug", "augmix", "jsd"))
        share = 1 - self._number("p_clean")
        noisy = gaussian and share > 0
        self._set("gaussian_aug", noise_share=share if noisy else 0.0)
        self._set("std_gauss", noise_std=self._number("std_gauss"))
        self._say("p_clean", f"noise_share={share if noisy else 0.0:g}")
        # gaussian_aug comes first in biprop: with both, there is no AugMix
        self._set("augmix", augmix=augmix and not gaussian)
        self._set("mixture_width", augmix_width=self._number("mixture_width", int))
        self._set("mixture_depth", augmix_depth=self._number("mixture_depth", int))
        self._set("aug_severity", augmix_severity=self._number("aug_severity", int))
        self._set("jsd", jsd=_JSD_WEIGHT if jsd and (noisy or self.fields["augmix"]) else 0.0)
