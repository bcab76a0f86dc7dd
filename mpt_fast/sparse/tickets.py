"""RigL-driven tickets: a score gradient for all entries only every delta_t steps.

Finding a ticket costs a dense weight gradient at every step, because pruned entries get a score
gradient too. Here, as in RigL, forward, input gradient and score gradient touch the kept entries
only; every delta_t-th step computes the score gradient of every entry. A pruned entry's gradient
at that step stands for the whole period: it is multiplied by delta_t, so that its scores move as
far on average as if it had been computed at every step.

Selecting costs no products, so the mask may follow the scores in between too: a kept entry whose
score falls below a pruned one's leaves the mask, and that one is trained from then on.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from mpt_fast import training
from mpt_fast.kernels.kept_conv2d import KeptWeight, kept_conv2d
from mpt_fast.kernels.masked_weight import score_gradient
from mpt_fast.measure import acceleration_rate
from mpt_fast.nn import MPTConv2d, TicketLayer
from mpt_fast.selection import ticket_layers, update_masks
from mpt_fast.sparse.accounting import Cost, LayerCost
from mpt_fast.training import Recipe, RecipeError, Result, Trainer
from mpt_fast.training.checkpoint import Checkpoint

_Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


class RigLTickets:
    """Runs a model's ticket layers by their kept entries, between steps that see them all.

        tickets.begin_step()                 # instead of mpt_fast.update_masks(model)
        loss = criterion(model(images), labels)
        loss.backward(); optimizer.step()

    model: with ticket layers of any scope; its gradients outside the mask are 0 except in every
    delta_t-th step. delta_t: 1 is the ordinary ticket. select_t: steps between selections, counted
    from the start of a period, which always has one. compensate: multiply the pruned entries'
    gradient by delta_t in the step that has it. On float32 CPU inputs the layers compute what they
    keep and nothing else; elsewhere, and for padding modes other than zeros, they run as ever and
    the gradient is masked, so that the ticket is the same.

    Set `t` to begin a period anew (0) or to resume. ValueError if the model has no ticket layer.
    """

    def __init__(
        self, model: nn.Module, delta_t: int = 8, *, select_t: int = 1, compensate: bool = True
    ) -> None:
        for name, value in (("delta_t", delta_t), ("select_t", select_t)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        self.layers = list(ticket_layers(model).values())
        if not self.layers:
            raise ValueError("the model has no ticket layer; make it with a TicketConfig")
        self.model = model
        self.delta_t = delta_t
        self.select_t = select_t
        self.compensate = compensate
        self.t = 0
        self._dense = True
        self._hooks = [
            layer.scores.register_hook(functools.partial(self._weigh, layer))
            for layer in self.layers
        ]

    def begin_step(self) -> bool:
        """Before each forward pass. True if this step computes the gradient of every score."""
        position = self.t % self.delta_t
        if self.selects(self.t):
            update_masks(self.model)
            for layer in self.layers:
                if layer.config.scope == "layer":
                    layer.reset_selection()
        self._dense = position == self.delta_t - 1
        if self.delta_t > 1:  # 1 stays the ordinary ticket, to the same bits
            for layer in self.layers:
                kept = layer.kept_only
                if not isinstance(kept, KeptForward) or not kept.current(layer):
                    kept = KeptForward(layer)
                kept.all_scores, kept.served = self._dense, False
                layer.kept_only = kept
        self.t += 1
        return self._dense

    def selects(self, t: int) -> bool:
        """Whether step t begins with a selection."""
        return t % self.delta_t % self.select_t == 0

    def remove(self) -> None:
        """Leave the layers as ordinary tickets."""
        for hook in self._hooks:
            hook.remove()
        for layer in self.layers:
            layer.kept_only = None

    def _weigh(self, layer: TicketLayer, grad: Tensor) -> Tensor:
        if not self._dense:
            kept = layer.kept_only
            served = isinstance(kept, KeptForward) and kept.served
            return grad if served else grad.masked_fill(layer.code == 0, 0)
        if not self.compensate or self.delta_t == 1:
            return grad
        return torch.where(layer.code == 0, grad * self.delta_t, grad)


class KeptForward:
    """The forward pass of one ticket layer by the entries of its present mask.

    all_scores: whether the backward pass gives the gradient of every score, or of the kept ones.
    """

    def __init__(self, layer: TicketLayer) -> None:
        self.version = layer.code._version
        self.served = False
        self.all_scores = False
        self._lists: tuple[KeptWeight, Tensor, Tensor] | None = None

    def lists(self, layer: TicketLayer) -> tuple[KeptWeight, Tensor, Tensor]:
        """The kept entries, their weights and their effective weights; made when first needed."""
        if self._lists is None:
            groups = layer.groups if isinstance(layer, MPTConv2d) else 1
            kept = KeptWeight.of(layer.code != 0, groups)
            value = kept.gather(layer.code).to(layer.weight.dtype) * layer._gain
            self._lists = kept, kept.gather(layer.weight.detach()), value
        return self._lists

    def current(self, layer: TicketLayer) -> bool:
        """Whether the layer still has the mask that this was made for."""
        return bool(layer.code._version == self.version)

    def serves(self, layer: TicketLayer, x: Tensor) -> bool:
        """Whether the layer can run this input so, with the same result up to rounding."""
        plain = x.device.type == "cpu" and x.dtype == layer.weight.dtype == torch.float32
        if not plain or torch.is_autocast_enabled("cpu") or not self.current(layer):
            return False
        if isinstance(layer, MPTConv2d):
            left, right, top, bottom = layer.padding_sides
            zeros = layer.padding_mode == "zeros" and left == right and top == bottom
            return x.dim() == 4 and zeros
        return x.dim() == 2

    def __call__(self, layer: TicketLayer, x: Tensor) -> Tensor:
        self.served = True
        conv = isinstance(layer, MPTConv2d)
        geometry: _Geometry = ((1, 1), (0, 0), (1, 1), 1)
        if isinstance(layer, MPTConv2d):
            left, _, top, _ = layer.padding_sides
            geometry = (layer.stride, (top, left), layer.dilation, layer.groups)
        images = x if conv else x[:, :, None, None]
        kept, weight, value = self.lists(layer)
        if not self.all_scores:
            value = _KeptValues.apply(layer.scores, kept, weight, value, layer.config.power)
        out = kept_conv2d(images, value, kept, *geometry)
        if self.all_scores:
            out = _AllScores.apply(
                out, layer.scores, images.detach(), layer.weight, geometry, layer.config.power
            )
        if layer.bias is not None:
            out = out + layer.bias.view(-1, 1, 1)
        return out if conv else out[:, :, 0, 0]


class _KeptValues(torch.autograd.Function):
    """The kept effective weights; their gradient goes to the kept scores."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, kept: KeptWeight, weight: Tensor, value: Tensor, power: float
    ) -> Tensor:
        ctx.save_for_backward(scores, weight)
        ctx.kept, ctx.power = kept, power
        return value.detach()  # an object of its own: autograd marks what is returned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weight = ctx.saved_tensors
        kept: KeptWeight = ctx.kept
        own = score_gradient(grad, weight, kept.gather(scores.detach()), ctx.power, "reference")
        dense = kept.scatter(own).view(scores.shape)
        if not scores.is_contiguous():  # a gradient has its parameter's memory format
            dense = torch.empty_like(scores).copy_(dense)
        return dense, None, None, None, None


