"""TicketLayer: what convolution and linear ticket layers share.

A layer holds a frozen random weight W and trainable scores s. Its mask M keeps the largest abs(s);
its effective weight is g * sign(W) * M with gain g = sum(abs(W) M) / sum(M).

State: parameters `weight` (requires_grad False), `scores`, optional `bias`; persistent buffers
`threshold` and `tie_limit`, which describe the mask (see `mpt_fast.kernels.select_topk`); derived
buffers `code` (int8 sign(W) * M), `_gain` and `kept`, rebuilt when a state dict is loaded.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mpt_fast.config import TicketConfig, check_sparsity
from mpt_fast.kernels.masked_weight import Cut, effective_weight
from mpt_fast.kernels.select_topk import (
    Selection,
    apply_threshold,
    layer_gains,
    select_topk,
    threshold_from_quantile,
)
from mpt_fast.nn.init import init_scores_, init_weight_


class KeptOnly(Protocol):
    """Another way to run a layer's forward, such as by its kept entries only."""

    def current(self, layer: "TicketLayer") -> bool:
        """Whether it belongs to the layer's present mask."""

    def serves(self, layer: "TicketLayer", x: Tensor) -> bool:
        """Whether it can run this input with the layer's result."""

    def __call__(self, layer: "TicketLayer", x: Tensor) -> Tensor:
        """The layer's output."""


