"""Networks by name: `build`, `dense_twin`, `names`."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args, get_type_hints

from torch import nn

from mpt_fast.models import plain, preactivation, resnet, separable

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        plain.conv2,
        plain.conv4,
        plain.conv6,
        plain.conv8,
        plain.fc,
        plain.lenet_300_100,
        plain.vgg_small,
        plain.wide_vgg_small,
        resnet.resnet18,
        resnet.resnet34,
        resnet.resnet50,
        resnet.resnet101,
        resnet.resnet20,
        resnet.resnet32,
        resnet.resnet44,
        resnet.resnet56,
        resnet.resnet110,
        resnet.wide_resnet18,
        resnet.wide_resnet34,
        resnet.wide_resnet50,
        resnet.imagenet_resnet18,
        resnet.imagenet_resnet34,
        resnet.imagenet_resnet50,
        resnet.imagenet_resnet101,
        resnet.imagenet_wide_resnet18,
        resnet.imagenet_wide_resnet34,
        resnet.imagenet_wide_resnet50,
        resnet.imagenet_wide_resnet101,
        preactivation.wrn10_1,
        preactivation.wrn22_2,
        separable.mobilenet_v1,
    )
}

# Networks whose layout follows the activation; in the others it is the same for both.
_LAYOUTS: dict[str, Mapping[str, str]] = {
    **dict.fromkeys(("conv2", "conv4", "conv6", "conv8", "fc"), plain.CONV_LAYOUTS),
    "vgg_small": plain.VGG_LAYOUTS,
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Every name that `build` knows; each is also a function of `mpt_fast.models`."""


def names() -> tuple[str, ...]:
    """Every name that `build` knows."""
    return NAMES


def option_names(name: str) -> tuple[str, ...]:
    """Names of the arguments that `build(name, ...)` takes."""
    builder = _lookup(name)
    known = [
        p.name for p in inspect.signature(builder).parameters.values() if p.kind != p.VAR_KEYWORD
    ]
    (unpacked,) = get_args(inspect.signature(builder).parameters["options"].annotation)
    return (*known, *get_type_hints(unpacked))


def build(name: str, **arguments: Any) -> nn.Module:
    """The network called `name` with the arguments of that function (see `models.Options`).

    ValueError on an unknown name and TypeError on an unknown argument, naming the closest ones.
    """
    builder = _lookup(name)
    known = option_names(name)
    for argument in arguments:
        if argument not in known:
            raise TypeError(_unknown(f"argument of {name}", argument, known))
    return builder(**arguments)


def dense_twin(name: str, **arguments: Any) -> nn.Module:
    """The dense twin of the ticket `build(name, **arguments)`: what a user would otherwise run.

    Layer for layer the ticket's layout and shapes, with trainable fp32 weights, ReLU where the
    ticket may have signs, and affine batch norm. A dense network that keeps the signs is
    `build(name, activation="binary", config=None)`.
    """
    _lookup(name)
    activation = arguments.get("activation", "relu")
    if name in _LAYOUTS and arguments.get("layout") is None and activation in _LAYOUTS[name]:
        arguments["layout"] = _LAYOUTS[name][activation]
    if activation == "binary":
        arguments["activation"] = "relu"
    return build(name, **{**arguments, "config": None, "bn": "affine"})


def _lookup(name: str) -> Callable[..., nn.Module]:
    if name not in _BUILDERS:
        raise ValueError(_unknown("model", name, NAMES))
    return _BUILDERS[name]


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"
