"""The "new ASCII" cpio archive, the form in which Linux takes an initramfs.

Each entry is a header of 110 ASCII characters (magic 070701, then thirteen fields of eight hex digits), the name with
its zero byte, padding to 4, the contents, padding to 4; the entry named TRAILER!!! ends the archive
(Documentation/driver-api/early-userspace/buffer-format.rst). Device nodes need no privilege: they are only bytes.

Deterministic: no times, owner root, inode numbers in order of writing. Hard links and checksums are left out.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

__all__ = ("CpioWriter",)

_TRAILER = "TRAILER!!!"
_MAX_SIZE = (1 << 32) - 1  # a field has eight hex digits


class CpioWriter:
    """Writes an archive to a binary file; ``finish`` ends it. Parents of an entry are made on the way."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._names: set[str] = set()

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory; writing it again does nothing."""
        if self._claim(name, again=True):
            self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, contents: bytes, mode: int = 0o644) -> None:
        """A regular file; ValueError if the name is taken or the contents pass 4 GiB."""
        self._claim(name)
        self._entry(name, stat.S_IFREG | mode, contents)

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self._claim(name)
        self._entry(name, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._entry(_TRAILER, 0, b"")

    def _claim(self, name: str, again: bool = False) -> bool:
        if not name or name.startswith("/") or name == _TRAILER or ".." in name.split("/"):
            raise ValueError(f"not a name inside the archive: {name!r}")
        if name in self._names:
            if again:
                return False
            raise ValueError(f"{name!r} is in the archive already")
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self._names.add(name)
        return True

    def _entry(self, name: str, mode: int, contents: bytes, device: tuple[int, int] = (0, 0)) -> None:
        if len(contents) > _MAX_SIZE:
            raise ValueError(f"{name}: {len(contents)} bytes do not fit in a cpio archive")
        self._inode += 1
        encoded = name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._inode, mode, 0, 0, 1, 0, len(contents), 0, 0, *device, len(encoded), 0)
        self._padded(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._padded(contents)

    def _padded(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(b"\0" * (-len(data) % 4))
