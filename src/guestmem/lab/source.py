"""Where a kernel's source comes from: the distribution's package, an archive, or a tree of the user's.

``find_source`` reads what the user wrote: a version like "6.12" is the Debian package linux-source-6.12 (installed, or
downloaded without root by apt-get, from a later suite of the same mirror if need be); anything else is a path. A tree
is used where it is and never written to; the others are unpacked into the cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from guestmem.errors import InputError
from guestmem.lab import cache, later, package
from guestmem.lab.errors import BuildFailed
from guestmem.text import utf8

__all__ = ("Archive", "Source", "Tree", "find_source", "is_version", "spec_of")

_VERSION = re.compile(r"[0-9]+\.[0-9]+")
_INSTALLED = Path("/usr/src")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Tree:
    """An unpacked kernel source; it is built elsewhere, from a copy if it was built in (``copied``)."""

    path: Path

    def identity(self) -> str:
        """What identifies this source: its place; make itself finds out what changed in it."""
        return f"tree {self.path}"


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar archive with one directory, the kernel source, in it."""

    path: Path

    def identity(self) -> str:
        """What identifies this source: its contents."""
        digest = hashlib.sha256()
        with self.path.open("rb") as archive:
            while chunk := archive.read(_CHUNK):
                digest.update(chunk)
        return f"archive {digest.hexdigest()}"


Source = Tree | Archive


def is_version(spec: str) -> bool:
    """Whether spec names a packaged kernel, as against a path.

    >>> is_version("6.12"), is_version("./6.12"), is_version("linux-6.12.tar.xz")
    (True, False, False)
    """
    return _VERSION.fullmatch(spec) is not None


def spec_of(spec: str) -> str:
    """The spelling under which a kernel is remembered: a version or a package's name as it is, a path in full."""
    return spec if is_version(spec) or package.is_package_name(spec) else str(Path(spec).expanduser().resolve())


def find_source(spec: str) -> Source:
    """The source that spec names, downloading the package if it must; BuildFailed, or ValueError where nothing is."""
    if is_version(spec):
        return Archive(_package(f"linux-source-{spec}"))
    path = Path(spec_of(spec))
    if utf8(str(path)) != str(path):  # make and kernel.json could not name it
        raise InputError(f"{path}: the path of a kernel source must be UTF-8")
    if path.is_dir():
        return Tree(path)
    if path.is_file():
        return Archive(path)
    raise InputError(f"no kernel source at {path}; give a version such as 6.12, a source tree, or a tar archive of one")


def _package(name: str) -> Path:
    """The archive inside a Debian source package: as installed, as downloaded before, or downloaded now."""
    kept = cache.directory() / "sources"
    for known in (_INSTALLED / f"{name}.tar.xz", kept / f"{name}.tar.xz"):
        if known.is_file():
            return known
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise BuildFailed(f"no package {name} here and no apt-get to download it; give the path of a kernel source")
    partial = kept / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        try:
            _run(["apt-get", "download", name], partial, f"cannot download {name}; run apt-get update, or give a path")
        except BuildFailed:
            if not later.download(name, partial):
                raise
        package = next(partial.glob("*.deb"))
        _run(["dpkg-deb", "--extract", package.name, "."], partial, f"cannot unpack {package.name}")
        return (partial / "usr" / "src" / f"{name}.tar.xz").rename(kept / f"{name}.tar.xz")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(command: list[str], directory: Path, failure: str) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise BuildFailed(f"{failure}: {' '.join(done.stderr.split())[-300:]}")
