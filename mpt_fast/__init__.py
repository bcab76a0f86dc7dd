"""mpt_fast: find, pack and run multi-prize tickets.

Names resolve lazily: `import mpt_fast` costs milliseconds and imports torch only when a name
that needs it is touched.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = (
    "biprop",
    "cli",
    "data",
    "functional",
    "kernels",
    "measure",
    "models",
    "nn",
    "packed",
    "random_binary",
    "report",
    "runtime",
    "selection",
    "sparse",
    "training",
)
_NAMES = {
    "TicketConfig": "mpt_fast.config",
    "MPTConv2d": "mpt_fast.nn",
    "MPTLinear": "mpt_fast.nn",
    "BinaryActivation": "mpt_fast.nn",
    "convert": "mpt_fast.conversion",
    "set_sparsity": "mpt_fast.selection",
    "update_masks": "mpt_fast.selection",
    "pack": "mpt_fast.packed",
    "load": "mpt_fast.packed",
    "acceleration_rate": "mpt_fast.measure",
    "load_biprop_checkpoint": "mpt_fast.biprop",
}

__all__ = ["__version__", *_SUBMODULES, *_NAMES]

if TYPE_CHECKING:
    from mpt_fast.biprop import load_biprop_checkpoint as load_biprop_checkpoint
    from mpt_fast.config import TicketConfig as TicketConfig
    from mpt_fast.conversion import convert as convert
    from mpt_fast.measure import acceleration_rate as acceleration_rate
    from mpt_fast.nn import BinaryActivation as BinaryActivation
    from mpt_fast.nn import MPTConv2d as MPTConv2d
    from mpt_fast.nn import MPTLinear as MPTLinear
    from mpt_fast.packed import load as load
    from mpt_fast.packed import pack as pack
    from mpt_fast.selection import set_sparsity as set_sparsity
    from mpt_fast.selection import update_masks as update_masks


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"mpt_fast.{name}")
    else:
        raise AttributeError(f"module 'mpt_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
