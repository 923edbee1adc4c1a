"""The layers of tests/layers.py, read from the source; and planted imports, to show that the guards bite."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys

import pytest
from layers import APART, BACKENDS, LAYERS, WORDS, Modules, apart, arrows, circles, room_of, upward
from source import imports, modules, named

import guestmem

MODULES = modules()
IMPORTS = {name: set(imports(tree, set(MODULES))) for name, tree in MODULES.items()}
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


def of(room: str) -> list[str]:
    """The room's modules; a room must have some, or the promise is about nothing."""
    found = [name for name in MODULES if room_of(name) == room]
    assert found
    return found


def with_planted(**lines: str) -> Modules:
    """The source with a line more at the end of some modules; ``layout__value`` is guestmem.layout.value."""
    planted = dict(MODULES)
    for name, line in lines.items():
        module = f"guestmem.{name.replace('__', '.')}"
        old = MODULES[module].body if module in MODULES else []
        planted[module] = ast.Module([*old, *ast.parse(line).body], type_ignores=[])
    return planted


# The layers


def test_every_import_points_down() -> None:
    assert upward(MODULES) == []


def test_no_circle_of_rooms() -> None:
    assert circles(MODULES) == []


def test_what_is_kept_apart_is_not_reached() -> None:
    assert apart(MODULES) == []


def test_no_room_is_in_two_layers() -> None:
    rooms = [room for layer in LAYERS for room in layer]

    assert len(rooms) == len(set(rooms))
    assert set(APART) | {room for rooms in APART.values() for room in rooms} | set(WORDS) <= set(rooms)


def test_no_module_needs_itself_to_be_imported() -> None:
    """Imports that run when modules are imported form no cycle. A package's own __init__ may import its modules."""
    graph = arrows(MODULES, at_start=True)
    inits = {name for name in MODULES if any(other.startswith(f"{name}.") for other in MODULES)}

    graphlib.TopologicalSorter({name: targets - inits for name, targets in graph.items()}).prepare()


@pytest.mark.parametrize(
    ("module", "line", "report"),
    [
        (
            "layout__value",
            "import guestmem.report.json_text",
            "guestmem.layout.value imports guestmem.report.json_text",
        ),
        ("layout__value", "from guestmem.report import json_text", "guestmem.layout.value imports guestmem.report."),
        (
            "recordings__reader",
            "from guestmem.fuzz import campaign",
            "guestmem.recordings.reader imports guestmem.fuzz.",
        ),
        ("kvm__memory", "from guestmem.lab.machine import Machine", "guestmem.kvm.memory imports guestmem.lab.machine"),
        ("model__levels", "from guestmem import kvm", "guestmem.model.levels imports guestmem.kvm"),
        ("units", "def f():\n    import guestmem.model.levels", "guestmem.units imports guestmem.model.levels"),
        ("rules", "if TYPE_CHECKING:\n    from guestmem.model import levels", "guestmem.rules imports guestmem.model."),
        ("objects", "import guestmem", "guestmem.objects imports guestmem,"),
        (
            "layout__value",
            "import importlib\nimportlib.import_module('guestmem.report.json_text')",
            "guestmem.layout.value imports guestmem.report.json_text",
        ),
        (
            "model__levels",
            "def f(name):\n    return import_module(f'guestmem.kvm.{name}')",
            "guestmem.model.levels imports guestmem.kvm",
        ),
        ("units", "__import__('guestmem.model')", "guestmem.units imports guestmem.model"),
        ("cli__run", "from guestmem import pytest_plugin", "guestmem.cli.run imports guestmem.pytest_plugin"),
        ("somewhere", "x = 1", "somewhere is in no layer"),
    ],
)
def test_an_import_that_does_not_point_down_is_reported(module: str, line: str, report: str) -> None:
    new = set(upward(with_planted(**{module: line}))) - set(upward(MODULES))

    assert len(new) == 1
    assert new.pop().startswith(report)


def test_a_circle_of_rooms_is_reported() -> None:
    planted = with_planted(layout__value="import guestmem.doctor", doctor="def f():\n    import guestmem.layout.value")

    assert "doctor -> layout -> doctor" in circles(planted)


