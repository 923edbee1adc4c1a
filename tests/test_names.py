"""Names of the source: no two public classes share one, and no constant is written down twice."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

import pytest
from source import modules

from guestmem import units

MODULES = modules()
OF_THE_KERNEL = {
    "GuestMemfd",
    "RestrictedMem",
    "Vcpu",
    "Vm",
}  # each backend has its own, and so have the objects over all of them
NO_FACT = {
    "CHUNK",  # bytes of one read, for each reader to choose
    "WRITE",  # a system call, and the direction of an ioctl
}


def public_classes(name: str, tree: ast.Module) -> Iterator[str]:
    """The public classes of a module."""
    yield from (node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))


def constants(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """The numbers and texts that a module gives a name in capitals, a leading underscore aside."""
    known: dict[str, object] = dict(vars(units))
    for node in tree.body:
        match node:
            case ast.Assign(targets=[target], value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                pass
            case _:
                continue
        found = _value(value, known)
        names = [target] if isinstance(target, ast.Name) else target.elts if isinstance(target, ast.Tuple) else []
        values = found if isinstance(target, ast.Tuple) and isinstance(found, tuple) else (found,) * len(names)
        for name, one in zip(names, values, strict=True):
            if isinstance(name, ast.Name) and isinstance(one, int | str):
                known[name.id] = one
                if name.id.strip("_").isupper():
                    yield name.id.strip("_"), one


def _value(node: ast.expr, known: dict[str, object]) -> object:
    """What an expression of literals and of constants before it comes to; None if it is more than that."""
    try:
        return eval(compile(ast.Expression(node), "constant", "eval"), {"__builtins__": {}}, known)
    except Exception:
        return None


def twice(named: Iterator[tuple[object, str]]) -> dict[object, list[str]]:
    """What more than one module has, with the modules."""
    found = defaultdict(list)
    for what, module in named:
        found[what].append(module)
    return {what: where for what, where in found.items() if len(where) > 1}


def test_no_two_public_classes_share_a_name_unless_it_is_the_kernels() -> None:
    found = twice((name, module) for module, tree in MODULES.items() for name in public_classes(module, tree))

    assert {name: where for name, where in found.items() if name not in OF_THE_KERNEL} == {}
    assert set(found) == OF_THE_KERNEL, "a name that is shared no longer need not be listed"


def test_no_constant_is_written_down_twice() -> None:
    found = twice(
        (each, module) for module, tree in MODULES.items() for each in constants(tree) if each[0] != "__all__"
    )

    assert {each: where for each, where in found.items() if isinstance(each, tuple) and each[0] not in NO_FACT} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A = 1", [("A", 1)]),
        ("_A: Final = 2 * MIB", [("A", 2 << 20)]),
        ("A, B = 1, 'x'", [("A", 1), ("B", "x")]),
        ("P = 4096\nQ = 2 * P", [("P", 4096), ("Q", 8192)]),
        ("a = 1\nA = f()\nA: int\nA = (1, 2)", []),
    ],
)
def test_constants_are_seen(text: str, found: list[tuple[str, object]]) -> None:
    assert list(constants(ast.parse(text))) == found
