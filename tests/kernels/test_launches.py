"""What every launch of a Triton kernel must have, read from the sources."""

import ast
from pathlib import Path

import pytest

from mpt_fast.kernels import backend

SOURCES = sorted(Path(backend.__file__).parent.glob("*/triton*.py"))


def calls(tree: ast.AST, inside: str = "", guarded: bool = False) -> list[tuple[str, str, bool]]:
    """(last name of what is called, the function it is called in, whether under a guard)."""
    found = []
    for node in ast.iter_child_nodes(tree):
        function, here = inside, guarded
        if isinstance(node, ast.FunctionDef):
            function, here = node.name, False
        if isinstance(node, ast.With):
            managers = [item.context_expr for item in node.items]
            names = [ast.unparse(call.func) for call in managers if isinstance(call, ast.Call)]
            here = guarded or "guard" in names
        if isinstance(node, ast.Call):
            called = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            found.append((ast.unparse(called).rpartition(".")[2], function, guarded))
        found += calls(node, function, here)
    return found


def unguarded(source: str) -> list[str]:
    """Kernels that are launched neither under `with guard(...)` nor in a function that is only
    called under one."""
    found = calls(ast.parse(source))
    covered = {
        name for name, *_ in found if all(under for other, _, under in found if other == name)
    }
    return [
        name
        for name, function, under in found
        if name.endswith("_kernel") and not under and function not in covered
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_launch_is_on_its_tensors_device(path: Path) -> None:
    assert unguarded(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_is_tuned_when_it_is_launched(path: Path) -> None:
    decorators = [
        ast.unparse(decorator)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    ]
    assert not [name for name in decorators if "autotune" in name or "heuristics" in name]


def test_a_launch_without_a_guard_is_found() -> None:
    launch = "_f_kernel[grid](x)"
    assert unguarded(f"with guard(x):\n    {launch}") == []
    assert unguarded(f"with other(x):\n    {launch}") == ["_f_kernel"]
    assert unguarded(f"with guard(x):\n    pass\n{launch}") == ["_f_kernel"]
    helper = f"def work(x):\n    {launch}\n"
    assert unguarded(f"{helper}with guard(x):\n    work(x)") == []
    assert unguarded(f"{helper}with guard(x):\n    work(x)\nwork(x)") == ["_f_kernel"]
    assert unguarded(helper) == ["_f_kernel"]