def test_a_longer_circle_is_reported() -> None:
    planted = with_planted(
        layout__value="import guestmem.doctor", doctor="import guestmem.fuzz", fuzz="import guestmem.layout.value"
    )

    assert {"doctor -> fuzz -> layout -> doctor", "layout -> doctor -> fuzz -> layout"} <= set(circles(planted))


@pytest.mark.parametrize(
    ("planted", "report"),
    [
        ({"recordings__reader": "import guestmem.model.levels"}, "recordings.reader -> guestmem.model.levels"),
        ({"recordings__reader": "def f():\n    import guestmem.kvm"}, "recordings.reader -> guestmem.kvm"),
        (
            {"recordings__reader": "import guestmem.units", "units": "import guestmem.model.levels"},
            "recordings.reader -> guestmem.units -> guestmem.model: recordings does without model",
        ),
        ({"races__world": "import guestmem.units"}, "races.world -> guestmem.units: races does without units"),
        ({"layout__value": "from guestmem.lab import boot"}, "layout.value -> guestmem.lab: layout does without lab"),
    ],
)
def test_what_is_kept_apart_is_reported_with_the_way_to_it(planted: dict[str, str], report: str) -> None:
    new = set(apart(with_planted(**planted))) - set(apart(MODULES))

    assert any(f"guestmem.{report}" in line for line in new)


def test_an_import_inside_a_function_is_not_loaded_at_the_start() -> None:
    """Where a word imports a backend only when called, recordings that use the word load no backend."""
    planted = with_planted(
        recordings__reader="import guestmem.units", units="def f():\n    import guestmem.model.levels"
    )

    assert not set(apart(planted)) - set(apart(MODULES))
    assert "guestmem.units imports guestmem.model.levels, which is not below it" in upward(planted)


# Imports by a name that is not in the source: the first is checked below, the second packs the lab's image.
BY_A_NAME_NOT_KNOWN = {"guestmem": "guestmem", "guestmem.lab.agent": "?", "guestmem.lab.image": "?"}


def by_a_name_not_known(trees: Modules) -> dict[str, str]:
    """The modules whose calls of import_module do not tell the room that they import."""
    known = set(trees)
    calls = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {name: found for name, node in calls for found in named(node, known) if found in {"?", "guestmem"}}


def test_imports_by_name_tell_their_room() -> None:
    assert by_a_name_not_known(MODULES) == BY_A_NAME_NOT_KNOWN


@pytest.mark.parametrize("line", ["import_module(x)", "import_module(f'guestmem.{x}')", "__import__(x + '.y')"])
def test_an_import_by_a_name_that_is_not_known_is_seen(line: str) -> None:
    assert "guestmem.units" in by_a_name_not_known(with_planted(units=line))


def test_what_the_package_looks_up_when_used_is_below_it() -> None:
    lines = "\n".join(f"import guestmem.{home}" for home in set(guestmem._HOMES.values()))

    assert upward({**MODULES, "guestmem": ast.parse(lines)}) == []


# What is loaded


def loaded_after(program: str) -> set[str]:
    """The modules of backends that a fresh interpreter holds after a program."""
    listing = "import sys\nprint(); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", f"{program}\n{listing}"], capture_output=True, text=True, check=True)
    return {name for name in ended.stdout.splitlines()[-1].split() if name.startswith("guestmem.")}


def backends(names: set[str]) -> set[str]:
    return {name for name in names if room_of(name) in BACKENDS}


def test_recordings_load_no_backend() -> None:
    names = of("recordings")
    loaded = loaded_after("\n".join(f"import {name}" for name in names))

    assert set(names) - {"guestmem"} <= loaded
    assert backends(loaded) == set()


def test_the_help_loads_no_backend() -> None:
    program = """
import sys
from guestmem.cli import main
sys.argv = ["guestmem", "--help"]
try:
    main()
except SystemExit:
    pass"""
    errors_only = {"guestmem.lab", "guestmem.lab.errors"}  # what the program's main catches

    assert backends(loaded_after(program)) <= errors_only


def test_the_package_itself_loads_no_backend() -> None:
    assert backends(loaded_after("import guestmem")) == set()


def test_a_loaded_backend_is_seen() -> None:
    assert "guestmem.model.process" in backends(loaded_after("import guestmem\nguestmem.open()"))


