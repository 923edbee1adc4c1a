"""The initramfs of the lab: this very interpreter, the modules the agent imports, and nothing else.

Three ways to bring Python into the guest were measured under emulation (docs of the lab have the figures): the host's
file system over 9p starts the interpreter in seconds, because every module is many round trips; an initramfs that
carries the interpreter is unpacked in a fraction of one. It is made anew for every boot, in memory: there is no cached
image that could be older than the package, and no file to leave behind.

What is carried is not guessed: a fresh interpreter imports the agent, and every module it then has is packed, as
compiled code, with the shared libraries that ldd names.
"""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import InspectLoader
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from pathlib import Path

from guestmem.errors import BackendUnavailable
from guestmem.lab.cpio import CpioWriter

__all__ = ("libraries", "make_image", "pack")

_ROOTS = ("guestmem.lab.agent", "guestmem.lab.command", "guestmem.kvm")
# The interpreter looks these up itself, whatever the agent imports.
_ALWAYS = ("encodings.utf_8", "encodings.ascii", "encodings.latin_1", "linecache")
# Not "-m": finding and running a module by name imports a third of what the agent does.
_INIT = b"#!/bin/python3 -SB\nfrom guestmem.lab import agent\nagent.main()\n"
_UNCHECKED = 0b01  # PEP 552: a pyc with a hash that is not compared with any source
_LDD_LINE = re.compile(r"\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x[0-9a-f]+\)")


def make_image(modules: Path | None = None, more: Sequence[str] = ()) -> int:
    """Pack the image in a fresh interpreter; the descriptor of a nameless file in memory. The caller closes it.

    modules is an archive that follows in it: the kernel takes several, each from a multiple of four bytes on. more are
    modules of Python that are packed too.
    """
    image = os.memfd_create("guestmem-lab-initramfs")
    packing = f"from guestmem.lab import image; image.pack({image}, {tuple(more)!r})"
    code = f"import sys; sys.path[:] = {sys.path!r}; {packing}"
    done = subprocess.run([sys.executable, "-S", "-c", code], pass_fds=(image,), capture_output=True, text=True)
    if done.returncode != 0:
        os.close(image)
        raise BackendUnavailable(f"the lab's image cannot be made: {done.stderr.strip()[-2000:]}")
    if modules is not None:
        with os.fdopen(os.dup(image), "ab") as out, modules.open("rb") as loaded:
            shutil.copyfileobj(loaded, out)
    return image


def pack(image: int, more: Sequence[str]) -> None:
    """Import what the agent needs, and more, and write the archive to a descriptor. In an interpreter of its own."""
    for root in _ROOTS:
        module = importlib.import_module(root)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            importlib.import_module(f"{root}.{found.name}")
    for name in (*_ALWAYS, *more):
        importlib.import_module(name)
    executable = Path(sys.executable).resolve()
    binaries = [executable]
    with os.fdopen(os.dup(image), "wb") as out:
        archive = CpioWriter(out)
        archive.character_device("dev/console", 5, 1)
        archive.file("init", _INIT, 0o755)
        archive.file("bin/python3", executable.read_bytes(), 0o755)
        for spec in _imported():
            if isinstance(spec.loader, ExtensionFileLoader):
                binaries.append(Path(spec.loader.path))
                archive.file(_place(spec, EXTENSION_SUFFIXES[0]), Path(spec.loader.path).read_bytes(), 0o755)
            else:
                archive.file(_place(spec, ".pyc"), _compiled(spec))
        for name, path in libraries(_ldd(binaries)):
            archive.file(name, path.read_bytes(), 0o755)
        archive.finish()


def libraries(ldd: str) -> Iterator[tuple[str, Path]]:
    """Where each library that ldd printed goes in the archive, and where it is here; each once.

    A line with "=>" is a library that the loader finds by name in /lib; a bare path is the loader itself, which the
    kernel looks for at that very place.

    >>> list(libraries("\\tlibm.so.6 => /usr/lib/libm.so.6 (0x00007f3)\\n\\t/lib64/ld.so (0x00007f4)\\n"))
    [('lib/libm.so.6', PosixPath('/usr/lib/libm.so.6')), ('lib64/ld.so', PosixPath('/lib64/ld.so'))]
    """
    seen: set[str] = set()
    for line in ldd.splitlines():
        match = _LDD_LINE.fullmatch(line)
        if match is None:  # the vdso, a heading, "statically linked"
            continue
        name, path = match["name"], match["path"]
        place = f"lib/{Path(name).name}" if name and not name.startswith("/") else path.lstrip("/")
        if place not in seen:
            seen.add(place)
            yield place, Path(path)


def _ldd(binaries: Iterable[Path]) -> str:
    # Also for a static binary, where ldd fails and says so: then there is nothing to carry.
    return subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout


def _imported() -> Iterator[ModuleSpec]:
    """The modules of this interpreter that come from files; built-in and frozen ones are in its binary."""
    for name, module in sorted(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or spec.name != name or not spec.has_location:
            continue
        yield spec


def _place(spec: ModuleSpec, suffix: str) -> str:
    path = "py/" + spec.name.replace(".", "/")
    return path + ("/__init__" if spec.submodule_search_locations is not None else "") + suffix


def _compiled(spec: ModuleSpec) -> bytes:
    assert isinstance(spec.loader, InspectLoader), f"bug in guestmem: {spec.name} is loaded by {spec.loader!r}"
    code = spec.loader.get_code(spec.name)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED.to_bytes(4, "little") + bytes(8) + marshal.dumps(code)
