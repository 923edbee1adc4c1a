"""Rules of one's own: a class in a Python file, named as FILE.py:NAME wherever a rule is named.

The file is run, so it can do whatever its author can. What it leaves out of a rule's history is filled in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from guestmem.errors import InputError
from guestmem.rules.rule import Rule

__all__ = ("is_own", "own_rule")

_METHODS = ("refuses", "fault_order", "alignment")
# What a mistake in a rule's code ends in.
_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, RecursionError)


def is_own(name: str) -> bool:
    """Whether the name is that of a class in a file."""
    return name.rpartition(":")[0].endswith(".py")


def own_rule(name: str) -> Rule:
    """The rule that FILE.py:NAME is; InputError says what is wrong with the file, or which rules it has."""
    path, _, wanted = name.rpartition(":")
    module = _run(path)
    rules = [key for key, value in vars(module).items() if _is_rule(value)]
    kind: Any = vars(module).get(wanted)
    if not _is_rule(kind):
        there = f"there are {', '.join(rules)}" if rules else "it has no class derived from guestmem.rules.Rule"
        raise InputError(f"{path} has no rule {wanted!r}: {there}")
    statement = (kind.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    own = {"name": name, "source": path, "statement": kind.statement or statement, "__slots__": ()}
    guarded = {method: _guarded(name, getattr(kind, method)) for method in _METHODS if hasattr(kind, method)}
    try:
        rule: Rule = type(wanted, (kind,), own | guarded)()
    except _MISTAKES as mistake:
        raise InputError(f"{name}: the rule cannot be made: {mistake}") from mistake
    return rule


def _is_rule(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Rule) and value.__module__ == _MODULE


_MODULE = "guestmem_own_rules"


def _run(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    spec = spec_from_file_location(_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as wrong:
        raise InputError(f"{path}:{wrong.lineno}: {wrong.msg}") from wrong
    except Exception as wrong:
        raise InputError(f"{path} cannot be run: {type(wrong).__name__}: {wrong}") from wrong
    return module


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose mistakes are its author's and no bug in guestmem."""

    @functools.wraps(method)
    def guarded(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except _MISTAKES as mistake:
            raise InputError(f"{name}: {method.__name__} failed: {type(mistake).__name__}: {mistake}") from mistake

    return guarded
