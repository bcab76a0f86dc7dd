"""biprop's networks by their names there, as networks of `mpt_fast.models`."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NETWORKS", "Network", "network"]


@dataclass(frozen=True)
class Network:
    """A network of `mpt_fast.models`: its name, activation and further arguments.

    width_per_mult: our width for biprop's width_mult of 1; None where it ignores width_mult.
    image: (channels, side) that it was made for.
    """

    model: str
    activation: str = "relu"
    options: Mapping[str, Any] = field(default_factory=dict)
    width_per_mult: float | None = None
    image: tuple[int, int] = (3, 32)


def _networks() -> dict[str, Network]:
    found: dict[str, Network] = {"FC": Network("fc", image=(1, 28))}
    for suffix, activation in (("", "relu"), ("_BinAct", "binary")):
        for depth in (2, 4, 6, 8):
            found[f"Conv{depth}{suffix}"] = Network(f"conv{depth}", activation)
        for depth in (4, 6, 8):
            found[f"Conv{depth}Wide{suffix}"] = Network(
                f"conv{depth}", activation, width_per_mult=1.0
            )
        for depth in (18, 34, 50, 101, 20, 32, 44, 56, 110):
            found[f"cResNet{depth}{suffix}"] = Network(f"resnet{depth}", activation)
        found[f"cWideResNet18_2{suffix}"] = Network("wide_resnet18", activation, {"widen": 2.0})
        found[f"cResNet18{suffix}_v2"] = Network("resnet18", activation, {"v2": True})
        for depth in (18, 34, 50, 101):
            found[f"ResNet{depth}{suffix}"] = _imagenet(f"resnet{depth}", activation)
        found[f"WideResNet34_2{suffix}"] = _imagenet("wide_resnet34", activation, widen=2.0)
        found[f"WideResNet50_2{suffix}"] = _imagenet("wide_resnet50", activation)
    for name in ("cResNet34", "cResNet50_BinAct", "cResNet101_BinAct"):  # not exported there
        del found[name]
    found |= {
        "VGG_Small": Network("vgg_small", options={"layout": "plain"}),
        "VGG_Small_BinAct": Network("vgg_small", "binary", {"layout": "staged"}),
        "VGG_Small_noReLU_BinAct": Network("vgg_small", "binary", {"layout": "staged"}),
        "VGG_Small_bn_BinAct": Network("vgg_small", "binary", {"layout": "normed"}),
        # widths int(16 m), int(32 m), int(64 m): our 128, 256 and 512 by m / 8
        "Wide_VGG_Small": Network("vgg_small", "binary", {"layout": "normed"}, 1 / 8),
        "Wide_VGG_Small_132": Network("vgg_small", "relu", {"layout": "normed"}, 1 / 8),
        "WideResNet101_2": _imagenet("wide_resnet101"),
        "WideResNet18_2_BinAct": _imagenet("wide_resnet18", "binary", widen=2.0),
        "WideResNet18_3_BinAct": _imagenet("wide_resnet18", "binary", widen=2.5),
        "WideResNet34_3_BinAct": _imagenet("wide_resnet34", "binary", widen=3.0),
        "ResNet34_BinAct_v2": _imagenet("resnet34", "binary", v2=True),
        "WideResNet18_2_BinAct_v2": _imagenet("wide_resnet18", "binary", widen=2.0, v2=True),
        "WideResNet34_2_BinAct_v2": _imagenet("wide_resnet34", "binary", widen=2.0, v2=True),
        "WideResNet34_3_BinAct_v2": _imagenet("wide_resnet34", "binary", widen=3.0, v2=True),
        "WideResNet50_2_BinAct_v2": _imagenet("wide_resnet50", "binary", widen=2.0, v2="twice"),
        "ResNet18_v2": _imagenet("resnet18", v2="twice"),
        "ResNet34_v2": _imagenet("resnet34", v2="twice"),
        "WideResNet18_v2": _imagenet("wide_resnet18", widen=2.0, v2="twice"),
        "WideResNet34_2_v2": _imagenet("wide_resnet34", widen=2.0, v2="twice"),
        "cWideResNet18_3_BinAct": Network("wide_resnet18", "binary", {"widen": 3.0}),
        "cifarResNet18_BinAct": Network("imagenet_resnet18", "binary"),
    }
    return found


def _imagenet(model: str, activation: str = "relu", **options: Any) -> Network:
    return Network(f"imagenet_{model}", activation, options, image=(3, 224))


NETWORKS: dict[str, Network] = _networks()
"""Every `arch` of biprop that works there and has a counterpart here."""

_BROKEN = {
    "ResNet50_v2": "crashes in biprop: it uses a batch norm on another number of channels",
    "WideResNet50_2_v2": "crashes in biprop: it uses a batch norm on another number of channels",
    "ResNet50_BinAct_v2": "crashes in biprop: its fourth batch norm has the wrong width",
    "ResNet50_2_BinAct_v2": "is listed in biprop and does not exist there",
    "cifarWideResNet18_2_BinAct": "crashes in biprop: an argument its class does not take",
    "cifarWideResNet18_3_BinAct": "crashes in biprop: an argument its class does not take",
    **dict.fromkeys(
        ("Conv8Wide_BinAct_ReLU", "Conv8Wide_BinAct_ReLU_Final_Act"),
        "mixes signs and ReLU in a layout that mpt_fast's networks do not have",
    ),
}


def network(arch: str) -> Network:
    """The network of this name in biprop; ValueError with the reason where there is none."""
    if arch in NETWORKS:
        return NETWORKS[arch]
    if arch in _BROKEN:
        raise ValueError(f"arch {arch}: {_BROKEN[arch]}")
    close = difflib.get_close_matches(arch, NETWORKS, n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else f" (known: {', '.join(NETWORKS)})"
    raise ValueError(f"arch {arch!r} is not one of biprop's networks{hint}")
