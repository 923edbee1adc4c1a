"""What the lab has on this host, and what it lacks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec

from guestmem.lab import cache
from guestmem.lab.kernel import Kernel, built, missing_tools
from guestmem.lab.qemu import QEMU

__all__ = ("Status", "status")


class Status(msgspec.Struct, frozen=True):
    """The lab on this host. qemu is its version line, "" if there is none; directory is the cache.

    usable are the keys of those kernels that have today's configuration and are whole, damaged those of others by what
    happened to them, unfinished those of builds that were interrupted; missing_tools are the Debian packages a build
    would need; size is in bytes on disk.
    """

    qemu: str
    directory: str
    kernels: tuple[Kernel, ...]
    usable: tuple[str, ...]
    unfinished: tuple[str, ...]
    missing_tools: tuple[str, ...]
    size: int
    damaged: dict[str, str] = {}

    @property
    def is_ready(self) -> bool:
        """Whether a lab can be booted: QEMU is here and a kernel of today's configuration is built."""
        return bool(self.qemu and self.usable)


def status() -> Status:
    """Look; nothing is changed."""
    work = cache.directory() / "work"
    unfinished = tuple(sorted(path.name for path in work.glob("*") if path.is_dir()))
    kernels, lacking = tuple(built()), tuple(missing_tools())
    damaged = {kernel.key: damage for kernel in kernels if (damage := kernel.damage())}
    usable = tuple(kernel.key for kernel in kernels if kernel.is_current and kernel.key not in damaged)
    size = cache.size(cache.directory())
    return Status(_qemu(), str(cache.directory()), kernels, usable, unfinished, lacking, size, damaged)


def _qemu() -> str:
    found = shutil.which(QEMU)
    if found is None:
        return ""
    version = subprocess.run([Path(found), "--version"], capture_output=True, text=True).stdout
    return version.partition("\n")[0]
