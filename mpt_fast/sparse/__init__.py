"""Sparse training: RigL and its baselines, on any model and optimiser, counted and packed.

    sparse = mpt.sparse.RigL(model, optimizer, sparsity=0.9, distribution="erk", delta_t=100,
                             alpha=0.3, t_end=75_000)
    loss.backward()
    if not sparse.step():
        optimizer.step()

A trained network has exact zeros outside its masks: `mpt.pack` runs it on the sparse float engine.
"""

from mpt_fast.sparse.accounting import Cost, LayerCost, cost
from mpt_fast.sparse.compaction import Compaction, CompactNet, compact
from mpt_fast.sparse.distributions import erk_epsilon, kept_entries, layer_sparsities
from mpt_fast.sparse.landscape import Curve, barrier, curve_losses, fit_curve
from mpt_fast.sparse.lottery import lottery_restart
from mpt_fast.sparse.manager import SparseTraining
from mpt_fast.sparse.methods import (
    DNW,
    METHODS,
    SET,
    SNFS,
    SNIP,
    DropAndGrow,
    GradualPruning,
    RigL,
    Static,
    pruning_share,
)
from mpt_fast.sparse.run import (
    KINDS,
    SparseConfig,
    SparseTrainer,
    lottery_masks,
    run_masks,
    small_dense_recipe,
    train,
)
from mpt_fast.sparse.small_dense import SmallDense, small_dense_width
from mpt_fast.sparse.tickets import RigLTickets, TicketTrainer, ticket_cost, train_ticket
from mpt_fast.sparse.update import Update, drop_and_grow, drop_fraction, top_mask
from mpt_fast.sparse.weights import SparseWeight, sparse_parameters

__all__ = [
    "DNW",
    "KINDS",
    "METHODS",
    "SET",
    "SNFS",
    "SNIP",
    "CompactNet",
    "Compaction",
    "Cost",
    "Curve",
    "DropAndGrow",
    "GradualPruning",
    "LayerCost",
    "RigL",
    "RigLTickets",
    "SmallDense",
    "SparseConfig",
    "SparseTrainer",
    "SparseTraining",
    "SparseWeight",
    "Static",
    "TicketTrainer",
    "Update",
    "barrier",
    "compact",
    "cost",
    "curve_losses",
    "drop_and_grow",
    "drop_fraction",
    "erk_epsilon",
    "fit_curve",
    "kept_entries",
    "layer_sparsities",
    "lottery_masks",
    "lottery_restart",
    "pruning_share",
    "run_masks",
    "small_dense_recipe",
    "small_dense_width",
    "sparse_parameters",
    "ticket_cost",
    "top_mask",
    "train",
    "train_ticket",
]
