"""The package's own source, as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src"


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "guestmem").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST, known: Set[str]) -> Iterator[str]:
    """The modules that a tree imports, wherever in it."""
    for node in ast.walk(tree):
        yield from named(node, known)


def named(node: ast.AST, known: Set[str]) -> Iterator[str]:
    """The modules that one node imports, by a statement or by a call.

    ``from package import module`` is the module. A name that is put together is known up to its last dot:
    ``import_module(f"guestmem.lab.{name}")`` is guestmem.lab. A name that is not known at all is "?".
    """
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom():
            assert node.level == 0, "relative imports are not followed"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module or ""
        case ast.Call(func=ast.Name(id=function) | ast.Attribute(attr=function), args=[first, *_]) if function in {
            "import_module",
            "__import__",
        }:
            match first:
                case ast.Constant(value=str(name)):
                    yield name
                case ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]) if "." in start:
                    yield start.rpartition(".")[0]
                case _:
                    yield "?"
