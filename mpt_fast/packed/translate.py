"""From one traced PyTorch operation to one node the engine knows.

Every handler has the signature of the PyTorch function it stands for, so that the arguments bind
as they do there, and raises Unsupported, saying why, for what the engine cannot do.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.nn import BinaryActivation, MaxPool2d, MPTConv2d, MPTLinear, SignActivation
from mpt_fast.packed.graph import (
    AddNode,
    AffineNode,
    ConvNode,
    FlattenNode,
    Node,
    PackError,
    PoolNode,
    Ref,
    ReluNode,
    Shape,
    SignNode,
)
from mpt_fast.packed.weights import taps_from_dense
from mpt_fast.runtime.program import Pair

Number = int | float


class Unsupported(Exception):  # noqa: N818 - control flow, not an error
    """The engine has no step for an operation; the text says why."""


def canonical(view: tuple[int, ...] | None) -> Shape:
    """(C, H, W) of a per-image shape as the eager model sees it."""
    if view is None or not 1 <= len(view) <= 3 or min(view) < 1:
        raise Unsupported("its value is not one array per image")
    if len(view) == 1:
        return (view[0], 1, 1)
    if len(view) == 2:
        return (view[0], 1, 1) if view[1] == 1 else (1, *view)
    channels, height, width = view
    return channels, height, width


class Call:
    """One traced operation: its name, and the per-image shape of its result (None: no batch)."""

    def __init__(self, name: str, view: tuple[int, ...] | None) -> None:
        self.name = name
        self.view = view

    def _node(self, kind: type[Node], *inputs: Ref, **fields: Any) -> Ref:
        return Ref(
            kind(self.name, canonical(self.view), [ref.node for ref in inputs], **fields), self.view
        )

    def _affine(
        self,
        x: Ref,
        scale: Tensor,
        shift: Tensor,
        apply: Callable[[Tensor], Tensor],
        label: str = "affine",
    ) -> Ref:
        for what, vector in (("scale", scale), ("shift", shift)):
            if not torch.isfinite(vector).all():
                raise PackError(f"{self.name}: its {what} is not finite; check its parameters")
        return self._node(AffineNode, x, scale=scale, shift=shift, apply=apply, label=label)

    # Layers with weights

    def conv(
        self,
        x: Ref,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Ref:
        """F.conv2d."""
        _traced(x, 3)
        _constant(weight, bias)
        stride, dilation = _pair(stride), _pair(dilation)
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "same" and any(span % 2 for span in spans):
                raise Unsupported("padding='same' pads one side more than the other")
            padding = tuple(span // 2 for span in spans) if padding == "same" else 0
        taps, scale = taps_from_dense(weight, self.name)
        return self._node(
            ConvNode,
            x,
            taps=taps,
            scale=scale,
            bias=_finite_bias(bias, self.name),
            stride=stride,
            padding=_pair(padding),
            dilation=dilation,
            groups=groups,
        )

    def linear(self, x: Ref, weight: Tensor, bias: Tensor | None = None) -> Ref:
        """F.linear of one vector per image."""
        _traced(x, 1)
        _constant(weight, bias)
        taps, scale = taps_from_dense(weight[:, :, None, None], self.name)
        return self._node(
            ConvNode,
            x,
            taps=taps,
            scale=scale,
            bias=_finite_bias(bias, self.name),
            label="linear",
        )

    def conv_module(self, module: nn.Conv2d | MPTConv2d, x: Ref) -> Ref:
        """nn.Conv2d and MPTConv2d."""
        if module.padding_mode != "zeros":
            raise Unsupported(f"padding_mode={module.padding_mode!r}")
        weight = module.weight if isinstance(module, nn.Conv2d) else _ticket_weight(module)
        return self.conv(
            x,
            weight,
            module.bias,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )

    def linear_module(self, module: nn.Linear | MPTLinear, x: Ref) -> Ref:
        """nn.Linear and MPTLinear."""
        weight = module.weight if isinstance(module, nn.Linear) else _ticket_weight(module)
        return self.linear(x, weight, module.bias)

    def batch_norm(
        self,
        x: Ref,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Ref:
        """F.batch_norm with running statistics."""
        del momentum
        if training or running_mean is None or running_var is None:
            raise Unsupported("it normalises by the statistics of the batch")
        _traced(x, 1, 3)
        mean, var = _constant(running_mean), _constant(running_var)
        gamma, beta = (None if t is None else _constant(t) for t in (weight, bias))
        scale = 1 / torch.sqrt(var + eps)
        scale = scale if gamma is None else scale * gamma
        shift = -mean * scale if beta is None else beta - mean * scale

        def apply(value: Tensor) -> Tensor:
            return F.batch_norm(value, mean, var, gamma, beta, False, 0.0, eps)

        return self._affine(x, scale, shift, apply, "bn")

    def batch_norm_module(self, module: nn.BatchNorm1d | nn.BatchNorm2d, x: Ref) -> Ref:
        """nn.BatchNorm1d (of vectors) and nn.BatchNorm2d."""
        return self.batch_norm(
            x,
            module.running_mean,
            module.running_var,
            module.weight,
            module.bias,
            eps=module.eps,
        )

    # Activations and arithmetic

    def identity(self, input: Ref, *args: Any, **kwargs: Any) -> Ref:
        """Dropout, Identity, contiguous, ...: the value itself."""
        del args, kwargs
        return Ref(_traced(input).node, input.view)

    def dropout(
        self, input: Ref, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Ref:
        """F.dropout that was traced in eval mode, or is called without `training`."""
        del inplace
        if training and p > 0:
            raise Unsupported("dropout with training=True draws at random; pass self.training")
        return self.identity(input)

    def relu(self, input: Ref, inplace: bool = False) -> Ref:
        """F.relu."""
        del inplace
        return self._node(ReluNode, _traced(input))

    def sign(self, input: Ref) -> Ref:
        """torch.sign: accepted where its input is never 0 (see `decide`)."""
        return self._node(SignNode, _traced(input), strict=True)

    def binary_activation(self, x: Ref, backend: str | None = None) -> Ref:
        """+1 where x >= 0, else -1."""
        del backend
        return self._node(SignNode, _traced(x))

    def add(self, input: Any, other: Any, *, alpha: Number = 1) -> Ref:
        """torch.add of two values, or of a value and a number or per-channel constant."""
        if isinstance(input, Ref) and isinstance(other, Ref):
            if input.view != other.view or input.view != self.view:
                raise Unsupported("it adds values of different shapes")
            return self._node(AddNode, input, other if alpha == 1 else self.multiply(other, alpha))
        if not isinstance(input, Ref):
            if alpha != 1:
                raise Unsupported("alpha with a constant first argument")
            input, other = other, input
        x = _traced(input)
        shift = self._per_channel(x, other) * alpha
        return self._affine(x, torch.ones_like(shift), shift, lambda v: v + shift.view(1, -1, 1, 1))

    def subtract(self, input: Any, other: Any, *, alpha: Number = 1) -> Ref:
        """torch.sub."""
        if isinstance(other, Ref):
            return self.add(input, self.multiply(other, -alpha))
        return self.add(input, other, alpha=-alpha)

    def multiply(self, input: Any, other: Any) -> Ref:
        """torch.mul of a value and a number or per-channel constant."""
        x, factor = (input, other) if isinstance(input, Ref) else (other, input)
        if isinstance(factor, Ref):
            raise Unsupported("it multiplies two values")
        scale = self._per_channel(_traced(x), factor)
        view = scale.view(1, -1, 1, 1)
        return self._affine(x, scale, torch.zeros_like(scale), lambda v: v * view)

    def divide(self, input: Any, other: Any, *, rounding_mode: str | None = None) -> Ref:
        """torch.div of a value by a number or per-channel constant."""
        if isinstance(other, Ref) or rounding_mode is not None:
            raise Unsupported("it divides by a value, or rounds")
        divisor = self._per_channel(_traced(input), other)
        view = divisor.view(1, -1, 1, 1)
        return self._affine(input, 1 / divisor, torch.zeros_like(divisor), lambda v: v / view)

    def negate(self, input: Ref) -> Ref:
        """torch.neg."""
        return self.multiply(input, -1.0)

    def _per_channel(self, x: Ref, constant: Any) -> Tensor:
        """float64 [C] of a number, or of a tensor that broadcasts along channels only."""
        channels = canonical(x.view)[0]
        if self.view != x.view or len(x.view or ()) == 2:
            raise Unsupported("its constant changes the value's shape")
        if isinstance(constant, bool) or not isinstance(constant, Number | Tensor):
            raise Unsupported(f"its argument is a {type(constant).__name__}")
        values = torch.as_tensor(constant, dtype=torch.float64).detach()
        rank = len(x.view or ())
        shape = (1,) * (rank + 1 - values.ndim) + tuple(values.shape)
        if len(shape) != rank + 1 or shape[0] != 1 or any(size != 1 for size in shape[2:]):
            raise Unsupported("its constant is not one number per channel")
        return values.reshape(-1).expand(channels).contiguous()

    # Pooling and shapes

    def max_pool(
        self,
        input: Ref,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Ref:
        """F.max_pool2d."""
        if _pair(dilation) != (1, 1) or return_indices:
            raise Unsupported("a max-pool with dilation or indices")
        return self._node(
            PoolNode,
            _traced(input, 3),
            kernel=_pair(kernel_size),
            stride=_pair(stride or kernel_size),
            padding=_pair(padding),
            ceil_mode=ceil_mode,
        )

    def max_pool_module(self, module: nn.MaxPool2d, x: Ref) -> Ref:
        """nn.MaxPool2d."""
        return self.max_pool(
            x,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.ceil_mode,
            module.return_indices,
        )

    def avg_pool(
        self,
        input: Ref,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Ref:
        """F.avg_pool2d."""
        return self._node(
            PoolNode,
            _traced(input, 3),
            kernel=_pair(kernel_size),
            stride=_pair(stride or kernel_size),
            padding=_pair(padding),
            ceil_mode=ceil_mode,
            average=(count_include_pad, divisor_override or 0),
        )

    def adaptive_avg_pool(self, input: Ref, output_size: Any) -> Ref:
        """F.adaptive_avg_pool2d where the windows are equal and do not overlap."""
        sizes = canonical(_traced(input, 3).view)[1:]
        wanted = canonical(self.view)[1:]
        del output_size
        if any(size % want for size, want in zip(sizes, wanted, strict=True)):
            raise Unsupported(f"adaptive pooling of {sizes} to {wanted} has unequal windows")
        kernel = (sizes[0] // wanted[0], sizes[1] // wanted[1])
        return self.avg_pool(input, kernel)

    def mean(self, input: Ref, dim: Any = None, keepdim: bool = False) -> Ref:
        """torch.mean over height and width."""
        del keepdim
        channels, height, width = canonical(_traced(input, 3).view)
        dims = sorted(
            d % 4 for d in (dim if isinstance(dim, Sequence) else (dim,)) if d is not None
        )
        if dims != [2, 3]:
            raise Unsupported("a mean over other dimensions than height and width")
        node = PoolNode(
            self.name,
            (channels, 1, 1),
            [input.node],
            kernel=(height, width),
            stride=(height, width),
            average=(True, 0),
        )
        return Ref(node, self.view)

    def reshape(self, input: Ref, *args: Any, **kwargs: Any) -> Ref:
        """view, reshape, flatten, squeeze, ...: the result's shape says what happened."""
        del args, kwargs
        shape, result = canonical(_traced(input).view), canonical(self.view)
        if shape == result:
            return Ref(input.node, self.view)
        if result != (math.prod(shape), 1, 1):
            raise Unsupported(f"it reshapes {shape} to {self.view}")
        return self._node(FlattenNode, input)


