"""What is measured: single layers, whole networks, one thread against two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LAYERS = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and side of the square map of the 3x3 layers."""

NETWORKS = ("vgg_small", "resnet18")
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
Activation = Literal["binary", "relu"]


@dataclass(frozen=True)
class Case:
    """One alternation: the dense side once per round, and the packed side at every sparsity.

    kind "layer": `name` is CHANNELS@SIDE; "network": a model of mpt_fast.models; "scaling": the
    same, `threads` against one thread of the packed network itself. `levels`: packed with 8-bit
    activations.
    """

    kind: Literal["layer", "network", "scaling"]
    name: str
    activation: Activation
    batch: int
    sparsities: tuple[float, ...]
    threads: int = 1
    levels: bool = False

    @property
    def key(self) -> str:
        """What a kept result is found by."""
        sparsities = ",".join(f"{s:g}" for s in self.sparsities)
        return (
            f"{self.kind} {self.name} {self.activation} batch {self.batch} "
            f"sparsity {sparsities} threads {self.threads}"
        ) + (" int8" if self.levels else "")

    @property
    def table(self) -> str:
        """Title of the table its cells stand in."""
        kind = "Binary" if self.activation == "binary" else "Float"
        threads = "" if self.threads == 1 else f", {self.threads} threads"
        if self.kind == "layer":
            return f"{kind} 3x3 layers, batch {self.batch}{threads}"
        if self.kind == "network" and self.levels:
            return f"{kind} networks with 8-bit activations, whole{threads}"
        if self.kind == "network":
            return f"{kind} networks, whole{threads}"
        return f"{self.threads} threads against one"

    @property
    def row(self) -> str:
        """Label of its row there."""
        if self.kind == "layer":
            return self.name
        if self.kind == "network":
            return f"{self.name}, batch {self.batch}"
        return f"{self.name}, {self.activation}, batch {self.batch}"


@dataclass(frozen=True)
class Mode:
    """How much is measured. `seconds` per case is aimed at, though never under five rounds.

    `beside`: other engines are timed too; `compiled`: torch.compile among them.
    """

    seconds: float
    batches: tuple[int, ...]
    sparsities: tuple[float, ...]
    layers: tuple[tuple[int, int], ...]
    beside: bool
    compiled: bool


MODES = {
    "quick": Mode(1.0, (64, 1), (0.9,), (LAYERS[0], LAYERS[3]), False, False),
    "standard": Mode(4.0, (512, 64, 1), SPARSITIES, LAYERS, True, False),
    "full": Mode(20.0, (512, 64, 1), SPARSITIES, LAYERS, True, True),
}


def cases(
    mode: Mode,
    *,
    threads: int = 1,
    batches: Sequence[int] | None = None,
    sparsities: Sequence[float] | None = None,
    networks: Sequence[str] | None = None,
) -> list[Case]:
    """The cases of a mode. `batches`, `sparsities` and `networks` replace the mode's own.

    Float networks run at batches of at most 64 unless `batches` says otherwise: larger ones cost
    the dense side much time and tell nothing new. Binary networks also run unpruned, as what
    users of Larq or XNOR-Net bring; float networks also with 8-bit activations.
    """
    pruned = tuple(sparsities or mode.sparsities)
    binary_dense = pruned if sparsities else (0.0, *pruned)
    found = []
    largest = {"binary": 512, "relu": 64}
    kinds: tuple[Activation, ...] = ("binary", "relu")
    for activation in kinds:
        chosen = list(batches) if batches else [min(max(mode.batches), largest[activation])]
        for batch in chosen:
            found += [
                Case("layer", f"{channels}@{side}", activation, batch, pruned, threads)
                for channels, side in mode.layers
            ]
    for activation in kinds:
        for batch in batches or mode.batches:
            if batches is None and batch > largest[activation]:
                continue
            amounts = binary_dense if activation == "binary" else pruned
            found += [
                Case("network", name, activation, batch, amounts, threads, levels)
                for levels in ((False,) if activation == "binary" else (False, True))
                for name in networks or NETWORKS
            ]
    return found


def scaling_cases(threads: int = 2, batch: int = 512) -> list[Case]:
    """Packed networks on `threads` threads against themselves on one."""
    kinds: tuple[Activation, ...] = ("binary", "relu")
    return [
        Case("scaling", name, activation, batch, (0.9,), threads)
        for name in NETWORKS
        for activation in kinds
    ]
