"""For users of biprop, the multi-prize tickets' first code: its recipe files and its checkpoints.

`read_config` turns a recipe file into a `Recipe`, key by key; `load_biprop_checkpoint` turns a
`model_best.pth` or `.state` file into one of our networks. What cannot be honoured is refused with
the key and the reason. "prune_rate" is the fraction KEPT there; nowhere else in mpt_fast.
"""

from mpt_fast.biprop.checkpoint import BipropCheckpoint, load_biprop_checkpoint
from mpt_fast.biprop.config import BipropConfig, KeyLine, read_config
from mpt_fast.biprop.networks import NETWORKS, Network, network

__all__ = [
    "NETWORKS",
    "BipropCheckpoint",
    "BipropConfig",
    "KeyLine",
    "Network",
    "load_biprop_checkpoint",
    "network",
    "read_config",
]
