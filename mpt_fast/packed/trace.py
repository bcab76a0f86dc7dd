"""A PyTorch model as a graph of nodes the engine knows, and of those it does not.

torch.fx traces the model (torch's own layers, tickets and BinaryActivation stay whole; so does a
submodule that fx cannot trace, which then runs in PyTorch) and one run on a small batch gives
every shape. Each traced operation is then translated, or becomes a TorchNode.
"""

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod

from mpt_fast.kernels.binary_activation import binary_activation
from mpt_fast.nn import BinaryActivation, MaxPool2d, SignActivation, TicketLayer
from mpt_fast.packed.graph import Graph, InputNode, PackError, Ref, TorchNode
from mpt_fast.packed.translate import Call, Unsupported, canonical, handler_of

_BATCH = 3  # images of the run that finds the shapes
_INPLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class _Tracer(fx.Tracer):
    """Keeps torch's layers, ours, and submodules that cannot be traced whole."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(binary_activation,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, TicketLayer | BinaryActivation | SignActivation | MaxPool2d)
        return ours or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        before = set(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever tracing met, the module can still run as it is
            for node in reversed(list(self.graph.nodes)):
                if node not in before and node.op != "get_attr":
                    self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Seen(NamedTuple):
    """Shape of a tensor that the shape run produced."""

    shape: tuple[int, ...]

    @property
    def view(self) -> tuple[int, ...] | None:
        """Shape per image; None where the first dimension is not the batch."""
        return self.shape[1:] if self.shape[:1] == (_BATCH,) and len(self.shape) > 1 else None


class _ShapeRun(fx.Interpreter):
    """Runs a traced model and keeps shapes, constants and sizes, not the tensors between."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.results: dict[fx.Node, Any] = {}
        self.constant: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "get_attr" or (
            n.op not in ("placeholder", "output") and self.constant.issuperset(n.all_input_nodes)
        ):
            self.constant.add(n)
            self.results[n] = result
        else:
            self.results[n] = _Seen(tuple(result.shape)) if isinstance(result, Tensor) else result
        return result


def trace(model: nn.Module, example_input: Tensor) -> Graph:
    """The graph of `model` in eval mode, all parameters in float64; `model` is left alone.

    `example_input` float [N, ...], N >= 1: its shape per image is the packed network's.
    Raises PackError where the model cannot be copied, traced or run on the example.
    """
    kind = type(model).__name__
    _check_example(example_input)
    try:
        root = copy.deepcopy(model, _pruned_weights(model)).eval().cpu().double()
    except Exception as error:
        raise PackError(
            f"{kind} cannot be copied ({_line(error)}); give a model that copy.deepcopy accepts"
        ) from None
    tracer = _Tracer()
    if tracer.is_leaf_module(root, ""):
        root = nn.Sequential(root)
    try:
        traced = fx.GraphModule(root, tracer.trace(root))
    except Exception as error:
        raise PackError(
            f"torch.fx cannot trace {kind} ({_line(error)}); keep data-dependent Python out of its "
            "forward, or in a submodule"
        ) from None
    run = _ShapeRun(traced)
    image = example_input.detach()[:1].cpu().double()
    images = image.expand(_BATCH, *image.shape[1:]).contiguous()
    try:
        with torch.no_grad():
            expected = root(images.clone())
            found = run.run(images.clone())
    except Exception as error:
        raise PackError(
            f"{kind} fails on an input of shape {list(image.shape)} ({_line(error)}); give an "
            "example_input it accepts"
        ) from None
    if isinstance(expected, Tensor) and not _same(found, expected):
        raise PackError(
            f"torch.fx misreads {kind}: traced, it gives other values; write what it changes in "
            "place out of place, and draw nothing at random"
        )
    return _Builder(traced, run).build(kind)


