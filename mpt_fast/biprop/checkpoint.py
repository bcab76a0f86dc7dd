"""biprop's checkpoints (`model_best.pth`, `*.state`) as networks of mpt_fast, read strictly.

A checkpoint is a pickle. It is read with PyTorch's weights-only reader, which builds tensors and
plain values and never runs code from the file.
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpt_fast.biprop.networks import Network, network
from mpt_fast.config import Compatibility, TicketConfig
from mpt_fast.models import build
from mpt_fast.selection import ticket_layers, update_masks
from mpt_fast.training.checkpoint import CheckpointError

__all__ = ["BipropCheckpoint", "load_biprop_checkpoint"]

_SCOPES = {"SubnetConv": "layer", "GlobalSubnetConv": "global"}
_CONV_TYPES = (*_SCOPES, "DenseConv")
_DERIVED = ("threshold", "tie_limit")  # a ticket's buffers that follow from its scores
_LFS = b"version https://git-lfs"


class BipropCheckpoint(NamedTuple):
    """`model`, in evaluation mode on the CPU, and what else the file says.

    about: arch, conv_type, prune_rate, epoch, best_acc1 and the like, as far as the file has them;
    without weights and optimiser. In runs with GlobalSubnetConv the stored prune_rate is that of
    the file's epoch, which is above the requested one early in the run.
    """

    model: nn.Module
    about: dict[str, Any]


def load_biprop_checkpoint(
    path: str | Path,
    *,
    arch: str | None = None,
    conv_type: str | None = None,
    prune_rate: float | None = None,
    width_mult: float | None = None,
    compat: Compatibility = "biprop",
) -> BipropCheckpoint:
    """Read a checkpoint of biprop, old or new, with or without `module.` before its names.

    Args:
        path: a `model_best.pth` or `.state` file.
        arch, conv_type, prune_rate: override what the file says; files of before February 2022
            have neither conv_type ("SubnetConv", "GlobalSubnetConv", "DenseConv") nor prune_rate
            (the fraction KEPT), so there they must be given.
        width_mult: of a Wide network; needed only where its rounding hides it.
        compat: "biprop" computes gains, ties and sign(0) as biprop does; "none" as mpt_fast does,
            so that binary networks pack whole. Small ResNets have 40 logits with "biprop" only.

    Width, classes, image channels and kind of batch norm are read off the tensors. Every tensor of
    the file must find its place and the other way round.

    Raises CheckpointError (a ValueError) naming file, entry and remedy.
    """
    path = Path(path)
    try:
        stored = _read(path)
        state = _without_module(stored["state_dict"])
        name = arch or stored.get("arch")
        if not isinstance(name, str):
            raise CheckpointError("does not say its arch; give arch=")
        found = network(name)
        kind = conv_type or stored.get("conv_type")
        config = _config(kind, prune_rate, stored.get("prune_rate"), compat)
        ours = {_our_name(key): value for key, value in state.items()}
        model = _build(found, ours, config, width_mult, compat)
        _load(model, ours)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    about = {k: v for k, v in stored.items() if k not in ("state_dict", "optimizer")}
    rate = None if config is None else config.density
    about |= {"arch": name, "conv_type": kind, "prune_rate": rate}
    return BipropCheckpoint(model.eval(), about)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise CheckpointError("is a Git-LFS pointer, not the checkpoint; run git lfs pull")
        with torch.serialization.safe_globals(_numpy_scalars()):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise CheckpointError(
            f"not read, since it holds more than tensors and plain values ({reason}); what it "
            "holds could run code"
        ) from None
    except (RuntimeError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"damaged or no PyTorch file ({reason}); get it again") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("state_dict"), Mapping):
        raise CheckpointError("has no state_dict; give a model_best.pth or .state file of biprop")
    return stored


def _numpy_scalars() -> list[Any]:
    """What NumPy numbers are pickled through; the rates of biprop's cosine are such numbers."""
    from numpy.dtypes import Float64DType, Int64DType

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        Float64DType,
        Int64DType,
    ]


