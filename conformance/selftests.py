"""Build the selftests of one kernel, outside of the repository (tools/testing/selftests/kvm)."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guestmem.errors import BackendUnavailable, InputError
from guestmem.lab.source import Archive, Source

__all__ = ("TESTS", "Selftest", "build", "is_needed", "tree_in", "version_of")

# What of the source the selftests and their headers need.
_PARTS: Final = ("tools", "include", "arch/x86", "scripts", "Makefile", "Kbuild")
_ARCHITECTURE: Final = ("x86", "x86_64")  # the directory's name since 6.14, and before
_TOOLS: Final = ("make", "gcc")


@dataclass(frozen=True, slots=True)
class Selftest:
    """One program with its arguments. limit_s: how long the model may take for it."""

    name: str
    arguments: tuple[str, ...] = ()
    limit_s: float = 300

    @property
    def title(self) -> str:
        """As one would type it."""
        return " ".join((self.name, *self.arguments))


TESTS: Final = (
    Selftest("guest_memfd_test"),
    Selftest("set_memory_region_test"),
    Selftest("private_mem_conversions_test"),
    Selftest("private_mem_conversions_test", ("-n", "2")),
    Selftest("private_mem_conversions_test", ("-m", "2")),
    Selftest("private_mem_kvm_exits_test"),
    Selftest("pre_fault_memory_test"),
    Selftest("vm_types_test"),
    Selftest("guest_print_test"),
    Selftest("memslot_modification_stress_test", ("-b", "16M", "-i", "3")),
    Selftest("demand_paging_test", ("-b", "16M")),
    Selftest("kvm_create_max_vcpus"),
)


def build(source: Source, directory: Path) -> dict[str, Path]:
    """Build what this kernel has of TESTS into a directory; program by name. BackendUnavailable, InputError."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise BackendUnavailable(f"building the selftests takes {', '.join(missing)}: apt install gcc make")
    tree = _unpacked(source, directory)
    selftests = tree / "tools" / "testing" / "selftests" / "kvm"
    if not selftests.is_dir():
        raise InputError(f"{tree} has no KVM selftests")
    _make(tree, "headers")
    programs = {}
    out = directory / "programs"
    out.mkdir(exist_ok=True)
    for name in dict.fromkeys(test.name for test in TESTS):
        target = _target(selftests, name)
        if target is not None:
            _make(selftests, f"OUTPUT={out}", "LDFLAGS=-static -pthread", str(out / target))
            programs[name] = out / target
    return programs


def version_of(tree: Path) -> str:
    """The kernel's version, from its Makefile: "7.3.4"."""
    values = {}
    for line in (tree / "Makefile").read_text().splitlines()[:10]:
        name, _, value = line.partition("=")
        values[name.strip()] = value.strip()
    return ".".join(values[part] for part in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def tree_in(directory: Path) -> Path:
    """The source that ``build`` unpacked."""
    return next(path for path in (directory / "source").iterdir() if path.is_dir())


def _unpacked(source: Source, directory: Path) -> Path:
    """A tree of our own to build in; a user's tree is copied, for it is not to be written to."""
    place = directory / "source"
    if place.is_dir():
        return tree_in(directory)
    partial = directory / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if isinstance(source, Archive):
        with tarfile.open(source.path) as archive:
            members = (member for member in archive if is_needed(member.name.partition("/")[2]))
            archive.extractall(partial, members, filter="tar")
    else:
        for part in _PARTS:
            found = source.path / part
            copy = shutil.copytree if found.is_dir() else shutil.copy2
            (partial / "linux" / part).parent.mkdir(parents=True, exist_ok=True)
            copy(found, partial / "linux" / part)
    partial.rename(place)
    return tree_in(directory)


def is_needed(path: str) -> bool:
    """Parts, and every header of a driver: the library under the selftests includes some."""
    if path.startswith("drivers/"):
        return path.endswith(".h")
    return any(path == part or path.startswith(f"{part}/") for part in _PARTS)


def _target(selftests: Path, name: str) -> str | None:
    if (selftests / f"{name}.c").is_file():
        return name
    return next((f"{sub}/{name}" for sub in _ARCHITECTURE if (selftests / sub / f"{name}.c").is_file()), None)


def _make(directory: Path, *arguments: str) -> None:
    command = ["make", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