def _traced(ref: Any, *ranks: int) -> Ref:
    if not isinstance(ref, Ref):
        raise Unsupported("its input is not a value of the network")
    canonical(ref.view)
    if ranks and len(ref.view or ()) not in ranks:
        raise Unsupported(f"its input has shape {ref.view} per image")
    return ref


def _constant(*tensors: Any) -> Tensor:
    """The first of `tensors` as float64; Unsupported if one is computed from the input."""
    if any(not isinstance(tensor, Tensor | None) for tensor in tensors):
        raise Unsupported("its parameters are computed from the input")
    return tensors[0].detach().double()


def _finite_bias(bias: Tensor | None, name: str) -> Tensor | None:
    if bias is None:
        return None
    if not torch.isfinite(bias).all():
        raise PackError(f"{name}: its bias is not finite; check its parameters")
    return bias.detach().double()


def _pair(value: Any) -> Pair:
    sizes = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(sizes) not in (1, 2) or any(type(size) is not int for size in sizes):
        raise Unsupported(f"its size {value!r} is not one or two integers")
    return (sizes[0], sizes[-1])


def _ticket_weight(module: MPTConv2d | MPTLinear) -> Tensor:
    return module.gain().double() * module.sign_code().double()


def _apply(handler: Callable[..., Ref], module: nn.Module, call: Call, x: Ref) -> Ref:
    return handler(call, module, x)


