"""How much work a mask saves, counted: acceleration rates and multiply-accumulates."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpt_fast.nn import TicketLayer

Kind = Literal["conv", "linear"]
COUNTED = (TicketLayer, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class LayerRate:
    """One layer's share. The counts are those of one image.

    shape: the weight's shape, (O, I / groups, kernel...). output: (height, width) of its output,
    () for a linear layer; of the first call where a layer is called several times.
    positions: output positions over all calls, the D^2 of Eq. (4).
    kernels: slices W[o, i]; zero_kernels: those without a weight left. weights, kept: single
    weights, all and left.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    output: tuple[int, ...]
    positions: int
    kernels: int
    zero_kernels: int
    weights: int
    kept: int

    @property
    def zero_fraction(self) -> float:
        """Share of the kernels that have no weight left."""
        return self.zero_kernels / self.kernels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer."""
        return self.positions * self.weights

    @property
    def kernel_macs(self) -> int:
        """Multiply-accumulates if all-zero kernels are skipped."""
        return self.positions * (self.kernels - self.zero_kernels) * math.prod(self.shape[2:])

    @property
    def kept_macs(self) -> int:
        """Multiply-accumulates if every zero weight is skipped."""
        return self.positions * self.kept

    @property
    def kernel_rate(self) -> float:
        """macs / kernel_macs; infinite if the layer is empty."""
        return _rate(self.macs, self.kernel_macs)

    @property
    def weight_rate(self) -> float:
        """macs / kept_macs; infinite if the layer is empty."""
        return _rate(self.macs, self.kept_macs)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, JSON-able; an infinite rate is None."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "output": list(self.output),
            "positions": self.positions,
            "kernels": self.kernels,
            "zero_kernels": self.zero_kernels,
            "zero_fraction": self.zero_fraction,
            "weights": self.weights,
            "kept": self.kept,
            "macs": self.macs,
            "kernel_macs": self.kernel_macs,
            "kept_macs": self.kept_macs,
            "kernel_rate": _finite(self.kernel_rate),
            "weight_rate": _finite(self.weight_rate),
        }


@dataclass(frozen=True)
class AccelerationRate:
    """Counted rates of a model, per layer and in total; `print` shows a table."""

    layers: tuple[LayerRate, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layers for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def kernel_macs(self) -> int:
        """Multiply-accumulates for one image if all-zero kernels are skipped."""
        return sum(layer.kernel_macs for layer in self.layers)

    @property
    def kept_macs(self) -> int:
        """Multiply-accumulates for one image if every zero weight is skipped."""
        return sum(layer.kept_macs for layer in self.layers)

    @property
    def kernel_rate(self) -> float:
        """Eq. (4): macs / kernel_macs."""
        return _rate(self.macs, self.kernel_macs)

    @property
    def weight_rate(self) -> float:
        """macs / kept_macs."""
        return _rate(self.macs, self.kept_macs)

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers, JSON-able; an infinite rate is None."""
        return {
            "kernel_rate": _finite(self.kernel_rate),
            "weight_rate": _finite(self.weight_rate),
            "macs": self.macs,
            "kernel_macs": self.kernel_macs,
            "kept_macs": self.kept_macs,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __str__(self) -> str:
        header = ("layer", "weight", "output", "zero kernels", "kept", "MACs", "kernel", "weight")
        rows = [
            (
                layer.name or "(model)",
                "x".join(map(str, layer.shape)),
                "x".join(map(str, layer.output)) or "-",
                f"{layer.zero_kernels} of {layer.kernels} ({layer.zero_fraction:.1%})",
                f"{layer.kept} of {layer.weights}",
                f"{layer.macs:.3g}",
                f"{layer.kernel_rate:.2f}x",
                f"{layer.weight_rate:.2f}x",
            )
            for layer in self.layers
        ]
        zero = sum(layer.zero_kernels for layer in self.layers)
        kernels = sum(layer.kernels for layer in self.layers)
        kept = sum(layer.kept for layer in self.layers)
        weights = sum(layer.weights for layer in self.layers)
        total = (
            "total",
            "",
            "",
            f"{zero} of {kernels} ({zero / kernels:.1%})",
            f"{kept} of {weights}",
            f"{self.macs:.3g}",
            f"{self.kernel_rate:.2f}x",
            f"{self.weight_rate:.2f}x",
        )
        return _columns([header, *rows, total])


def acceleration_rate(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    pointwise: bool = True,
    linear: bool = True,
) -> AccelerationRate:
    """Count what the zeros of `model` save on one input of `input_shape` (without the batch).

    Eq. (4) of Efficient-MPT, AR = sum_l N_l M_l D_l^2 k_l^2 / sum_l P_l D_l^2 k_l^2, read so: N M
    is the number of kernels W[o, i] (M is I / groups), P the number of those with a weight left,
    D^2 the number of positions of the layer's OUTPUT, k^2 the kernel's size (kh * kw where it is
    not square). Beside it the per-weight rate, in which every zero weight saves its own work.

    Counted are ticket layers and Conv1d/2d/3d and Linear layers that the model's forward calls,
    with the zeros of their weight (so RigL's networks too). A 1x1 kernel and a linear layer's
    "kernel" are single weights: `pointwise=False` and `linear=False` leave those layers out, since
    the paper does not say whether it counts them.

    The model runs once in eval mode on zeros; its training flags are restored. ValueError if it
    cannot, or if no layer is left to count.
    """
    layers = []
    for name, layer, outputs in _calls(model, input_shape):
        row = _count(name, layer, outputs)
        single = math.prod(row.shape[2:]) == 1
        if (row.kind == "linear" and not linear) or (
            row.kind == "conv" and single and not pointwise
        ):
            continue
        layers.append(row)
    if not layers:
        raise ValueError("the model's forward calls no convolution or linear layer to count")
    return AccelerationRate(tuple(layers))


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of the dense convolutions and linear layers for one input."""
    return acceleration_rate(model, input_shape).macs


def count_flops(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations of the same: a multiplication and an addition for each MAC."""
    return 2 * count_macs(model, input_shape)


def _calls(
    model: nn.Module, input_shape: Sequence[int]
) -> list[tuple[str, nn.Module, list[torch.Size]]]:
    """(name, layer, shapes of its outputs) of each counted layer that one forward pass calls."""
    outputs: dict[nn.Module, list[torch.Size]] = {}
    names: dict[nn.Module, str] = {}

    def record(layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        outputs.setdefault(layer, []).append(output.shape)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, COUNTED):
                names[module] = name
                stack.callback(module.register_forward_hook(record).remove)
        stack.enter_context(_evaluating(model))
        _run_once(model, input_shape)
    return [(names[layer], layer, shapes) for layer, shapes in outputs.items()]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own training flag again afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _run_once(model: nn.Module, input_shape: Sequence[int]) -> None:
    shape = (1, *input_shape)
    like = next(
        (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()),
        torch.empty(0),
    )
    try:
        with torch.no_grad():
            model(torch.zeros(shape, device=like.device, dtype=like.dtype))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the model does not run on an input of shape {shape}: {reason}"
        ) from error


def _count(name: str, layer: nn.Module, outputs: list[torch.Size]) -> LayerRate:
    """The row of one layer. With a batch of one, positions are the outputs over the channels."""
    weight = layer.sign_code() if isinstance(layer, TicketLayer) else layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"layer {name!r} has no weight tensor to count")
    conv = weight.dim() > 2
    left = weight.detach().reshape(*weight.shape[:2], -1) != 0
    kernels = weight.shape[0] * weight.shape[1]
    return LayerRate(
        name=name,
        kind="conv" if conv else "linear",
        shape=tuple(weight.shape),
        output=tuple(outputs[0][2:]) if conv else (),
        positions=sum(shape.numel() for shape in outputs) // weight.shape[0],
        kernels=kernels,
        zero_kernels=kernels - int(left.any(dim=2).sum()),
        weights=weight.numel(),
        kept=int(left.sum()),
    )


def _rate(dense: int, left: int) -> float:
    return dense / left if left else math.inf


def _finite(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
