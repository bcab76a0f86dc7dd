"""The engine against dense PyTorch on this machine: cases, how each is measured, what they cost.

`mpt-fast bench cpu` runs them; `python -m benchmarks.run` keeps their results in the repository.
Importing this needs no torch; `run` and `sweeps` do.
"""

from mpt_fast.benchmark.suite import LAYERS, MODES, SPARSITIES, Case, Mode, cases, scaling_cases

__all__ = ["LAYERS", "MODES", "SPARSITIES", "Case", "Mode", "cases", "scaling_cases"]