def _pruned_weights(model: nn.Module) -> dict[int, Any]:
    """Copies of the computed weights of torch.nn.utils.prune, which deepcopy refuses."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def _same(found: Any, expected: Tensor) -> bool:
    return isinstance(found, Tensor) and torch.equal(found.nan_to_num(), expected.nan_to_num())


def _check_example(example: Any) -> None:
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise PackError("example_input is not a float tensor; give one batch of images")
    if not 2 <= example.ndim <= 4 or 0 in example.shape:
        raise PackError(
            f"example_input has shape {list(example.shape)}; give [N, C, H, W] or [N, features]"
        )


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


class _Builder:
    def __init__(self, traced: fx.GraphModule, run: _ShapeRun) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.results = run.results
        self.constant = run.constant
        self.env: dict[fx.Node, Ref] = {}

    def build(self, kind: str) -> Graph:
        """Translates every traced operation in order."""
        inputs = [n for n in self.traced.graph.nodes if n.op == "placeholder"]
        used = [n for n in inputs if n.users]
        if len(used) != 1 or used[0] is not inputs[0]:
            raise PackError(f"{kind} takes {len(used)} inputs; a packed network takes one")
        view = self.results[inputs[0]].view
        source = InputNode("input", canonical(view))
        self.env[inputs[0]] = Ref(source, view)
        result: Any = None
        for node in self.traced.graph.nodes:
            if node.op == "output":
                result = node.args[0]
            elif node.op != "placeholder" and node not in self.constant:
                self._visit(node)
        if not isinstance(result, fx.Node) or result not in self.env:
            raise PackError(f"{kind} does not return one tensor computed from its input")
        output = self.env[result]
        if output.node is source:
            raise PackError(f"{kind} computes nothing: it returns its input")
        if output.view is None:
            raise PackError(
                f"{kind} returns shape {list(self.results[result].shape)} for {_BATCH} images; the "
                "first dimension must be the batch"
            )
        return Graph(source, view, output)

    def _visit(self, node: fx.Node) -> None:
        module = self.modules[node.target] if node.op == "call_module" else None
        seen = self.results[node]
        view = seen.view if isinstance(seen, _Seen) else None
        name = _name(node, module)
        try:
            ref = self._translate(node, module, Call(name, view))
        except Unsupported as reason:
            ref = Ref(self._torch(node, module, name, view, str(reason)), view)
        self.env[node] = ref
        target = node.args[0] if node.args else None
        if _in_place(node, module) and isinstance(target, fx.Node) and target in self.env:
            changed = self.env[target].node
            for key, alias in self.env.items():
                if alias.node is changed:  # from here on every view of it shows the new value
                    self.env[key] = Ref(ref.node, alias.view)

    def _translate(self, node: fx.Node, module: nn.Module | None, call: Call) -> Ref:
        if not isinstance(self.results[node], _Seen):
            raise Unsupported("it is no tensor")
        if module is not None and _hooked(module):
            raise Unsupported("it has forward hooks")
        canonical(call.view)
        handler = handler_of(node.op, node.target, module)
        args = fx.node.map_arg(node.args, self._argument)
        kwargs = fx.node.map_arg(node.kwargs, self._argument)
        try:
            inspect.signature(handler).bind(call, *args, **kwargs)
        except TypeError:
            raise Unsupported("it is called with arguments the engine has no step for") from None
        return handler(call, *args, **kwargs)

    def _argument(self, node: fx.Node) -> Any:
        return self.env[node] if isinstance(self.results[node], _Seen) else self.results[node]

    def _torch(
        self,
        node: fx.Node,
        module: nn.Module | None,
        name: str,
        view: tuple[int, ...] | None,
        reason: str,
    ) -> TorchNode:
        sources = [source for source in node.all_input_nodes if source not in self.constant]
        constants = {n: self.results[n] for n in node.all_input_nodes if n in self.constant}
        refs = [self.env[source] for source in sources]
        modules: dict[torch.dtype, nn.Module] = {} if module is None else {torch.float64: module}

        def call(dtype: torch.dtype, values: list[Any]) -> Any:
            # Copies, because the operation may work in place on what others read as well.
            known = {n: _cast(value, dtype) for n, value in constants.items()}
            known |= {n: _cast(value, dtype) for n, value in zip(sources, values, strict=True)}
            args = fx.node.map_arg(node.args, known.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
            if module is not None:
                if dtype not in modules:
                    modules[dtype] = copy.deepcopy(module).to(dtype)
                return modules[dtype](*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)

        tensor = isinstance(self.results[node], _Seen)
        try:
            shape = canonical(view)
        except Unsupported:
            shape = (1, 1, 1)
        return TorchNode(
            name,
            shape,
            [ref.node for ref in refs],
            reason=reason,
            operation=_operation(node, module),
            call=call,
            views=[ref.view for ref in refs],
            bookkeeping=not tensor,
        )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)


def _name(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return str(node.target)
    return node.name


def _operation(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks) or any(
        not isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values()
    )


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target in _INPLACE_OPERATORS
        or node.kwargs.get("inplace") is True
        or (target.endswith("_") and not target.endswith("__"))
    )
