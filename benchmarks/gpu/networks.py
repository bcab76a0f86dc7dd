"""Whole packed networks under a CUDA graph, against PyTorch in bfloat16 channels_last under one."""

from typing import NamedTuple

import torch

import mpt_fast as mpt
from benchmarks.gpu.setting import MismatchError, Setting, Timing
from mpt_fast import models
from mpt_fast.packed.gpu import choices
from mpt_fast.packed.gpu.executor import DeviceProgram

BATCHES = (512, 1)


class Network(NamedTuple):
    """A network of `mpt_fast.models` with random scores."""

    name: str
    activation: str
    sparsity: float
    width: float = 1.0
    size: int = 32

    def __str__(self) -> str:
        activations = "binary" if self.activation == "binary" else "float"
        return f"{self.name}, {activations} activations, sparsity {self.sparsity}"


NETWORKS = (
    Network("vgg_small", "binary", 0.8),
    Network("resnet18", "binary", 0.8),
    Network("resnet18", "binary", 0.95),
    Network("resnet18", "relu", 0.9),
)
# The interpreter takes seconds a layer.
DRY_NETWORKS = (Network("conv2", "binary", 0.5, 0.05, 8), Network("conv2", "relu", 0.5, 0.05, 8))


def _built(network: Network, dense: bool) -> torch.nn.Module:
    options = {"width": network.width, "image_size": network.size, "bn": "affine"}
    if dense:
        return models.dense_twin(network.name, **options).eval()
    config = mpt.TicketConfig(sparsity=network.sparsity, scope="layer")
    return models.build(
        network.name, activation=network.activation, config=config, **options
    ).eval()


def networks(setting: Setting) -> tuple[Network, ...]:
    return DRY_NETWORKS if setting.dry else NETWORKS


def batches(setting: Setting) -> tuple[int, ...]:
    return (2,) if setting.dry else BATCHES


def same_logits(setting: Setting) -> None:
    """A check: packed networks equal the CPU's, at two batches of one size and at another size.

    The second call of a size replays the graph that the first one captured.
    """
    for network in networks(setting):
        model = _built(network, dense=False)
        shape = (3, network.size, network.size)
        packed, expected = (
            mpt.pack(model, torch.zeros(1, *shape), backend=name) for name in ("triton", None)
        )
        for images in (3, 3, 2):
            x = torch.randn(images, *shape)
            got, want = packed(x.to(setting.device)).cpu(), expected(x)
            error = float((got - want).abs().max() / want.abs().max())
            if not error <= 1e-4:  # one decision otherwise moves a logit by far more
                raise MismatchError(
                    f"packed {network}: logits differ by {error:.1e} of the largest"
                )


def packed_network(setting: Setting, network: Network, batch: int) -> Timing:
    """One network at one batch size, the program as `packed(x)` captures it."""
    x = setting.normal(batch, 3, network.size, network.size)
    program = mpt.pack(_built(network, dense=False), x[:1].cpu(), backend="triton").program
    run = DeviceProgram(program, x.device)
    dense = _built(network, dense=True).to(setting.device, torch.bfloat16)
    dense = dense.to(memory_format=torch.channels_last)
    narrow = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    taken = [choice.route for choice in choices(program, "f32", batch)]
    counted = ", ".join(f"{name} {taken.count(name)}" for name in sorted(set(taken)))

    def baseline() -> object:
        with torch.no_grad():
            return dense(narrow)

    return Timing(
        f"packed {network}, batch {batch} ({counted})",
        {"baseline PyTorch bf16 channels_last": baseline, "packed, triton": lambda: run(x)},
    )
