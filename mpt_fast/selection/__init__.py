"""Which weights a model keeps: global selection, sparsity, schedule, fine-tuning."""

from mpt_fast.kernels.select_topk import EmptiedLayerError
from mpt_fast.selection.masks import (
    SparsityReport,
    finetune,
    realised_sparsity,
    set_sparsity,
    ticket_layers,
    update_masks,
)
from mpt_fast.selection.powers import set_power
from mpt_fast.selection.schedule import cubic_sparsity

__all__ = [
    "EmptiedLayerError",
    "SparsityReport",
    "cubic_sparsity",
    "finetune",
    "realised_sparsity",
    "set_power",
    "set_sparsity",
    "ticket_layers",
    "update_masks",
]