@pytest.mark.parametrize("name", of("cli"))
def test_the_command_line_imports_nothing_heavy_before_a_command_runs(name: str) -> None:
    at_start = ast.Module(
        [node for node in MODULES[name].body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[]
    )
    light = {"cli", "version", "errors"}

    for imported in imports(at_start, set(MODULES)):
        if imported.startswith("guestmem."):
            assert room_of(imported) in light, imported
        else:
            assert imported.partition(".")[0] not in {"rich", "msgspec", "sortedcontainers"}


# Who may touch what


@pytest.mark.parametrize("name", of("model"))
def test_the_model_touches_no_descriptor_clock_or_chance(name: str) -> None:
    assert not IMPORTS[name] & (SHELL | WORLD)


# The supervisor of exec; for reading only: bpf(2) and others of host, and PAGEMAP_SCAN.
READS = {"guestmem.host.calls", "guestmem.pagemap"}
MAKES_SYSTEM_CALLS = [name for name in MODULES if room_of(name) in ("kvm", "exec") or name in READS]


@pytest.mark.parametrize("name", sorted(MODULES.keys() - set(MAKES_SYSTEM_CALLS)))
def test_only_the_real_backend_exec_and_two_modules_that_read_make_system_calls(name: str) -> None:
    assert not IMPORTS[name] & SHELL


@pytest.mark.parametrize("name", of("races"))
def test_races_need_nothing_but_the_standard_library(name: str) -> None:
    for imported in IMPORTS[name]:
        assert imported.startswith("guestmem.races") or imported.partition(".")[0] in sys.stdlib_module_names


def test_nothing_needs_the_solver_but_the_proofs_their_writers_and_their_command() -> None:
    for name, targets in arrows(MODULES).items():
        if room_of(name) not in {"proofs", "report"} and not name.startswith("guestmem.cli.prove"):
            assert not any(room_of(imported) == "proofs" for imported in targets), name
        if room_of(name) != "proofs" and not name.startswith("guestmem.cli.prove"):
            assert "z3" not in IMPORTS[name], name


# Writers


ENCODERS = {"json.dump", "json.dumps", "msgspec.json.encode", "msgspec.json.Encoder"}


def writing(tree: ast.Module) -> set[str]:
    """How a module writes for people or programs: rich, typer, print, sys.stdout, or an encoder of JSON."""
    found = {name for name in ("rich", "typer", "click") if any(i.split(".")[0] == name for i in imports(tree, set()))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.add("print")
        if isinstance(node, ast.Attribute) and node.attr in {"stdout", "dump", "dumps", "encode", "Encoder"}:
            found |= {ast.unparse(node)} & {"sys.stdout", *ENCODERS}
    return found


# Encoders that write no answer of a command.
NO_ANSWER = {
    "guestmem.duplicates": {"msgspec.json.encode"},  # counts keys
    "guestmem.fuzz.shrink": {"msgspec.json.encode"},  # measures a recording
    "guestmem.exec.recording": {"msgspec.json.Encoder"},  # a recording that is not whole yet
    "guestmem.report.proofs_files": {"json.dumps"},  # a recording, a line for each operation
    "guestmem.lab.kernel": {"msgspec.json.encode"},  # what was built, beside the kernel
}


@pytest.mark.parametrize("name", MODULES)
def test_only_report_and_the_command_line_write(name: str) -> None:
    found = writing(MODULES[name])
    match room_of(name):
        case "cli":
            assert not found & ENCODERS, "JSON goes through guestmem.report.json_text"
        case "report":
            assert name == "guestmem.report.json_text" or found & ENCODERS <= NO_ANSWER.get(name, set())
        case "recordings":
            assert found <= {"msgspec.json.encode"}, "recordings write recordings, and print nothing"
        case _:
            assert found <= NO_ANSWER.get(name, set())


@pytest.mark.parametrize(
    ("line", "how"),
    [
        ("from rich.table import Table", "rich"),
        ("def f():\n    import typer", "typer"),
        ("print('x')", "print"),
        ("import json\njson.dumps({})", "json.dumps"),
        ("import msgspec\nmsgspec.json.encode({})", "msgspec.json.encode"),
        ("import sys\nsys.stdout.write('')", "sys.stdout"),
    ],
)
def test_a_writer_is_seen(line: str, how: str) -> None:
    assert writing(ast.parse(line)) == {how}
