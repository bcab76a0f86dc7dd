"""What a ticket costs in training: selection, mask, sign and scale, and the score gradient.

The overhead is clocked apart from the step, on the step's own tensors; `share` is its part of the
step. "sort" is the same step with masks found by sorting, as the published codes do.
"""

import pytest
import torch
from torch import Tensor

import mpt_fast as mpt
from benchmarks.conftest import Measure
from mpt_fast import models
from mpt_fast.kernels.masked_weight import effective_weight, score_gradient
from mpt_fast.selection import ticket_layers, update_masks


@pytest.mark.parametrize("threads", [1, 2], indirect=True, ids=["1-thread", "2-threads"])
@pytest.mark.parametrize("amp", ["fp32", "bf16"])
@pytest.mark.parametrize("selection", ["exact", "sort"])
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with-score-gradient"])
def test_resnet18_step(
    measured: Measure, gradient: bool, selection: str, amp: str, threads: int
) -> None:
    torch.manual_seed(0)
    config = mpt.TicketConfig(sparsity=0.5, selection=selection)  # type: ignore[arg-type]  # a parameter of pytest
    model = models.build("resnet18", config=config).to(memory_format=torch.channels_last)
    layers = list(ticket_layers(model).values())
    scores = [layer.scores for layer in layers]
    optimizer = torch.optim.SGD(scores, lr=1e-3, momentum=0.9)
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (128,))

    def step() -> None:
        update_masks(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step()
    dtype = torch.bfloat16 if amp == "bf16" else torch.float32
    gradients = [torch.randn_like(layer.weight).to(dtype) for layer in layers]

    def overhead() -> None:
        update_masks(model)
        for layer, to_weight in zip(layers, gradients, strict=True):
            effective_weight(layer.code, layer._gain, dtype)
            if gradient:
                score_gradient(to_weight, layer.weight, layer.scores, layer.config.power)

    def check() -> None:
        kept: list[Tensor] = [layer.kept for layer in layers]
        size = sum(score.numel() for score in scores)
        assert int(sum(kept)) == size - size // 2

    comparison = measured(
        "Share of a ResNet-18 training step, batch 128",
        f"{selection}, {amp}" + ", with the score gradient" * gradient,
        f"{threads} thread{'s' * (threads > 1)}",
        overhead,
        step,
        check=check,
        baseline_name="the whole step",
        seconds=25,
        format="share",
    )
    assert comparison.ratio > 1  # a part is shorter than the whole: the two sides are not mixed up
