"""The layers that every network is made of: one call each, ticket or dense.

A network is defined once, against `Layers`; whether a call gives a ticket layer or an ordinary one,
a ReLU or a sign, a trained or a frozen batch norm is decided here.
"""

import logging
from collections.abc import Sequence
from typing import Literal, TypedDict, TypeVar, get_args

import torch
from torch import nn

from mpt_fast.config import Compatibility, TicketConfig
from mpt_fast.nn import BinaryActivation, MPTConv2d, MPTLinear, SignActivation, batch_norm
from mpt_fast.selection import EmptiedLayerError, update_masks

Activation = Literal["relu", "binary"]
Norm = Literal["affine", "frozen"]
ImageSize = int | Sequence[int]
Network = TypeVar("Network", bound=nn.Module)

DEFAULT_TICKET = TicketConfig()

_log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """What every network of this package takes, by keyword.

    activation: "relu", or "binary" for signs (MPT-1/1).
    width: factor on every channel count except the image's and the classes'; c becomes
        int(c * width).
    config: the ticket's TicketConfig; None builds the dense twin, ordinary layers without bias,
        Kaiming normal (fan in) weights, everything trainable.
    bn: "affine" trains the batch norm's slope and shift, "frozen" has none. None: "frozen" in a
        ticket, so that nothing but scores is ever trained, "affine" in a dense network.
    image_size: height and width of the images, or one number for both. Networks with a flatten
        head are built for it; those with global average pooling take any size.
    compat: "biprop" gives a dense network biprop's sign(0) and logits; a ticket's config says it.
    """

    activation: Activation
    width: float
    config: TicketConfig | None
    bn: Norm | None
    image_size: ImageSize
    compat: Compatibility


class Layers:
    """Makes the layers of one network. The arguments are those of `Options`, checked here."""

    def __init__(
        self,
        activation: Activation = "relu",
        width: float = 1.0,
        config: TicketConfig | None = DEFAULT_TICKET,
        bn: Norm | None = None,
        image_size: ImageSize = 32,
        compat: Compatibility = "none",
    ) -> None:
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be 'relu' or 'binary', got {activation!r}")
        if isinstance(width, bool) or not isinstance(width, (int, float)):
            raise TypeError(f"width must be a number above 0, got {width!r}")
        if not 0 < width < float("inf"):
            raise ValueError(f"width must be finite and above 0, got {width!r}")
        if config is not None and not isinstance(config, TicketConfig):
            raise TypeError(
                f"config must be a TicketConfig or None (dense), got {type(config).__name__}"
            )
        if bn is not None and bn not in get_args(Norm):
            raise ValueError(f"bn must be 'affine', 'frozen' or None, got {bn!r}")
        if compat not in get_args(Compatibility):
            raise ValueError(f"compat must be 'none' or 'biprop', got {compat!r}")
        self.activation = activation
        self.width = width
        self.config = config
        self.bn: Norm = bn or ("affine" if config is None else "frozen")
        self.image_size = _image_size(image_size)
        self.as_biprop = "biprop" in (compat, config.compat if config else None)

    def scaled(self, channels: float) -> int:
        """int(channels * width); ValueError if nothing is left."""
        scaled = int(channels * self.width)
        if scaled < 1:
            raise ValueError(f"width {self.width:g} leaves no channel of {channels:g}; raise it")
        return scaled

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> nn.Module:
        """A convolution without bias, padded by kernel_size // 2."""
        padding = kernel_size // 2
        if self.config is not None:
            return MPTConv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                groups=groups,
                config=self.config,
            )
        dense = nn.utils.skip_init(
            nn.Conv2d,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups=groups,
            bias=False,
            device=torch.get_default_device(),
        )
        return _kaiming(dense)

    def linear(self, in_features: int, out_features: int, bias: bool = False) -> nn.Module:
        """A linear layer; a bias starts at 0."""
        if self.config is not None:
            return MPTLinear(in_features, out_features, bias, config=self.config)
        dense = nn.utils.skip_init(
            nn.Linear, in_features, out_features, bias=bias, device=torch.get_default_device()
        )
        return _kaiming(dense)

    def norm(self, channels: int, dims: Literal[1, 2] = 2) -> nn.Module:
        """Batch norm of [N, C, H, W] (dims=2) or [N, C] (dims=1)."""
        return batch_norm(channels, self.bn, dims)

    def act(self) -> nn.Module:
        """The activation between layers."""
        if self.activation == "relu":
            return self.relu()
        return SignActivation() if self.as_biprop else BinaryActivation()

    def relu(self) -> nn.Module:
        """A ReLU whatever the activation; in place in dense networks, where that saves time."""
        return nn.ReLU(inplace=self.config is None)

    def finish(self, network: Network) -> Network:
        """The finished network, its masks selected by one threshold if the scope is global.

        Scores start at the size 1 / sqrt(fan_in), so at a high sparsity one threshold may empty
        the widest layers of an untrained network. The layers then keep the masks they were made
        with, each at the config's sparsity, and the first `update_masks` that empties a layer
        says so: start training at a lower sparsity (`cubic_sparsity`).
        """
        if self.config is not None and self.config.scope == "global":
            try:
                update_masks(network)
            except EmptiedLayerError as error:
                _log.info("the new network keeps its layerwise masks: %s", error)
        return network


def check_count(name: str, value: int) -> int:
    """`value` if it is an int of at least 1; ValueError or TypeError naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _image_size(size: ImageSize) -> tuple[int, int]:
    if not isinstance(size, int | Sequence) or isinstance(size, str):
        raise TypeError(f"image_size must be one number or (height, width), got {size!r}")
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2:
        raise ValueError(f"image_size must be one number or (height, width), got {size!r}")
    return check_count("image_size", both[0]), check_count("image_size", both[1])


def _kaiming(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
