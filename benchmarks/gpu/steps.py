"""A whole training step at batch 256 in bfloat16: dense, masks by sorting, ours."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

import mpt_fast as mpt
from benchmarks.gpu.setting import Run, Setting, Timing, require_close
from mpt_fast import models
from mpt_fast.kernels.backend import preferring
from mpt_fast.selection import update_masks

NETWORKS = ("resnet18", "conv8")
# The interpreter takes seconds a layer.
DRY_NETWORKS = ("conv2",)


def variants(setting: Setting, network: str) -> dict[str, Run]:
    """The steps that are timed by turns, each with a model and an optimiser of its own."""
    exact = mpt.TicketConfig(sparsity=0.5, selection="exact")
    by_sort = mpt.TicketConfig(sparsity=0.5, selection="sort")
    size = {"width": 0.0625} if setting.dry else {}
    return {
        "baseline dense bf16": _step(setting, models.dense_twin(network, **size), None),
        "baseline masks by sorting": _step(
            setting, models.build(network, config=by_sort, **size), "reference"
        ),
        "ticket, triton": _step(setting, models.build(network, config=exact, **size), "triton"),
        "ticket, reference": _step(
            setting, models.build(network, config=exact, **size), "reference"
        ),
    }


def step_timing(setting: Setting, network: str) -> Timing:
    """One network's step; as launched from Python, for selection waits for the device."""
    title = f"training step of {network}, batch 256, bf16"
    return Timing(title, variants(setting, network), rounds=10, graphs=False)


def _step(setting: Setting, model: torch.nn.Module, backend: str | None) -> Run:
    model = model.to(setting.device).to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    batch = 1 if setting.dry else 256
    images = setting.image(batch, 3, 32, 32)
    labels = torch.randint(0, 10, (batch,), device=setting.device)
    ticket = backend is not None

    def step() -> Any:
        with preferring(backend) if backend else contextlib.nullcontext():
            if ticket:
                update_masks(model)
            with torch.autocast(setting.device, torch.bfloat16):
                logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss

    return step


def same_step(setting: Setting) -> Callable[[], None]:
    """A check: the first loss and score gradients of a ticket are those of the reference."""

    def check() -> None:
        losses, gradients = [], []
        for backend in ("triton", "reference"):
            torch.manual_seed(0)
            config = mpt.TicketConfig(sparsity=0.5)
            model = models.build("conv2", config=config, width=0.125).to(setting.device)
            images = setting.image(1 if setting.dry else 32, 3, 32, 32)
            with preferring(backend):
                update_masks(model)
                loss = model(images).square().mean()
                loss.backward()
            losses.append(loss.detach())
            scores = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            gradients.append(torch.cat(scores))
        require_close("training step: loss", losses[0], losses[1], 1e-2)
        require_close("training step: gradients", gradients[0], gradients[1], 1e-2)

    return check
