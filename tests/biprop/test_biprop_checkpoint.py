"""biprop's checkpoints: both ages, strict, without running code, equal to biprop's formulas."""

import pickle
from pathlib import Path
from typing import Any

import biprop_formulas as formulas
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpt_fast
from mpt_fast import models
from mpt_fast.biprop import load_biprop_checkpoint
from mpt_fast.config import TicketConfig
from mpt_fast.nn import MPTConv2d, SignActivation
from mpt_fast.selection import ticket_layers
from mpt_fast.training.checkpoint import CheckpointError

K = 0.3


def theirs(model: nn.Module, prefix: str = "module.") -> dict[str, Tensor]:
    """Our network's tensors under biprop's names and shapes (linear layers are 1x1 kernels)."""
    state = {}
    for name, value in model.state_dict().items():
        kind = name.rsplit(".", 1)[-1]
        if kind in ("threshold", "tie_limit"):
            continue
        linear = value.dim() == 2 and kind in ("weight", "scores")
        state[prefix + name] = value[:, :, None, None] if linear else value
    return state


def document(model: nn.Module, arch: str = "Conv2", **changes: Any) -> dict[str, Any]:
    """What biprop saves: its cosine makes learning rates NumPy numbers."""
    return {
        "epoch": 3,
        "arch": arch,
        "state_dict": theirs(model),
        "best_acc1": 91.5,
        "curr_acc1": "Not evaluated",
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.05), "params": [0]}]},
        "conv_type": "SubnetConv",
        "prune_rate": K,
        "train_augmentation": "Default",
        "augmix_mixture_width": 3,
        **changes,
    }


def ticket(name: str = "conv2", scope: str = "layer", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = TicketConfig(sparsity=1 - K, scope=scope, compat="biprop")  # type: ignore[arg-type]
    return models.build(name, config=config, **options).eval()


@pytest.fixture(scope="module")
def conv2() -> nn.Module:
    return ticket()


def saved(folder: Path, content: Any, name: str = "model_best.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def test_a_new_file_gives_the_same_network(conv2: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path, document(conv2))
    model, about = mpt_fast.load_biprop_checkpoint(path)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(model(x), conv2(x))
    assert not model.training
    assert (about["epoch"], about["best_acc1"], about["prune_rate"]) == (3, 91.5, K)
    assert "state_dict" not in about
    layer = next(m for m in model.modules() if isinstance(m, MPTConv2d))
    mask = formulas.layerwise_mask(layer.scores.detach(), K)
    gain = formulas.layerwise_gain(layer.weight.detach(), mask, K)
    effective = formulas.effective_weight(layer.scores, layer.weight, mask, gain)
    assert torch.equal(layer.effective_weight(), effective.detach())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_old_file_needs_what_it_does_not_say(
    conv2: nn.Module, tmp_path: Path, prefix: str
) -> None:
    old = {"epoch": 1, "arch": "Conv2", "state_dict": theirs(conv2, prefix), "best_acc1": 1.0}
    path = saved(tmp_path, old, "epoch_0.state")
    with pytest.raises(CheckpointError, match="does not say its conv_type; give conv_type="):
        load_biprop_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not say its prune_rate; give prune_rate="):
        load_biprop_checkpoint(path, conv_type="SubnetConv")
    model, about = load_biprop_checkpoint(path, conv_type="SubnetConv", prune_rate=K)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), conv2(x))
    assert about["conv_type"] == "SubnetConv"


def test_arguments_override_the_file(conv2: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path, document(conv2, conv_type="GlobalSubnetConv", prune_rate=0.5))
    model, about = load_biprop_checkpoint(path, conv_type="SubnetConv", prune_rate=0.1)
    for layer in ticket_layers(model).values():
        assert layer.config.scope == "layer"
        size = layer.weight.numel()
        assert int(layer.mask().sum()) == size - int((1 - 0.1) * size)
    assert about["prune_rate"] == 0.1


def test_global_masks_are_selected_anew(tmp_path: Path) -> None:
    model = ticket(scope="global")
    path = saved(tmp_path, document(model, conv_type="GlobalSubnetConv"))
    loaded, _ = load_biprop_checkpoint(path)
    layers = list(ticket_layers(loaded).values())
    masks = formulas.global_masks([layer.scores.detach() for layer in layers], K)
    assert all(torch.equal(a.mask(), b.bool()) for a, b in zip(layers, masks, strict=True))


