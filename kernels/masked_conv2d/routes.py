"""How each product of a ticket layer runs on the GPU: a choice per shape.

| product | route | what |
|---|---|---|
| forward, dgrad | codes | Triton; the weight's operand is its 1-byte code |
| | scores | Triton; sign(W) * M is formed from W, s and the threshold in the operand load |
| | library | PyTorch's own product on gain * code in the operand's dtype, formed before each |
| wgrad | splits | Triton; the scores' factor behind the sum over the splits |
| | library | PyTorch's own product, the scores' factor in a pass behind it |

The measured cost table (`mpt_fast.kernels.costs`) chooses by product, dtype and size, see `case`.
Where nothing near was measured, it is the first of each: a code is one byte of a weight where W and
s are eight, which every tile of the product reads again, and both Triton forms are deterministic
whatever PyTorch's switches say. "scores" needs a `Cut` and float32 weight and scores. All give the
same result up to rounding; "library" rounds the gain to the operand's dtype, as "reference" does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpt_fast.kernels import costs
from mpt_fast.kernels.backend import BackendError
from mpt_fast.kernels.masked_weight import Cut

ROUTES = {
    "forward": ("codes", "scores", "library"),
    "dgrad": ("codes", "scores", "library"),
    "wgrad": ("splits", "library"),
}
# Pins the route of the products that have it, as tests and benchmarks do; None: by the costs.
ROUTE: str | None = None


def case(
    operation: str, product: str, dtype: torch.dtype, columns: int, weight: Sequence[int]
) -> costs.Case:
    """A product's name in the cost table. columns: input pixels or rows; weight: its shape."""
    return costs.product(costs.typed(f"{operation} {product}", dtype), columns, weight)


def choose(
    operation: str, product: str, x: Tensor, weight: Tensor, scores: Tensor, cut: Cut | None
) -> str:
    """The route of one product of that layer; x: its input [N, C, ...] or rows [..., I].

    Raises BackendError where ROUTE is "scores" and the weight cannot be formed from them.
    """
    routes: Sequence[str] = ROUTES[product]
    operands = () if cut is None else (weight, scores, cut.threshold)
    formable = bool(operands) and all(t.dtype == torch.float32 for t in operands)
    if ROUTE is not None and ROUTE in routes:
        if ROUTE == "scores" and not formable:
            raise BackendError(
                f"{operation}: route 'scores' needs cut and float32 weight and scores; give them "
                "or use route 'codes'"
            )
        return ROUTE
    if not formable:
        routes = [name for name in routes if name != "scores"]
    columns = x.numel() // max(1, x.shape[1] if weight.dim() == 4 else x.shape[-1])
    return costs.route(case(operation, product, x.dtype, columns, weight.shape), routes)