def _without_module(state: Mapping[str, Any]) -> dict[str, Tensor]:
    prefixed = [key for key in state if key.startswith("module.")]
    if prefixed and len(prefixed) < len(state):
        other = next(key for key in state if not key.startswith("module."))
        raise CheckpointError(f"some names begin with 'module.' and {other!r} does not")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{key!r} is no tensor")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _config(
    kind: Any, given: float | None, stored: Any, compat: Compatibility
) -> TicketConfig | None:
    """The ticket's configuration; None for a dense network."""
    if kind is None:
        raise CheckpointError(f"does not say its conv_type; give conv_type=, {_CONV_TYPES}")
    if kind not in _CONV_TYPES:
        raise CheckpointError(f"conv_type {kind}: mpt_fast has {', '.join(_CONV_TYPES)}")
    if kind == "DenseConv":
        return None
    rate = given if given is not None else stored
    if rate is None:
        raise CheckpointError("does not say its prune_rate; give prune_rate=, the fraction kept")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise CheckpointError(f"prune_rate {rate}: the fraction kept must lie in (0, 1]")
    return TicketConfig(sparsity=1 - rate, scope=_SCOPES[kind], compat=compat)  # type: ignore[arg-type]  # looked up


def _our_name(name: str) -> str:
    return name.replace(".downsample.", ".shortcut.")


def _build(
    found: Network,
    state: Mapping[str, Tensor],
    config: TicketConfig | None,
    width_mult: float | None,
    compat: Compatibility,
) -> nn.Module:
    """The network with the file's width, classes, channels and kind of batch norm."""
    weights = [(key, value) for key, value in state.items() if value.dim() == 4]
    if not weights:
        raise CheckpointError("holds no convolution; is it a checkpoint of biprop?")
    first, last = weights[0][1], [v for k, v in weights if k.endswith(".weight")][-1]
    affine = any(key.removesuffix("running_mean") + "bias" in state for key in _norms(state))
    size = found.image[1]
    options: dict[str, Any] = dict(found.options)
    if found.width_per_mult is not None:
        seen = first.shape[0] / (128 if found.model == "vgg_small" else 64)
        options["width"] = seen if width_mult is None else width_mult * found.width_per_mult
    channels = 1 if found.model == "fc" else first.shape[1]
    return build(
        found.model,
        num_classes=last.shape[0],
        in_channels=channels,
        activation=found.activation,
        image_size=size,
        config=config,
        bn="affine" if affine else "frozen",
        compat=compat,
        **options,
    )


def _norms(state: Mapping[str, Tensor]) -> Iterator[str]:
    return (key for key in state if key.endswith("running_mean"))


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy every tensor to its place; its 1x1 kernels are linear layers where ours are."""
    places = model.state_dict()
    wanted = {key for key in places if key.rsplit(".", 1)[-1] not in _DERIVED}
    missing, extra = sorted(wanted - set(state)), sorted(set(state) - wanted)
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r} besides"
        more = len(missing) + len(extra) - 1
        raise CheckpointError(
            f"{what}{f' and {more} more differ' if more else ''}: not the network that arch and "
            "conv_type say; give the right ones"
        )
    fitted = {}
    for key, value in state.items():
        shape = places[key].shape
        if value.dim() == 4 and len(shape) == 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        if value.shape != shape:
            raise CheckpointError(
                f"{key!r} has shape {tuple(value.shape)} and arch says {tuple(shape)}; give the "
                "right arch"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{key!r} holds NaN or infinity; use another checkpoint")
        fitted[key] = value
    model.load_state_dict(fitted, strict=False)
    layers = ticket_layers(model).values()
    for layer in layers:
        if layer.config.scope == "layer":
            layer.reset_selection()
    update_masks(model)