@pytest.mark.parametrize(
    ("arch", "name", "options"),
    [
        ("Conv4Wide_BinAct", "conv4", {"activation": "binary", "width": 0.25}),
        ("Wide_VGG_Small", "vgg_small",
         {"activation": "binary", "layout": "normed", "width": 0.25, "bn": "affine"}),
        ("cResNet20_BinAct", "resnet20", {"activation": "binary"}),
        ("FC", "fc", {"in_channels": 1}),
    ],
)  # fmt: skip
def test_width_norm_and_logits_are_read_off_the_file(
    tmp_path: Path, arch: str, name: str, options: dict[str, Any]
) -> None:
    model = ticket(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            if module.affine:
                nn.init.normal_(module.bias, std=0.1)
    loaded, _ = load_biprop_checkpoint(saved(tmp_path, document(model, arch)))
    x = torch.randn(2, *((1, 28, 28) if name == "fc" else (3, 32, 32)))
    assert torch.equal(loaded(x), model(x))
    assert loaded(x).shape[1] == (40 if arch == "cResNet20_BinAct" else 10)


def test_imagenet_shortcuts_are_called_downsample_there(tmp_path: Path) -> None:
    model = ticket("imagenet_resnet18", num_classes=10, activation="binary")
    content = document(model, "cifarResNet18_BinAct")
    names = content["state_dict"]
    content["state_dict"] = {k.replace(".shortcut.", ".downsample."): v for k, v in names.items()}
    assert any("downsample" in name for name in content["state_dict"])
    loaded, _ = load_biprop_checkpoint(saved(tmp_path, content))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))


def test_without_compatibility_a_binary_network_is_ours(tmp_path: Path) -> None:
    model = ticket("conv2", activation="binary")
    path = saved(tmp_path, document(model, "Conv2_BinAct"))
    ours, _ = load_biprop_checkpoint(path, compat="none")
    assert not any(isinstance(m, SignActivation) for m in ours.modules())
    layer = next(m for m in ours.modules() if isinstance(m, MPTConv2d))
    kept = layer.weight.detach()[layer.mask()].abs().double()
    assert float(layer.gain()) == pytest.approx(float(kept.mean()), rel=1e-7)


def test_dense_files(tmp_path: Path) -> None:
    model = models.build("conv2", config=None).eval()
    loaded, about = load_biprop_checkpoint(
        saved(tmp_path, document(model, conv_type="DenseConv", prune_rate=0.0))
    )
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert about["prune_rate"] is None


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {k.replace(old, new): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(arch="Conv4"), "not the network that arch and conv_type say"),
        (lambda d: d.update(arch="Conv9"), "arch 'Conv9' is not one of biprop's networks"),
        (lambda d: d.update(arch="ResNet50_v2"), "arch ResNet50_v2: crashes in biprop"),
        (lambda d: d.pop("arch"), "does not say its arch; give arch="),
        (lambda d: d.update(conv_type="DenseConv"), "has 'convs.0.scores' besides"),
        (lambda d: d.update(conv_type="FixedSubnetConv"), "conv_type FixedSubnetConv: mpt_fast"),
        (lambda d: d.update(prune_rate=-1), "prune_rate -1: the fraction kept"),
        (lambda d: d["state_dict"].pop("module.linear.4.scores"), "lacks 'linear.4.scores'"),
        (lambda d: d["state_dict"].update({"module.extra": torch.ones(1)}), "has 'extra' besides"),
        (lambda d: d["state_dict"].update({"bare": torch.ones(1)}), "some names begin with"),
        (lambda d: d["state_dict"].update({"module.linear.4.scores": torch.ones(3, 3, 1, 1)}),
         "'linear.4.scores' has shape"),
        (lambda d: d["state_dict"]["module.convs.0.scores"].fill_(float("nan")), "holds NaN"),
        (lambda d: d["state_dict"].update({"module.convs.0.scores": "x"}), "is no tensor"),
        (lambda d: d.pop("state_dict"), "has no state_dict"),
    ],
)  # fmt: skip
def test_refusals(conv2: nn.Module, tmp_path: Path, change: Any, reason: str) -> None:
    content = document(conv2)
    content["state_dict"] = {k: v.clone() for k, v in content["state_dict"].items()}
    change(content)
    path = saved(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        load_biprop_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_file_is_run(conv2: nn.Module, tmp_path: Path, zipped: bool) -> None:
    content = document(conv2, evil=Evil(tmp_path / "written"))
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    (tmp_path / "written").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="could run code"):
        load_biprop_checkpoint(path)
    assert not (tmp_path / "written").exists()


def test_old_serialisation_is_read(conv2: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "old.state"
    torch.save(document(conv2), path, _use_new_zipfile_serialization=False)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_biprop_checkpoint(path).model(x), conv2(x))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        (b"", "damaged or no PyTorch file|cannot be read"),
        (b"PK\x03\x04 cut off", "damaged or no PyTorch file"),
        (None, "cannot be read"),
        (pickle.dumps({"a": 1}, protocol=2), "no PyTorch file|could run code|no state_dict"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_biprop_checkpoint(path)
    assert "\n" not in str(caught.value)
