"""Kernel packages booted under QEMU's emulation with a story program of ours, and what a look at it answers.

The image holds the kernel's KVM modules, the static story program, and this Python with the modules that
``emulated_init.py`` imports: nothing is installed in the machine, and it has neither disk nor network.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from py_compile import compile as compile_file
from typing import Any, BinaryIO

import msgspec

from guestmem.host.document import HostReport
from guestmem.lab.cpio import CpioWriter

TESTS = Path(__file__).parent
STORY = TESTS / "data" / "live" / "kvmstory.c"
INIT = TESTS / "emulated_init.py"
MODULES = ("irqbypass", "kvm", "kvm-amd")
ARGUMENTS = (
    "console=ttyS0 quiet loglevel=3 panic=-1 hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=8 "
    "transparent_hugepage=madvise"
)
MEMORY = "3584M"
TIMEOUT_S = 1200
TOOLS = ("qemu-system-x86_64", "gcc", "dpkg-deb")


@dataclass(frozen=True)
class StageLook:
    """What one reader saw at one stage of the story."""

    stage: str
    report: HostReport


def missing_tools() -> list[str]:
    """The programs that are needed and not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def run_story(packages: Path) -> list[StageLook]:
    """Boot the kernel of the Debian packages in a directory and look at every stage of the story, by both readers.

    AssertionError with the end of the console if it failed.
    """
    with tempfile.TemporaryDirectory(prefix="guestmem-host-") as name:
        directory = Path(name)
        for package in packages.glob("*.deb"):  # image and modules are in two of them since 6.19
            subprocess.run(["dpkg-deb", "-x", str(package), str(directory / "package")], check=True)
        kernel = next((directory / "package").rglob("vmlinuz*"))
        image = directory / "image"
        with image.open("wb") as out:
            _write_image(out, directory)
        console = _boot(kernel, image)
    found = [line.removeprefix("LOOK ") for line in console.splitlines() if line.startswith("LOOK ")]
    assert found, console[-4000:]
    assert "FAILED" not in console, console[-4000:]
    return [_look(json.loads(line)) for line in found]


def _look(answer: dict[str, Any]) -> StageLook:
    return StageLook(answer["stage"], msgspec.convert(answer["report"], HostReport))


def _boot(kernel: Path, image: Path) -> str:
    machine = ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", MEMORY, "-smp", "1"]
    quiet = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command = ["qemu-system-x86_64", *machine, *quiet, "-kernel", str(kernel), "-initrd", str(image)]
    done = subprocess.run(
        [*command, "-append", ARGUMENTS], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    return (done.stdout + done.stderr).decode("utf-8", "replace").replace("\r", "")


def _write_image(out: BinaryIO, directory: Path) -> None:
    archive = CpioWriter(out)
    for place in ("proc", "sys", "dev", "tmp"):
        archive.directory(place)
    archive.character_device("dev/console", 5, 1)
    for name in MODULES:
        archive.file(f"modules/{name}.ko", _module(directory / "package", name))
    story = directory / "kvmstory"
    subprocess.run(["gcc", "-O1", "-w", "-static", "-o", str(story), str(STORY)], check=True)
    archive.file("kvmstory", story.read_bytes(), 0o755)
    python = Path(os.path.realpath(sys.executable))
    archive.file("init.py", INIT.read_bytes())
    archive.file("init", f"#!{python}\nimport sys\nsys.path[:0] = {_paths()!r}\n{_RUN}\n".encode(), 0o755)
    for path in sorted({*_python_files(), python}):
        _add(archive, path, directory)


_RUN = 'exec(compile(open("/init.py").read(), "/init.py", "exec"))'


def _paths() -> list[str]:
    """Where modules are found, as here."""
    return [path for path in [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path] if path]


def _python_files() -> Iterator[Path]:
    """The modules that process 1 imports, the codecs, and the shared libraries of all of them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_paths())}
    listed = subprocess.run(
        [sys.executable, str(INIT), "list"], env=environment, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    files = {Path(os.path.realpath(name)) if ".so" in name else Path(name) for name in listed if name}
    libraries = {path for path in files if ".so" in path.name} | {Path(os.path.realpath(sys.executable))}
    yield from files
    for package in ("encodings", "importlib"):  # some of which are built into the interpreter when it starts
        yield from (Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")
    needed: set[Path] = set()
    for library in libraries:
        told = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False).stdout
        needed |= {Path(os.path.normpath(found)) for found in re.findall(r"(/\S+) \(0x", told)}
    yield from needed


def _add(archive: CpioWriter, path: Path, directory: Path) -> None:
    """A file at its own place; a module with its compiled form, which is not compared with the source there."""
    archive.file(str(path).lstrip("/"), path.read_bytes(), 0o755)
    if path.suffix == ".py":
        compiled = directory / "compiled.pyc"
        compile_file(str(path), cfile=str(compiled), doraise=True, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
        tag = sys.implementation.cache_tag
        archive.file(f"{str(path.parent).lstrip('/')}/__pycache__/{path.stem}.{tag}.pyc", compiled.read_bytes())


def _module(package: Path, name: str) -> bytes:
    found = next(package.rglob(f"{name}.ko*"))
    data = found.read_bytes()
    return lzma.decompress(data) if found.suffix == ".xz" else data
