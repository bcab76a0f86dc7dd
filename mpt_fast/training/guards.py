"""What must hold during a run, and who is to blame when it does not."""

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = [
    "TrainingError",
    "check_finite",
    "check_frozen",
    "first_non_finite",
    "frozen_digests",
    "mask_digest",
]


class TrainingError(RuntimeError):
    """A run that cannot go on: the message names the layer and the step, and what to try."""


def _bytes(value: Tensor) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def frozen_digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter that is not trained, by name."""
    return {
        name: hashlib.sha256(_bytes(parameter)).hexdigest()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }


def check_frozen(model: nn.Module, digests: Mapping[str, str]) -> None:
    """Raise TrainingError if a frozen parameter is not what it was when `digests` were taken."""
    now = frozen_digests(model)
    for name in sorted({*now, *digests}):
        if now.get(name) != digests.get(name):
            raise TrainingError(
                f"frozen weight {name!r} changed during training; nothing may write to it"
            )


def mask_digest(codes: Mapping[str, Tensor]) -> int:
    """A 63-bit digest of the masks and signs of all layers, to compare between processes."""
    digest = hashlib.sha256()
    for name in sorted(codes):
        digest.update(name.encode())
        digest.update(_bytes(codes[name]))
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def check_finite(model: nn.Module, where: str) -> None:
    """Raise TrainingError naming the first trained parameter with a NaN or an infinity."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise TrainingError(f"{where}: {name!r} is not finite; lower lr or set grad_clip")


def first_non_finite(model: nn.Module, images: Tensor) -> str:
    """Name of the first layer whose output for `images` is not finite, or "the loss"."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and not math.isfinite(float(output.abs().sum())):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return f"layer {found[0]!r}" if found else "the loss"
