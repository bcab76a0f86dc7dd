"""Everything within a random +-1 network: approximating a target by deleting random signs.

    from mpt_fast import random_binary
    found = random_binary.approximate(model, epsilon=0.05)
    found.certificate        # a bound of the error, from the target's weights alone
    found.module(x)          # the pruned random network times its one scale
    found.save("found.mpt")  # the seed and the mask; random_binary.load reads it back

`docs/random_binary.md` explains the construction.
"""

from mpt_fast.random_binary.approximation import approximate
from mpt_fast.random_binary.file import load
from mpt_fast.random_binary.module import RandomBinaryModule
from mpt_fast.random_binary.network import Network
from mpt_fast.random_binary.result import Approximation, LayerReport, Report, Theorem
from mpt_fast.random_binary.search import MaskNotFound
from mpt_fast.random_binary.target import TargetError

__all__ = [
    "Approximation",
    "LayerReport",
    "MaskNotFound",
    "Network",
    "RandomBinaryModule",
    "Report",
    "TargetError",
    "Theorem",
    "approximate",
    "load",
]