class TicketLayer(nn.Module):
    """Base of MPTConv2d and MPTLinear: weight, scores, selection, fine-tuning switch, state.

    config.scope "layer": every forward selects anew. "global": `mpt_fast.update_masks(model)`
    selects over the whole model, the forward uses what it stored; a new layer starts with a
    layerwise mask. `label` is what errors call the layer: its qualified name once `update_masks`,
    `set_sparsity` or `convert` has seen the model. `kept_only`, where it is set, keeps the
    mask it was made for in training mode, and runs the forward of inputs it serves
    (`mpt_fast.sparse.RigLTickets`).
    """

    threshold: Tensor
    tie_limit: Tensor
    code: Tensor
    kept: Tensor
    _gain: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        config: TicketConfig | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.config = TicketConfig() if config is None else config
        if not isinstance(self.config, TicketConfig):
            raise TypeError(f"config must be a TicketConfig, got {type(config).__name__}")
        self.label = ""
        self.finetuning = False
        self.kept_only: KeptOnly | None = None
        self.threshold_fixed = False
        # What `code` was formed from, by identity and version; None where that is not known.
        self._formed_from: tuple[int, ...] | None = None
        weight = torch.empty(shape, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scores = nn.Parameter(torch.empty_like(weight))
        self.bias = nn.Parameter(weight.new_zeros(shape[0])) if bias else None

        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.register_buffer("threshold", weight.new_zeros((), dtype=wide))
        self.register_buffer("tie_limit", weight.new_zeros((), dtype=torch.int64))
        self.register_buffer("code", torch.zeros_like(weight, dtype=torch.int8), persistent=False)
        self.register_buffer("_gain", weight.new_zeros((), dtype=torch.float32), persistent=False)
        self.register_buffer("kept", weight.new_zeros((), dtype=torch.int64), persistent=False)

    def reset_parameters(self) -> None:
        """Draw weight and scores anew by the config, set the bias to 0 and select layerwise."""
        init_weight_(self.weight, self.config)
        init_scores_(self.scores, self.config)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.reset_selection()

    def reset_selection(self) -> None:
        """Select layerwise from the current scores at this layer's sparsity and store it."""
        if self.scores.is_meta:
            return
        if self.config.selection == "threshold":
            cut = threshold_from_quantile([self.scores], self.sparsity, names=[self.name])
            self.threshold.fill_(cut)
            self.tie_limit.zero_()
            self._store(self._stored_threshold())
            self.threshold_fixed = self.config.scope == "layer"
        else:
            self._store(self._select())

    @property
    def name(self) -> str:
        """What errors call this layer."""
        return self.label or f"{type(self).__name__}({self.extra_repr()})"

    @property
    def sparsity(self) -> float:
        """Fraction pruned. Setting it re-selects a layerwise layer; global: call `update_masks`."""
        return self.config.sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        if self.finetuning:
            raise ValueError(
                f"layer {self.name!r} is being fine-tuned and its mask is fixed; call "
                "finetune(False) before changing the sparsity"
            )
        self.config = dataclasses.replace(self.config, sparsity=check_sparsity(value))
        self.threshold_fixed = False
        if self.config.scope == "layer":
            self.reset_selection()

    def mask(self) -> Tensor:
        """bool, the weight's shape: True where the weight is kept."""
        self._refresh()
        mask = self.code != 0
        zero = self.weight.detach() == 0
        if zero.any():  # a kept 0 has code 0 too: only the scores know
            importance = self.scores.detach().abs().to(self.threshold.dtype)
            index = torch.arange(zero.numel(), device=zero.device).view(zero.shape)
            tied = (importance == self.threshold) & (index < self.tie_limit)
            mask |= zero & ((importance > self.threshold) | tied)
        return mask

    def gain(self) -> Tensor:
        """0-dim float32: mean of abs(W) over the mask, rounded once (config.compat may differ)."""
        self._refresh()
        return self._gain.clone()

    def sign_code(self) -> Tensor:
        """int8, the weight's shape and memory format: sign(W) where kept, else 0."""
        self._refresh()
        return self.code.clone()

    def effective_weight(self) -> Tensor:
        """gain * sign(W) * mask in the weight's dtype, detached."""
        self._refresh()
        return effective_weight(self.code, self._gain, self.weight.dtype)

    def finetune(self, enabled: bool = True) -> None:
        """Fix the mask and train the weight through sign and gain; False goes back to the scores.

        The mask is the one that the stored threshold and the current scores give, so call
        `mpt_fast.update_masks` before (`mpt_fast.selection.finetune(model)` does). While enabled,
        every forward takes signs and gain from the current weight.
        """
        if enabled != self.finetuning:
            self._refresh()
        self.finetuning = enabled
        self.weight.requires_grad_(enabled)
        self.scores.requires_grad_(not enabled)

    @torch.no_grad()
    def adopt(self, selection: Selection, gains: Tensor, index: int = 0) -> None:
        """Take entry `index` of a selection and its `layer_gains` as this layer's mask and gain."""
        self.code.copy_(selection.codes[index])
        self._gain.copy_(gains[index])
        self.threshold.copy_(selection.thresholds[index])
        self.tie_limit.copy_(selection.tie_limits[index])
        self.kept.copy_(selection.kept[index])
        self._formed_from = self._origin()

    def _origin(self) -> tuple[int, ...] | None:
        """Which scores and weight these are, as far as they were not changed behind autograd."""
        pair = (self.scores, self.weight)
        if torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in pair):
            return None  # such tensors count no versions
        return tuple(number for tensor in pair for number in (id(tensor), tensor._version))

    def _selected(self) -> tuple[Tensor, Tensor, Tensor, Cut | None]:
        """(code, gain, kept, what the code follows from) that this forward pass uses."""
        other = self.kept_only
        fixed = self.training and other is not None and other.current(self)
        if fixed or not self._selects_itself():
            # Scores that moved since the selection would give another mask than the stored one.
            stale = fixed or self._formed_from is None or self._formed_from != self._origin()
            cut = None if stale else Cut(self.threshold, self.tie_limit)
            return self.code, self._gain, self.kept, cut
        selection = self._divided(self._select())
        gains = layer_gains(selection, [self.name])
        self.adopt(selection, gains)
        cut = Cut(selection.thresholds[0], selection.tie_limits[0])
        return selection.codes[0], gains[0], selection.kept[0], cut

    def _by_kept(self, x: Tensor) -> Tensor | None:
        """The output by `kept_only`; None where the layer runs as ever."""
        other = self.kept_only
        if other is None or not self.training or not other.serves(self, x):
            return None
        return other(self, x)

    def _selects_itself(self) -> bool:
        return self.finetuning or self.config.scope == "layer"

    def _refresh(self) -> None:
        if self._selects_itself():
            self._store(self._select())

    def _store(self, selection: Selection) -> None:
        selection = self._divided(selection)
        self.adopt(selection, layer_gains(selection, [self.name]))

    def _divided(self, selection: Selection) -> Selection:
        """The selection with the number that the gain divides by as its `kept`."""
        if self.config.compat != "biprop" or self.config.scope != "layer":
            return selection
        nominal = int(self.config.density * self.weight.numel())
        return selection._replace(kept=torch.full_like(selection.kept, nominal))

    def _select(self) -> Selection:
        if self.finetuning or self.threshold_fixed:
            return self._stored_threshold()
        backend = "reference" if self.config.selection == "sort" else None
        return select_topk([self.weight], [self.scores], self.sparsity, backend, [self.name])

    def _stored_threshold(self) -> Selection:
        return apply_threshold(
            [self.weight],
            [self.scores],
            self.threshold.view(1),
            self.tie_limit.view(1),
            names=[self.name],
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TicketLayer":
        """As nn.Module's, except that the gain stays float32 when the layer changes its dtype."""
        gain = self._gain
        super()._apply(fn, recurse)
        self._formed_from = None  # a narrower dtype rounds the scores in place
        if self._gain.dtype != gain.dtype:
            self._gain = gain.to(self._gain.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors_before = len(error_msgs)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if len(error_msgs) > errors_before or self.scores.is_meta:
            return
        try:
            if f"{prefix}threshold" in state_dict and f"{prefix}tie_limit" in state_dict:
                self._store(self._stored_threshold())
                self.threshold_fixed = self.config.selection == "threshold"
            elif f"{prefix}scores" in state_dict:
                self.reset_selection()
        except ValueError as error:
            error_msgs.append(str(error))

    def _ticket_repr(self) -> str:
        return f"sparsity={self.sparsity:g}, scope={self.config.scope}"
