"""The pruned random network as a PyTorch module: sparse products with its kept edges."""

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_fast.random_binary.network import NetLayer, Network

_BYTES = 1 << 22  # of one layer's values: as many images at a time as a cache has room for


class _Product(torch.autograd.Function):
    """matrix @ values for a sparse CSR matrix that has no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        indptr: Tensor,
        index: Tensor,
        sign: Tensor,
        rows: int,
    ) -> Tensor:
        ctx.save_for_backward(indptr, index, sign)
        ctx.shape = (rows, values.shape[0])
        return _matrix(indptr, index, sign, (rows, values.shape[0]), values.dtype) @ values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        indptr, index, sign = ctx.saved_tensors
        matrix = _matrix(indptr, index, sign, ctx.shape, grad.dtype)
        return matrix.to_sparse_coo().t().to_sparse_csr() @ grad, None, None, None, None


def _matrix(
    indptr: Tensor, index: Tensor, sign: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return torch.sparse_csr_tensor(indptr, index, sign.to(dtype), shape, check_invariants=False)


@functools.cache
def _expect_beta() -> None:
    """Takes torch's one warning that sparse CSR tensors are in beta, which no user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


class _RandomLayer(nn.Module):
    """One layer over values [C, H, W, N]; buffers hold its kept edges, tap by tap."""

    def __init__(self, layer: NetLayer) -> None:
        super().__init__()
        self.layer = layer
        self.taps: list[tuple[int, int]] = []
        for number, edges in enumerate(layer.taps()):
            self.taps.append((edges.row, edges.column))
            for name, array in (
                ("indptr", torch.from_numpy(edges.indptr).int()),
                ("index", torch.from_numpy(edges.source).int()),
                ("sign", torch.from_numpy(edges.sign)),
            ):
                self.register_buffer(f"{name}{number}", array, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        layer = self.layer
        for pool in layer.pools:
            pooled = F.max_pool2d(values.movedim(-1, 0), pool.kernel, pool.stride, pool.padding)
            values = pooled.movedim(0, -1)
        if layer.flat:
            values = values.permute(1, 2, 0, 3).reshape(-1, 1, 1, values.shape[-1])
        (top, left), (height, width), (down, right) = layer.padding, layer.out_size, layer.stride
        if top or left:
            values = F.pad(values, (0, 0, left, left, top, top))
        result = values.new_zeros(layer.used.size, height * width * values.shape[-1])
        for number, (row, column) in enumerate(self.taps):
            seen = values[
                :,
                row : row + (height - 1) * down + 1 : down,
                column : column + (width - 1) * right + 1 : right,
            ].reshape(values.shape[0], -1)
            edges = (getattr(self, f"{name}{number}") for name in ("indptr", "index", "sign"))
            result = result + _Product.apply(seen, *edges, layer.used.size)
        result = result.view(layer.used.size, height, width, values.shape[-1])
        return result.relu() if layer.relu else result

    def extra_repr(self) -> str:
        """What print(module) shows."""
        return str(self.layer)


class RandomBinaryModule(nn.Module):
    """c*g(x): the pruned random network times its one scale.

    Calls take float tensors [N, *input_shape] on the module's device and give [N, *output_shape] in
    the input's dtype. Sums are formed in `dtype` (float64 by default); the scale is applied layer
    by layer, which a network of ReLUs does not notice and which keeps float32 from overflowing.
    """

    def __init__(
        self,
        network: Network,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        _expect_beta()
        self.network = network
        self.input_shape = input_shape
        self.output_shape = output_shape
        self.dtype = dtype
        self.layers = nn.ModuleList(_RandomLayer(layer) for layer in network.layers)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.input_shape or not x.is_floating_point():
            raise ValueError(
                f"input is {x.dtype} {list(x.shape)}; this network takes floats "
                f"{['N', *self.input_shape]}"
            )
        if not len(x):
            return x.new_empty((0, *self.output_shape))
        neurons = max(layer.used.size * math.prod(layer.out_size) for layer in self.network.layers)
        step = max(1, _BYTES // (8 * neurons))
        return torch.cat([self._evaluate(part) for part in x.split(step)]).to(x.dtype)

    def _evaluate(self, x: Tensor) -> Tensor:
        network = self.network
        values = x.to(self.dtype).reshape(len(x), network.channels, *network.size)
        values = values.permute(1, 2, 3, 0)
        if network.constant:
            values = torch.cat([values, values.new_ones(1, *values.shape[1:])])
        for module, layer in zip(self.layers, network.layers, strict=True):
            values = module(values)
            if layer.unit != 1:
                values = values / layer.unit
        return values.permute(3, 0, 1, 2).reshape(len(x), *self.output_shape)
