"""Packing: trace a trained model, fuse it into a program of bits and sums, save it, run it.

packed = mpt_fast.pack(model, example_input)
logits = packed(images)
packed.save("ticket.mpt")
"""

from mpt_fast.packed.graph import PackError
from mpt_fast.packed.model import PackedModel, load, pack
from mpt_fast.packed.plan import Choice, Plan, Planner, PlanStep, RulePlanner
from mpt_fast.packed.reference import run_reference

__all__ = [
    "Choice",
    "PackError",
    "PackedModel",
    "Plan",
    "PlanStep",
    "Planner",
    "RulePlanner",
    "load",
    "pack",
    "run_reference",
]