class _AllScores(torch.autograd.Function):
    """A layer's output, unchanged; its gradient also goes to every score of the layer."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        scores: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: _Geometry,
        power: float,
    ) -> Tensor:
        ctx.save_for_backward(scores, x, weight)
        ctx.geometry, ctx.power = geometry, power
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, x, weight = ctx.saved_tensors
        if weight.dim() == 2:
            dense = grad[:, :, 0, 0].t() @ x[:, :, 0, 0]
        else:
            stride, padding, dilation, groups = ctx.geometry
            dense = conv2d_weight(x, weight.shape, grad, stride, padding, dilation, groups)
        return grad, score_gradient(dense, weight, scores, ctx.power), None, None, None, None


def ticket_cost(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Counted FLOPs and size of a model's tickets with their present masks.

    `Cost.training_ratio("ticket")` is an ordinary ticket's, "rigl-ticket" that of `RigLTickets`.
    """
    rows = acceleration_rate(model, input_shape).layers
    return Cost(
        tuple(LayerCost(row.name, row.shape, row.positions, row.kept, True) for row in rows)
    )


class TicketTrainer(Trainer):
    """The package's trainer for a RigL-driven ticket; a period begins with every epoch."""

    def __init__(self, *args: Any, delta_t: int, select_t: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.recipe.dense:
            raise RecipeError("a RigL-driven ticket needs a recipe with dense: false")
        self.tickets = RigLTickets(self.model, delta_t, select_t=select_t)

    def _select(self) -> None:
        self.tickets.t = self.at.step
        self.tickets.begin_step()

    def _checkpoint_due(self, seconds: float) -> bool:
        # A checkpoint selects anew, so it has to fall where the next step would do so anyway.
        return self.tickets.selects(self.at.step) and super()._checkpoint_due(seconds)

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        config = {
            "method": "ticket",
            "delta_t": self.tickets.delta_t,
            "select_t": self.tickets.select_t,
        }
        return {}, {"sparse": {"config": config}}

    def _restore_extra(self, found: Checkpoint) -> None:
        then = found.state.get("sparse", {"config": {}})["config"]
        now = self._extra()[1]["sparse"]["config"]
        if then != now:
            raise RecipeError(
                f"{self.out_dir}: cannot resume: this is a RigL-driven ticket with delta_t "
                f"{now['delta_t']} and select_t {now['select_t']}, and the run was another "
                f"({then or 'an ordinary one'}); use the run's settings or another folder"
            )

    def _finish(self) -> Result:
        self.tickets.remove()
        return super()._finish()


def train_ticket(
    recipe: Recipe,
    delta_t: int,
    out_dir: str | Path,
    resume: bool = False,
    *,
    select_t: int = 1,
    **options: Any,
) -> Result:
    """Find a RigL-driven ticket; `mpt_fast.training.train` with `RigLTickets`.

    The folder is an ordinary ticket's run: `mpt-fast eval`, `pack` and `bench` take it.
    """
    maker: Callable[..., Trainer] = functools.partial(
        TicketTrainer, delta_t=delta_t, select_t=select_t
    )
    return training.train(recipe, out_dir, resume, make_trainer=maker, **options)
