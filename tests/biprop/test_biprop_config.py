"""biprop's recipe files: every key is mapped, or refused with its reason."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mpt_fast.biprop import NETWORKS, read_config
from mpt_fast.training import Recipe, RecipeError

CONV = {
    "arch": "Conv4", "data": "/mnt", "set": "CIFAR10", "name": "x", "optimizer": "sgd", "lr": 0.1,
    "lr_policy": "cosine_lr", "epochs": 100, "weight_decay": 0.0001, "momentum": 0.9,
    "batch_size": 128, "conv_type": "SubnetConv", "bn_type": "NonAffineBatchNorm",
    "freeze_weights": True, "prune_rate": -1, "init": "kaiming_normal", "scale_fan": True,
    "workers": 4,
}  # fmt: skip
IMAGENET = {
    **CONV, "arch": "ResNet50", "set": "ImageNet", "lr": 0.256, "warmup_length": 5,
    "momentum": 0.875, "weight_decay": 0.000030517578125, "batch_size": 256,
    "label_smoothing": 0.1, "init": "signed_constant", "bn_type": "AffineBatchNorm",
}  # fmt: skip
DENSE = {
    "arch": "Conv4Wide", "data": "/mnt", "set": "CIFAR10", "optimizer": "adam", "lr": 0.0003,
    "lr_policy": "cosine_lr", "epochs": 100, "weight_decay": 0.0001, "momentum": 0.9,
    "batch_size": 60, "conv_type": "DenseConv", "bn_type": "NonAffineBatchNorm", "width_mult": 1,
    "workers": 4, "log_dir": "runs",
}  # fmt: skip


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(values))
    return path


def fields(folder: Path, values: dict[str, Any], rate: float | None = 0.5) -> Recipe:
    return read_config(written(folder, values), rate).recipe


def test_conv_recipe(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, CONV), 0.2)
    assert config.recipe == Recipe(
        model="conv4", data="cifar10", augment="crop-flip", sparsity=0.8, scope="layer",
        scale_fan="pruned", optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4,
        schedule="cosine", epochs=100, batch_size=128, trains="scores", compat="biprop", amp="none",
    )  # fmt: skip
    assert {line.key for line in config.lines} == set(CONV)
    assert all(line.became for line in config.lines)
    assert "prune_rate: 0.2 -> sparsity=0.8" in map(str, config.lines)


@pytest.mark.parametrize("kind", ["SubnetConv", "GlobalSubnetConv", "DenseConv"])
@pytest.mark.parametrize("policy", ["cosine_lr", "multistep_lr", "xnor_lr"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_key_says_what_it_became(
    tmp_path: Path, kind: str, policy: str, optimizer: str
) -> None:
    more = {"nesterov": False, "no_bn_decay": False, "label_smoothing": 0.1, "prune_rate": 0.3,
            "prune_rate_epoch": 10, "learn_batchnorm": False, "tune_batchnorm": False,
            "bn_bias_only": False, "mode": "fan_in", "nonlinearity": "relu", "scale_fan": False,
            "width_mult": 1.0, "seed": 3, "augmix": False, "jsd": False, "mixture_width": 3,
            "mixture_depth": -1, "aug_severity": 3, "gaussian_aug": False, "std_gauss": 0.1,
            "p_clean": 1.0, "lr_adjust": 20, "lr_gamma": 0.1, "warmup_length": 0,
            "trainer": "default", "low_data": 1, "first_layer_dense": False, "num_classes": 10,
            "freeze_weights": kind != "DenseConv"}  # fmt: skip
    values = {**CONV, **more, "conv_type": kind, "lr_policy": policy, "optimizer": optimizer}
    lines = read_config(written(tmp_path, values)).lines
    assert sorted(line.key for line in lines) == sorted(values)
    assert [line.key for line in lines if not line.became] == []


def test_imagenet_recipe(tmp_path: Path) -> None:
    recipe = fields(tmp_path, IMAGENET, 0.3)
    assert (recipe.model, recipe.data, recipe.augment) == (
        "imagenet_resnet50", "imagefolder", "resized-crop-flip",
    )  # fmt: skip
    assert (recipe.lr, recipe.warmup_epochs, recipe.label_smoothing) == (0.256, 5, 0.1)
    assert (recipe.weight_init, recipe.bn, recipe.trains) == ("signed_constant", "affine", "scores")
    assert recipe.sparsity == 1 - 0.3


def test_dense_recipe_keeps_its_signs_and_norms(tmp_path: Path) -> None:
    recipe = fields(tmp_path, {**DENSE, "arch": "Conv4Wide_BinAct", "width_mult": 0.5}, None)
    assert (recipe.dense, recipe.width, recipe.weight_decay) == (True, 0.5, 0.0)
    model = recipe.build((3, 32, 32), 10)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"Conv2d", "SignActivation"} <= kinds
    assert not {"ReLU", "MPTConv2d", "BinaryActivation"} & kinds


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_network_is_one_of_ours(arch: str, tmp_path: Path) -> None:
    found = NETWORKS[arch]
    data = {1: "MNIST", 3: "CIFAR10" if found.image[1] == 32 else "ImageNet"}[found.image[0]]
    recipe = fields(tmp_path, {**CONV, "arch": arch, "set": data, "width_mult": 10})
    assert recipe.model == found.model
    assert recipe.width == (10 * found.width_per_mult if found.width_per_mult else 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conv_type": "GlobalSubnetConv"}, {"scope": "global", "progressive_epochs": 10}),
        ({"conv_type": "GlobalSubnetConv", "prune_rate_epoch": 4}, {"progressive_epochs": 4}),
        ({"learn_batchnorm": True}, {"trains": "scores+norm"}),
        ({"bn_bias_only": True}, {"trains": "scores+bias"}),
        ({"learn_batchnorm": True, "tune_batchnorm": True, "bn_type": "AffineBatchNorm"},
         {"trains": "norm", "bn": "affine"}),
        ({"bn_bias_only": True, "tune_batchnorm": True, "bn_type": "LearnedBatchNorm"},
         {"trains": "bias"}),
        ({"freeze_weights": False}, {"trains": "scores+norm"}),
        ({"tune_batchnorm": True}, {"trains": "scores"}),
        ({"optimizer": "adam"}, {"optimizer": "adam", "weight_decay": 0.0}),
        ({"init": "ones"}, {"weight_init": "ones", "scale_fan": False}),
        ({"scale_fan": False}, {"scale_fan": False}),
        ({"lr_policy": "multistep_lr", "lr_adjust": 30, "lr_gamma": 0.5, "warmup_length": 3},
         {"schedule": "multistep", "milestones": (30, 60, 90), "gamma": 0.5, "warmup_epochs": 0}),
        ({"lr_policy": "xnor_lr"}, {"milestones": (30, 44, 54), "gamma": 0.1}),
        ({"lr_policy": "mpt11_w18_2_v2_lr"}, {"milestones": (35, 50, 60, 60)}),
        ({"lr_policy": "constant_lr", "warmup_length": 5},
         {"schedule": "constant", "warmup_epochs": 5}),
        ({"augmix": True, "jsd": True, "mixture_width": 4, "aug_severity": 2},
         {"augmix": True, "jsd": 12.0, "augmix_width": 4, "augmix_severity": 2}),
        ({"gaussian_aug": True, "p_clean": 0.25, "std_gauss": 0.2},
         {"noise_share": 0.75, "noise_std": 0.2, "augmix": False}),
        ({"gaussian_aug": True}, {"noise_share": 0.0}),
        ({"arch": "Wide_VGG_Small", "width_mult": 10},
         {"model": "vgg_small", "width": 1.25, "options": {"layout": "normed"}}),
        ({"seed": 7, "nesterov": True}, {"seed": 7, "nesterov": True}),
    ],
)  # fmt: skip
def test_keys(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = fields(tmp_path, {**CONV, **changes})
    assert {key: getattr(recipe, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "rate", "reason"),
    [
        ({}, None, "prune_rate: -1 means that it must be given; add --prune-rate K"),
        ({}, 1.5, "prune_rate: 1.5: the fraction kept"),
        ({"conv_type": "GlobalSubnetConv"}, 1.0, "prune_rate: 1: GlobalSubnetConv then prunes"),
        ({}, 1.0, "scale_fan: divides by 1 - prune_rate"),
        ({"learning_rate": 0.1}, 0.5, "learning_rate: biprop has no such key"),
        ({"prune_rat": 0.1}, 0.5, "prune_rat: biprop has no such key; did you mean prune_rate"),
        ({"arch": "ResNet50_v2"}, 0.5, "arch ResNet50_v2: crashes in biprop"),
        ({"arch": "Conv5"}, 0.5, "arch 'Conv5' is not one of biprop's networks; did you mean"),
        ({"conv_type": "SampleSubnetConv"}, 0.5, "conv_type: SampleSubnetConv: mpt_fast has"),
        ({"conv_type": None}, 0.5, "conv_type: None: mpt_fast has"),
        ({"conv_type": "DenseConv"}, 0.5, "freeze_weights: with conv_type DenseConv nothing"),
        ({"conv_type": "GlobalSubnetConv", "epochs": 10}, 0.2, "prune_rate_epoch: 10: the run"),
        ({"bn_type": "BatchNorm"}, 0.5, "bn_type: BatchNorm: biprop has"),
        ({"learn_batchnorm": True, "tune_batchnorm": True}, 0.5, "tune_batchnorm: trains batch"),
        ({"init": "binary"}, 0.5, "init: binary: crashes in biprop"),
        ({"nonlinearity": "BinAct"}, 0.5, "nonlinearity: BinAct: does not work in biprop"),
        ({"lr_policy": "cos_multi_lr"}, 0.5, "lr_policy: cos_multi_lr: mixes"),
        ({"lr": "fast"}, 0.5, "lr: 'fast' is not a number"),
        ({"epochs": 1.5}, 0.5, "epochs: 1.5 is not an integer"),
        ({"nesterov": "maybe"}, 0.5, "nesterov: 'maybe' is neither true nor false"),
        ({"last_layer_dense": True}, 0.5, "last_layer_dense: True: mpt_fast's networks"),
        ({"pretrained": "x.pth"}, 0.5, "pretrained: x.pth: read the checkpoint with"),
        ({"trainer": "anomaly"}, 0.5, "trainer: anomaly: only the default"),
        ({"set": "SVHN"}, 0.5, "set: SVHN: mpt_fast reads CIFAR10"),
        ({"set": "MNIST"}, 0.5, "set: MNIST: the images have 1 channels and Conv4 takes 3"),
        ({"momentum": 1.2}, 0.5, "momentum must be below 1"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], rate: float | None, reason: str) -> None:
    path = written(tmp_path, {**CONV, **changes})
    with pytest.raises(RecipeError) as caught:
        read_config(path, rate)
    message = str(caught.value)
    assert message.startswith(f"{path}: {reason}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "reason"), [("- a\n", "must be lines"), ("a: [", "not valid YAML"), (None, "cannot")]
)
def test_wrong_files(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "x.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=reason):
        read_config(path, 0.5)
