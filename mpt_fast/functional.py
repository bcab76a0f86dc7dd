"""The stateless operations: what the layers and packed networks are made of.

Each takes `backend=None` (the best that runs on the tensor's device) or a name; formulas, shapes
and errors are in the operations' own docstrings.
"""

from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.kernels.bitsliced_conv2d import bitsliced_conv2d, bitsliced_conv2d_sign
from mpt_fast.kernels.bitsliced_linear import bitsliced_linear, bitsliced_linear_sign
from mpt_fast.kernels.kept_conv2d import kept_conv2d
from mpt_fast.kernels.masked_conv2d import masked_conv2d
from mpt_fast.kernels.masked_linear import masked_linear
from mpt_fast.kernels.masked_weight import (
    Cut,
    effective_weight,
    score_gradient,
    weight_gradient,
)
from mpt_fast.kernels.pack_bits import pack_bits, unpack_bits
from mpt_fast.kernels.select_topk import (
    apply_threshold,
    layer_gains,
    select_topk,
    threshold_from_quantile,
)
from mpt_fast.kernels.sparse_conv2d import sparse_conv2d
from mpt_fast.kernels.sparse_linear import sparse_linear
from mpt_fast.kernels.xnor_conv2d import xnor_conv2d
from mpt_fast.kernels.xnor_linear import xnor_linear

__all__ = [
    "Cut",
    "apply_threshold",
    "binary_activation",
    "bitsliced_conv2d",
    "bitsliced_conv2d_sign",
    "bitsliced_linear",
    "bitsliced_linear_sign",
    "effective_weight",
    "kept_conv2d",
    "layer_gains",
    "masked_conv2d",
    "masked_linear",
    "pack_bits",
    "score_gradient",
    "select_topk",
    "sparse_conv2d",
    "sparse_linear",
    "threshold_from_quantile",
    "unpack_bits",
    "weight_gradient",
    "xnor_conv2d",
    "xnor_linear",
]
