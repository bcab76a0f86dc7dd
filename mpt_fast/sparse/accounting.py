"""What sparse training costs, counted: FLOPs of inference and training, and size (App. G of RigL).

For one sample, per layer with v kept entries per output channel (a mean where channels differ) and
o output numbers: v o multiplications, (v - 1) o additions and o more for the bias, which a folded
batch norm leaves everywhere. Not counted, as in the paper: batch norm itself, activations, pooling,
the loss, and the work of moving masks.

Table 4 of the paper prints the training FLOPs and the Static ERK row of its 80/90 % table at 95 %
and 96.5 % too; the right 5x values are .42x/.34x (uniform) and .63x/.45x (ERK), with test FLOPs
.08x/.07x and .12x/.09x. The uniform .10x of Figure 2 at 90 % belongs to a sparse first layer; with
the dense one it is .13x. Dense ResNet-50 has 8.2e9 FLOPs only with the stride in the 3x3
convolution.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from mpt_fast.measure import acceleration_rate
from mpt_fast.sparse.distributions import Distribution, kept_entries, layer_sparsities
from mpt_fast.sparse.methods import pruning_share
from mpt_fast.sparse.weights import Filter, sparse_parameters

Method = Literal[
    "dense",
    "static",
    "snip",
    "small-dense",
    "set",
    "snfs",
    "rigl",
    "pruning",
    "dnw",
    "ticket",
    "rigl-ticket",
]


@dataclass(frozen=True)
class LayerCost:
    """One layer: its weight's shape, output positions for one sample, kept entries.

    masked: whether it is one of the sparse layers (a dense layer has no mask to store).
    """

    name: str
    shape: tuple[int, ...]
    positions: int
    kept: int
    masked: bool

    @property
    def size(self) -> int:
        """Entries of the weight."""
        return math.prod(self.shape)

    def flops(self, kept: float) -> float:
        """Multiplications and additions for one sample with `kept` entries."""
        return 2 * kept * self.positions


@dataclass(frozen=True)
class Cost:
    """Counted cost of a sparse network against the same network dense."""

    layers: tuple[LayerCost, ...]

    @property
    def dense_flops(self) -> float:
        """f_D: FLOPs of one dense forward pass."""
        return sum(layer.flops(layer.size) for layer in self.layers)

    @property
    def sparse_flops(self) -> float:
        """f_S: FLOPs of one forward pass with the kept entries only."""
        return sum(layer.flops(layer.kept) for layer in self.layers)

    @property
    def inference_ratio(self) -> float:
        """f_S / f_D."""
        return self.sparse_flops / self.dense_flops

    @property
    def kept(self) -> int:
        """Entries kept of all layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def bits(self) -> int:
        """Size: 32 bits per kept entry and output channel, 1 bit per entry of a sparse layer.

        The output channels stand for biases, of which batch norm leaves one each when folded.
        """
        numbers = sum(layer.kept + layer.shape[0] for layer in self.layers)
        return 32 * numbers + sum(x.size for x in self.layers if x.masked and x.kept < x.size)

    @property
    def size_bytes(self) -> float:
        """`bits` in bytes."""
        return self.bits / 8

    def training_flops(
        self,
        method: Method,
        *,
        delta_t: int = 100,
        multiplier: float = 1.0,
        steps: int | None = None,
        t_start: int = 0,
        t_end: int | None = None,
        frequency: int = 1,
    ) -> float:
        """FLOPs of training per sample and step of an ordinary (1x) training.

        dense: 3 f_D; static, SNIP, SET, small-dense: 3 f_S; SNFS, DNW and an ordinary ticket:
        2 f_S + f_D (the gradient of every entry at every step); RigL: (3 f_S delta_t + 2 f_S + f_D)
        / (delta_t + 1); a RigL-driven ticket: (3 f_S (delta_t - 1) + 2 f_S + f_D) / delta_t;
        pruning: the mean over `steps` of 3 times the FLOPs at that step's sparsity. "small-dense"
        takes f_S for its own FLOPs. multiplier: M of an Mx training.
        """
        dense, sparse = self.dense_flops, self.sparse_flops
        if method == "dense":
            return multiplier * 3 * dense
        if method in ("static", "snip", "set", "small-dense"):
            return multiplier * 3 * sparse
        if method in ("snfs", "dnw", "ticket"):
            return multiplier * (2 * sparse + dense)
        if method == "rigl":
            whole = 3 * sparse * delta_t + 2 * sparse + dense
            return multiplier * whole / (delta_t + 1)
        if method == "rigl-ticket":
            whole = 3 * sparse * (delta_t - 1) + 2 * sparse + dense
            return multiplier * whole / delta_t
        if method != "pruning":
            raise ValueError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")
        if steps is None or t_end is None:
            raise ValueError("pruning's FLOPs depend on its course: give steps, t_start and t_end")
        total = 0.0
        for t in range(steps):
            at = min(t - (t - t_start) % frequency, t_end) if t < t_end else t_end
            share = pruning_share(at, t_start, t_end) if t >= t_start else 0.0
            total += dense - share * (dense - sparse)  # FLOPs are linear in what is pruned
        return multiplier * 3 * total / steps

    def training_ratio(self, method: Method, **options: Any) -> float:
        """`training_flops` over dense training's 3 f_D."""
        return self.training_flops(method, **options) / (3 * self.dense_flops)

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers, JSON-able."""
        return {
            "dense_flops": self.dense_flops,
            "sparse_flops": self.sparse_flops,
            "inference_ratio": self.inference_ratio,
            "kept": self.kept,
            "size_bytes": self.size_bytes,
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "positions": layer.positions,
                    "kept": layer.kept,
                    "density": layer.kept / layer.size,
                }
                for layer in self.layers
            ],
        }


def cost(
    model: nn.Module,
    input_shape: Sequence[int],
    sparsity: float = 0.0,
    *,
    distribution: Distribution = "erk",
    custom: Mapping[str, float] | None = None,
    dense_first: bool | None = None,
    filter_fn: Filter | None = None,
    kept: Mapping[str, int] | None = None,
) -> Cost:
    """Count a model that runs on one sample of `input_shape` (without the batch).

    The arguments are `SparseTraining`'s: what it would keep is counted, not what the weights are.
    kept: counts by layer name instead, such as `SparseTraining.kept`. Layers that are not made
    sparse (depthwise ones, say) count as dense.
    """
    found = {name: tuple(w.shape) for name, w in sparse_parameters(model, filter_fn).items()}
    if kept is None:
        target = layer_sparsities(
            found, sparsity, distribution, custom=custom, dense_first=dense_first
        )
        kept = {n: kept_entries(math.prod(found[n]), s) for n, s in target.items()}
    rows = acceleration_rate(model, input_shape).layers
    missing = sorted(set(found) - {row.name for row in rows})
    if missing:
        raise ValueError(f"layer {missing[0]!r} is not a convolution or linear layer that one "
                         "forward pass calls; its FLOPs cannot be counted")  # fmt: skip
    return Cost(
        tuple(
            LayerCost(
                name=row.name,
                shape=row.shape,
                positions=row.positions,
                kept=kept.get(row.name, row.weights),
                masked=row.name in found,
            )
            for row in rows
        )
    )
