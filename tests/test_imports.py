"""The picture of the layers (ARCHITECTURE), read from the source: arrows point down only."""

from __future__ import annotations

import ast
import graphlib

import pytest
from source import imports, modules

MODULES = modules()
IMPORTS = {name: set(imports(tree, set(MODULES))) for name, tree in MODULES.items()}

# The words both sides share, and what each may know besides itself.
WORDS = {
    "guestmem.units": set(),
    "guestmem.errors": set(),
    "guestmem.uapi": set(),
    "guestmem.version": set(),
    "guestmem.runmap": set(),
    "guestmem.geometry": {"guestmem.units"},
    "guestmem.rules": {"guestmem.units", "guestmem.geometry", "guestmem.rules"},
    "guestmem.backend": {"guestmem.errors"},
}
SHELL = {"ctypes", "fcntl", "mmap"}
WORLD = {
    "os",
    "time",
    "datetime",
    "random",
    "secrets",
    "uuid",
    "socket",
    "subprocess",
    "signal",
    "threading",
    "asyncio",
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def of(package: str) -> list[str]:
    """The package's modules; a package must have some, or the promise is about nothing."""
    found = [name for name in MODULES if within(name, package)]
    assert found
    return found


def reached(name: str) -> set[str]:
    """What a module of ours imports of ours."""
    return {imported for imported in IMPORTS[name] if within(imported, "guestmem")}


@pytest.mark.parametrize("package", WORDS)
def test_the_shared_words_know_only_the_words_below_them(package: str) -> None:
    for name in of(package):
        for imported in reached(name):
            assert any(within(imported, allowed) for allowed in WORDS[package]), f"{name} imports {imported}"


@pytest.mark.parametrize("name", of("guestmem.model"))
def test_the_model_knows_the_words_and_itself(name: str) -> None:
    allowed = {"guestmem.model", *WORDS}

    for imported in reached(name):
        assert any(within(imported, package) for package in allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("name", of("guestmem.model"))
def test_the_model_touches_no_descriptor_clock_or_chance(name: str) -> None:
    assert not IMPORTS[name] & (SHELL | WORLD)


@pytest.mark.parametrize(
    "name", [name for name in MODULES if not within(name, "guestmem.kvm") and not within(name, "guestmem.exec")]
)
def test_only_the_real_backend_and_the_supervisor_make_system_calls_of_their_own(name: str) -> None:
    assert not IMPORTS[name] & SHELL


@pytest.mark.parametrize("name", of("guestmem.recordings"))
def test_running_and_comparing_recordings_knows_no_backend(name: str) -> None:
    for imported in reached(name):
        assert not within(imported, "guestmem.model")
        assert not within(imported, "guestmem.kvm")


@pytest.mark.parametrize("name", [name for name in MODULES if not within(name, "guestmem.cli")])
def test_nothing_but_the_program_itself_knows_the_command_line(name: str) -> None:
    if name != "guestmem.__main__":
        assert not [imported for imported in IMPORTS[name] if within(imported, "guestmem.cli")]


@pytest.mark.parametrize("name", of("guestmem.recordings"))
def test_transcripts_print_nothing(name: str) -> None:
    assert not IMPORTS[name] & {"rich", "typer", "sys"}


@pytest.mark.parametrize("name", of("guestmem.cli"))
def test_the_command_line_imports_nothing_heavy_before_a_command_runs(name: str) -> None:
    at_start = ast.Module(
        [node for node in MODULES[name].body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[]
    )
    light = {"guestmem.cli", "guestmem.version", "guestmem.errors"}

    for imported in imports(at_start, set(MODULES)):
        if within(imported, "guestmem"):
            assert any(within(imported, allowed) for allowed in light), imported
        else:
            assert imported.partition(".")[0] not in {"rich", "msgspec", "sortedcontainers"}


def test_no_module_needs_itself_to_be_imported() -> None:
    """Imports at the top of modules form no cycle; those inside functions or for types only do not count."""
    graph = {}
    for name, tree in MODULES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[])
        graph[name] = {imported for imported in imports(top, set(MODULES)) if imported in MODULES and imported != name}

    graphlib.TopologicalSorter(graph).prepare()


def test_nothing_needs_the_solver_but_the_proofs_their_writers_and_their_command() -> None:
    writers = {f"guestmem.report.{name}" for name in ("lattice_svg", "proofs_files", "proofs_json", "proofs_text")}
    for name in MODULES:
        if not within(name, "guestmem.proofs") and name not in {"guestmem.cli.prove", *writers}:
            assert not any(within(imported, "guestmem.proofs") for imported in reached(name)), name
            assert "z3" not in IMPORTS[name], name
