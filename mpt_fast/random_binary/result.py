"""What `approximate` gives back, and what `load` reads."""

import os
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpt_fast.random_binary.module import RandomBinaryModule
from mpt_fast.random_binary.network import Network
from mpt_fast.runtime import Program


@dataclass(frozen=True)
class LayerReport:
    """One random layer: neurons, random signs drawn, edges kept, neurons in use."""

    name: str
    kind: str
    width: int
    drawn: int
    kept: int
    used: int


@dataclass(frozen=True)
class Theorem:
    """What the theorem asks for: p bits, 1 + L(p + 2) layers of 4*d*r neurons.

    r is such that one network serves every target of the shape with probability 1 - `failure`.
    `applies` is False where its premises (unit spectral norms, unit ball, no biases or skips, no
    maps) do not hold; the certificate needs none of them.
    """

    applies: bool
    failure: float
    bits: int
    depth: int
    width: int
    redundancy: int


@dataclass(frozen=True)
class Report:
    """Sizes of an approximation. `formula` is the certificate from eta*sqrt(n*n') alone.

    `bits` is p; `mask_bits` is the least number of bits that tell which edges were kept, the sum
    of n*H(kept/n) over layers; `looked_at` counts the signs that the search evaluated.
    """

    epsilon: float
    radius: float
    seed: int
    redundancy: int
    bits: int
    certificate: float
    formula: float
    scale: float
    depth: int
    width: int
    edges_drawn: int
    edges_kept: int
    mask_bits: float
    looked_at: int
    expected_success: float
    theorem: Theorem
    layers: tuple[LayerReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        data = asdict(self)
        data["layers"] = [asdict(layer) for layer in self.layers]
        return data

    def __str__(self) -> str:
        return (
            f"random +-1 network: {self.depth} layers of at most {self.width} neurons, "
            f"{self.edges_kept} of {self.edges_drawn} signs kept, p = {self.bits} bits, "
            f"error <= {self.certificate:.3g} for inputs of norm <= {self.radius:g}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Approximation:
    """A pruned random +-1 network, and what is known about it.

    `scale`*g(x) is within `certificate` (Euclidean norm) of the target for every input of norm at
    most `report.radius`, in exact arithmetic. `network` has the kept edges; `module` evaluates
    scale*g(x) in PyTorch.
    """

    network: Network
    report: Report
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Approximation: {self.report}>"

    @cached_property
    def module(self) -> RandomBinaryModule:
        """scale*g(x) for float tensors [N, *input_shape]: sparse products in float64."""
        return RandomBinaryModule(self.network, self.input_shape, self.output_shape)

    @property
    def certificate(self) -> float:
        """E(p): the bound of the error, at most the epsilon that was asked for."""
        return self.report.certificate

    @property
    def scale(self) -> float:
        """The one positive factor c of the output, 1/`network.unit`."""
        return self.report.scale

    @property
    def seed(self) -> int:
        """The seed of the random network."""
        return self.network.seed

    def integers(self, x: Any) -> NDArray:
        """Exact g(x) for integers [N, *input_shape]; int64, or Python ints where those overflow.

        Divided by `network.unit` it is what `module` computes in floats.
        """
        images = np.asarray(x)
        if images.shape[1:] != self.input_shape:
            raise ValueError(
                f"input has shape {images.shape}; this network takes {('N', *self.input_shape)}"
            )
        flat = images.reshape(len(images), self.network.channels, *self.network.size)
        return self.network.integers(flat).reshape(len(images), *self.output_shape)

    def program(self) -> Program:
        """The network as a program of the packed engine, in float64 with +-1 taps.

        `mpt_fast.runtime.Model(approximation.program())` runs it on NumPy arrays where the C++
        engine is built; `mpt_fast.runtime.write_program` makes a packed file of it.
        """
        from mpt_fast.random_binary.lowering import make_program

        return make_program(self.network, self.input_shape, self.output_shape)

    def save(self, path: str | os.PathLike) -> int:
        """Writes the seed, the mask and the report to `path`; returns the file's size in bytes.

        Raises FileError naming the path where the folder cannot be written.
        """
        from mpt_fast.random_binary.file import save

        return save(self, path)