_MODULES: dict[type[nn.Module], Callable] = {
    nn.Conv2d: Call.conv_module,
    MPTConv2d: Call.conv_module,
    nn.Linear: Call.linear_module,
    MPTLinear: Call.linear_module,
    nn.BatchNorm1d: Call.batch_norm_module,
    nn.BatchNorm2d: Call.batch_norm_module,
    nn.ReLU: lambda call, module, x: call.relu(x),
    BinaryActivation: lambda call, module, x: call.binary_activation(x),
    SignActivation: lambda call, module, x: call.sign(x),
    MaxPool2d: Call.max_pool_module,
    nn.MaxPool2d: Call.max_pool_module,
    nn.AvgPool2d: lambda call, module, x: call.avg_pool(
        x,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda call, module, x: call.adaptive_avg_pool(x, module.output_size),
    nn.Flatten: lambda call, module, x: call.reshape(x),
    nn.Unflatten: lambda call, module, x: call.reshape(x),
    **dict.fromkeys(
        (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout),
        lambda call, module, x: call.identity(x),
    ),
}

_FUNCTIONS: dict[Any, Callable] = {
    function: handler
    for handler, functions in (
        (Call.conv, (F.conv2d, torch.conv2d)),
        (Call.linear, (F.linear,)),
        (Call.batch_norm, (F.batch_norm,)),
        (Call.relu, (F.relu, torch.relu, torch.relu_, F.relu_)),
        (Call.sign, (torch.sign, torch.sgn)),
        (Call.binary_activation, (binary_activation,)),
        (Call.add, (operator.add, operator.iadd, torch.add)),
        (Call.subtract, (operator.sub, operator.isub, torch.sub, torch.subtract)),
        (Call.multiply, (operator.mul, operator.imul, torch.mul, torch.multiply)),
        (Call.divide, (operator.truediv, operator.itruediv, torch.div, torch.divide)),
        (Call.negate, (operator.neg, torch.neg, torch.negative)),
        (Call.max_pool, (F.max_pool2d, torch.max_pool2d)),
        (Call.avg_pool, (F.avg_pool2d,)),
        (Call.adaptive_avg_pool, (F.adaptive_avg_pool2d,)),
        (Call.mean, (torch.mean,)),
        (
            Call.reshape,
            (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.ravel),
        ),
        (Call.dropout, (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout)),
    )
    for function in functions
}

_METHODS: dict[str, Callable] = {
    "relu": Call.relu,
    "sign": Call.sign,
    "sgn": Call.sign,
    "add": Call.add,
    "sub": Call.subtract,
    "mul": Call.multiply,
    "div": Call.divide,
    "neg": Call.negate,
    "mean": Call.mean,
    **dict.fromkeys(("contiguous", "clone", "detach"), Call.identity),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "squeeze", "unsqueeze", "view_as"), Call.reshape
    ),
}


def handler_of(op: str, target: Any, module: nn.Module | None) -> Callable[..., Ref]:
    """The handler of a traced operation, to be called with its Call and arguments.

    Raises Unsupported for a module class, function or method that has none.
    """
    if module is not None:
        for cls, handler in _MODULES.items():
            # A subclass counts only while it computes what its base does.
            if isinstance(module, cls) and type(module).forward is cls.forward:
                return functools.partial(_apply, handler, module)
        raise Unsupported("no engine step for this module")
    table, key = (_METHODS, target) if op == "call_method" else (_FUNCTIONS, target)
    name = key.removesuffix("_") if isinstance(key, str) else key
    if name not in table:
        raise Unsupported(
            f"no engine step for this {'method' if table is _METHODS else 'function'}"
        )
    return table[name]
