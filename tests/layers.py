"""The picture of the layers (ARCHITECTURE.md) as data, and the functions that hold a tree of modules against it.

A *room* is a package or a module directly under ``guestmem``; the package's own ``__init__`` is the room ``guestmem``.
The functions take the modules as syntax trees by dotted name, so that tests can plant an import and see it reported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from source import named

Modules = Mapping[str, ast.Module]

# From top to bottom. A room imports rooms of the layers below its own, and nothing else, for types too.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "pytest_plugin"),
    ("report",),
    ("guestmem",),
    ("fuzz", "doctor", "exec", "explain", "layout", "proofs", "races", "trace"),
    ("targets", "host"),
    ("recordings",),
    ("objects",),
    ("lab",),
    ("kvm", "model"),
    ("backend",),
    ("arguments",),
    ("rules",),
    ("geometry",),
    ("units", "runmap", "uapi", "harness", "pagemap", "version", "text", "outfile", "duplicates"),
    ("errors",),
)
BACKENDS = ("model", "kvm", "lab")
WORDS = (
    "harness",
    "backend",
    "arguments",
    "rules",
    "geometry",
    "units",
    "runmap",
    "uapi",
    "version",
    "text",
    "outfile",
    "duplicates",
    "errors",
)

# What a room may not reach although it is below: by its own imports anywhere, nor through the imports of others.
APART: Mapping[str, tuple[str, ...]] = {
    "recordings": (*BACKENDS, "guestmem"),
    "exec": ("kvm", "lab"),
    "layout": ("kvm", "lab"),
    "proofs": ("kvm", "lab"),
    "races": tuple(room for layer in LAYERS for room in layer if room != "races"),
    "kvm": ("rules", "geometry"),
}


def room_of(module: str) -> str:
    """The room of a module of ours."""
    return module.split(".")[1] if "." in module else module


def arrows(modules: Modules, *, at_start: bool = False) -> dict[str, frozenset[str]]:
    """What each module imports of ours, wherever it does so; at_start: only what runs when it is imported."""
    known = frozenset(modules)
    return {name: _imports(tree, known, at_start) - {name} for name, tree in modules.items()}


def upward(modules: Modules) -> list[str]:
    """The imports that do not point down, and the rooms that no layer has."""
    height = {room: len(LAYERS) - number for number, layer in enumerate(LAYERS) for room in layer}
    rooms = {room_of(name) for name in modules}
    found = [f"{room} is in no layer" for room in sorted(rooms - set(height))]
    for name, targets in arrows(modules).items():
        for target in sorted(targets):
            here, there = room_of(name), room_of(target)
            if here != there and height.get(here, 0) <= height.get(there, 0):
                found.append(f"{name} imports {target}, which is not below it")
    return found


def circles(modules: Modules) -> list[str]:
    """The circles of rooms, each as a path back to its beginning."""
    between: dict[str, set[str]] = {}
    for name, targets in arrows(modules).items():
        here = room_of(name)
        between.setdefault(here, set()).update(room_of(target) for target in targets if room_of(target) != here)
    found = []
    for room in sorted(between):
        way = _path(between, between.get(room, set()), {room})
        if way:
            found.append(" -> ".join((room, *way)))
    return found


def apart(modules: Modules) -> list[str]:
    """The modules that reach what their room must do without: by an import anywhere, or through what is loaded then."""
    everywhere, loaded = arrows(modules), arrows(modules, at_start=True)
    found = []
    for name in modules:
        forbidden = set(APART.get(room_of(name), ()))
        goals = {target for target in modules if room_of(target) in forbidden}
        way = _path(loaded, everywhere[name], goals)
        if way:
            found.append(f"{' -> '.join((name, *way))}: {room_of(name)} does without {room_of(way[-1])}")
    return found


def _path(graph: Mapping[str, Iterable[str]], starts: Iterable[str], goals: set[str]) -> tuple[str, ...]:
    """A shortest path from one of the starts to one of the goals; () if there is none."""
    ways: list[tuple[str, ...]] = [(start,) for start in sorted(starts)]
    seen = set(starts)
    for way in ways:  # grows while it is read
        if way[-1] in goals:
            return way
        fresh = sorted(set(graph.get(way[-1], ())) - seen)
        seen.update(fresh)
        ways += [(*way, each) for each in fresh]
    return ()


@cache
def _imports(tree: ast.Module, known: frozenset[str], at_start: bool) -> frozenset[str]:
    """Modules of ours, with the packages that hold them: importing a module runs those first."""
    found = set()
    for node in _at_start(tree) if at_start else ast.walk(tree):
        for name in named(node, known):
            parts = name.split(".")
            if parts[0] == "guestmem":
                found.add(name if name in known else parts[0])
                found.update(".".join(parts[:count]) for count in range(2, len(parts)) if at_start)
    return frozenset(found)


def _at_start(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not those of functions, nor those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (each for branch in node.orelse for each in (branch, *_at_start(branch)))
            continue
        yield node
        yield from _at_start(node)
