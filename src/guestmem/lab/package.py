"""A distribution's kernel package as the lab's kernel: its image, and the modules of KVM in the order of loading.

Such a kernel has KVM, its devices and 9p in modules, or lacks them, and no software-protected VMs. Nothing is compiled.
Since 6.19 Debian's linux-image-* only depends on linux-binary-* (the image) and linux-modules-*; what a package that is
given by name depends on is fetched too.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guestmem.errors import BackendUnavailable
from guestmem.lab import later
from guestmem.lab.cpio import CpioWriter
from guestmem.lab.errors import BuildFailed

__all__ = ("Package", "fetch", "is_package_name", "is_package_path", "read_package", "unpack", "write_modules")

_NAME: Final = re.compile(r"linux-image-[a-z0-9][a-z0-9.+~-]*")
_PART: Final = re.compile(r"\b(linux-(?:image|binary|modules)-[a-z0-9.+~-]*)")
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")
_MODULES: Final = ("lib/modules", "usr/lib/modules")
_RELEASE: Final = re.compile(r"[0-9]+\.[0-9][^/]*")
# What the agent needs, and the files of the host for programs; each may be built in instead.
_KVM, _PORT, _HOST_FILES = ("kvm-amd",), ("virtio_pci", "virtio_console"), ("9pnet_virtio", "9p")
_SHOWN: Final = ("CONFIG_KVM_SW_PROTECTED_VM",)


@dataclass(frozen=True, slots=True)
class Package:
    """What an unpacked package has. modules are files in the order of loading.

    host_files: it has the file system over which programs of the host are seen. without are options that it lacks, as
    far as it says (its configuration is not in every package).
    """

    release: str
    image: Path
    modules: tuple[Path, ...]
    host_files: bool
    without: tuple[str, ...]


def is_package_name(spec: str) -> bool:
    """Whether spec names a package, as against a version or a path.

    >>> is_package_name("linux-image-6.18.15+deb13-cloud-amd64"), is_package_name("6.18")
    (True, False)
    """
    return _NAME.fullmatch(spec) is not None


def is_package_path(path: Path) -> bool:
    """Whether a path is a .deb, a directory of them, or an unpacked kernel package."""
    if path.is_dir():
        return not (path / "Kconfig").exists() and (any(path.glob("*.deb")) or _image_in(path) is not None)
    return path.suffix == ".deb" and path.is_file()


def fetch(name: str, directory: Path) -> None:
    """Download a package and the parts of a kernel that it depends on into a directory; BuildFailed."""
    if shutil.which("apt-get") is None:
        raise BuildFailed(f"no apt-get to download {name} with; give the path of its .deb files")
    waiting, seen = [name], {name}
    while waiting:
        part = waiting.pop()
        before = set(directory.glob("*.deb"))
        done = subprocess.run(
            ["apt-get", "download", part], cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0 and not later.download(part, directory):
            why = " ".join(done.stderr.split())[-300:]
            raise BuildFailed(f"cannot download {part}; run apt-get update, or give a path: {why}")
        for archive in set(directory.glob("*.deb")) - before:
            new = set(_PART.findall(_dpkg("--field", archive, "Depends"))) - seen
            seen |= new
            waiting += sorted(new)


def unpack(source: Path, directory: Path) -> Path:
    """Where the files of source are: a .deb or a directory of them is unpacked into directory; BuildFailed."""
    archives = [source] if source.is_file() else sorted(source.glob("*.deb"))
    for archive in archives:
        _dpkg("--extract", archive, str(directory))
    return directory if archives else source


def read_package(tree: Path) -> Package:
    """Find the image and the modules in an unpacked package; BuildFailed if it is not a kernel with KVM."""
    image = _image_in(tree)
    if image is None:
        raise BuildFailed(
            "no kernel image (vmlinuz) in it; since 6.19 the image is in linux-binary-* and the modules in "
            "linux-modules-*: give a directory that holds both, or the name of the linux-image-* package"
        )
    release = image.name.partition("-")[2] or image.parent.name
    if not _RELEASE.fullmatch(release):
        raise BuildFailed(f"the package does not say which kernel {image.name} is")
    folders = [tree / place / release for place in _MODULES]
    found = {_plain(path): path for folder in folders for path in folder.rglob("*.ko*")}
    built_in = {_plain(line) for folder in folders for line in _lines(folder / "modules.builtin")}
    there = found.keys() | built_in
    lacking = [name for name in _KVM if _plain(name) not in there]
    if lacking:
        raise BuildFailed(f"the package has no {lacking[0]}: no KVM for AMD processors, or its modules are elsewhere")
    host_files = there.issuperset(_HOST_FILES)
    wanted = (*_PORT, *_KVM, *(_HOST_FILES if host_files else ()))
    ordered: dict[str, Path] = {}
    for name in wanted:
        _add(_plain(name), found, ordered)
    return Package(release, image, tuple(ordered.values()), host_files, tuple(_without(tree)))


def write_modules(modules: tuple[Path, ...], out: Path) -> None:
    """Write an archive that follows the lab's own in the initramfs: modules/NN-NAME.ko, to be loaded in that order."""
    with out.open("wb") as file:
        archive = CpioWriter(file)
        for number, path in enumerate(modules):
            archive.file(f"modules/{number:02}-{_plain(path)}.ko", _contents(path))
        archive.finish()


def _image_in(tree: Path) -> Path | None:
    places = (tree.glob("boot/vmlinuz-*"), *(tree.glob(f"{place}/*/vmlinuz") for place in _MODULES))
    return next((path for place in places for path in sorted(place)), None)


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


def _without(tree: Path) -> Iterator[str]:
    for path in tree.glob("boot/config-*"):
        text = path.read_text()
        yield from (option for option in _SHOWN if f"\n{option}=y\n" not in text)


def _add(name: str, found: dict[str, Path], ordered: dict[str, Path]) -> None:
    """A module after those that it needs; one that is not there is built in."""
    if name in ordered or name not in found:
        return
    depends = _DEPENDS.search(_contents(found[name]))
    for needed in depends[1].decode().split(",") if depends else ():
        _add(_plain(needed), found, ordered)
    ordered[name] = found[name]


def _plain(module: Path | str) -> str:
    """The name of a module, as the kernel spells it in all places: kvm-amd.ko.xz is kvm_amd."""
    return Path(module).name.partition(".")[0].replace("-", "_")


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                return gzip.decompress(data)
            case ".ko":
                return data
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise BuildFailed(f"{path.name} is damaged: {error}") from None
    raise BuildFailed(f"{path.name}: modules are read as .ko, .ko.xz and .ko.gz")


def _dpkg(what: str, archive: Path, *more: str) -> str:
    if shutil.which("dpkg-deb") is None:
        raise BackendUnavailable("a kernel package is unpacked by dpkg-deb, which is not here; give it unpacked")
    done = subprocess.run(["dpkg-deb", what, str(archive), *more], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildFailed(f"{archive.name} cannot be read: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout
