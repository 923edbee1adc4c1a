"""Whatever is public says what it is: every module, class, function and method of the package has a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

import pytest
from source import modules

MODULES = modules()
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of the package by its bare name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def methods_of(name: str) -> set[str]:
    """The documented methods of a class, of its bases, and so on, found by the class's name."""
    found: set[str] = set()
    for node in classes().get(name, []):
        found |= {method.name for method in public(node.body) if ast.get_docstring(method)}
        for base in node.bases:
            found |= methods_of(ast.unparse(base).partition("[")[0])
    return found


def undocumented(tree: ast.Module) -> Iterator[str]:
    for node in public(tree.body):
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            inherited: set[str] = set()
            for base in node.bases:
                inherited |= methods_of(ast.unparse(base).partition("[")[0])
            for method in public(node.body):
                if not ast.get_docstring(method) and method.name not in inherited:
                    yield f"{node.name}.{method.name}"


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring_or_overrides_what_has_one(name: str) -> None:
    assert list(undocumented(MODULES[name])) == []


@pytest.mark.parametrize("name", [name for name, tree in MODULES.items() if tree.body])
def test_every_module_that_is_not_empty_says_what_it_is_about(name: str) -> None:
    documentation = ast.get_docstring(MODULES[name])

    assert documentation
