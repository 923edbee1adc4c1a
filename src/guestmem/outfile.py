"""The one way in which guestmem writes a file that a user named.

A regular file is replaced whole or not at all: the new contents are written beside it, under a name that nobody can
guess, and then renamed. A symbolic link stays one, and what it points to is replaced; mode and owner are kept.
Everything else (a device, a FIFO, /dev/stdout, a descriptor) is written into as it is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ("write_text", "writing_to")

_MOST_LINKS = 40  # as many as the kernel follows
_BUFFER = 1 << 16


def write_text(path: Path, text: str) -> None:
    """Put text (UTF-8) at path; OSError with path as its file name."""
    with writing_to(path) as file:
        file.write(text.encode("utf-8", "replace"))


@contextmanager
def writing_to(path: Path) -> Iterator[BinaryIO]:
    """A stream for the new contents of path; OSError with path as its file name.

    An exception in the block leaves a regular file as it was, and nothing beside it.
    """
    shown = str(path)
    with _named(shown):
        target = _resolved(path)
        opened = os.dup(target) if isinstance(target, int) else _open(path)
        old = None if opened is None else os.fstat(opened)
    if opened is None or (old is not None and stat.S_ISREG(old.st_mode) and isinstance(target, Path)):
        assert isinstance(target, Path), "bug in guestmem: a descriptor was not opened"
        if opened is not None:
            os.close(opened)
        with _replacing(target, old, shown) as file:
            yield file
    else:
        with _stream(opened, shown) as file:
            yield file


def _resolved(path: Path) -> Path | int:
    """Where path leads, link after link: a descriptor of this process, or a place that need not exist."""
    for _ in range(_MOST_LINKS):
        directory = Path(os.path.realpath(path.parent))
        if str(directory) == f"/proc/{os.getpid()}/fd" and path.name.isdecimal():
            return int(path.name)
        path = directory / path.name
        if not path.is_symlink():
            return path
        path = directory / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _open(path: Path) -> int | None:
    """What is there, opened for writing, so that what is asked about it is true of what is written; None if nothing."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


@contextmanager
def _replacing(target: Path, old: os.stat_result | None, shown: str) -> Iterator[BinaryIO]:
    beside = target.parent / f".guestmem-{os.urandom(8).hex()}"
    ours = True
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(beside, flags, 0o666 if old is None else 0o600)
        except OSError as error:
            ours = False
            raise OSError(error.errno, error.strerror, shown) from None
        with _stream(fd, shown) as file:
            if old is not None:
                _keep(fd, old, shown)
            yield file
            file.flush()
            with _named(shown):
                os.fsync(fd)
        with _named(shown):
            beside.replace(target)
    except BaseException:
        if ours:
            with suppress(OSError):
                beside.unlink()
        raise


def _keep(fd: int, old: os.stat_result, shown: str) -> None:
    with suppress(PermissionError):  # another's file that this user may write
        os.fchown(fd, old.st_uid, old.st_gid)
    with _named(shown):
        os.fchmod(fd, stat.S_IMODE(old.st_mode))


@contextmanager
def _stream(fd: int, shown: str) -> Iterator[BinaryIO]:
    """The descriptor as a stream, closed in the end; what is buffered is dropped if the block fails."""
    raw = _Named(fd, shown)
    try:
        file = BufferedWriter(raw, _BUFFER)
        yield file
        file.flush()
    finally:
        with _named(shown):
            raw.close()


class _Named(FileIO):
    """A descriptor to write to, whose errors have the name that the user gave."""

    def __init__(self, fd: int, shown: str) -> None:
        super().__init__(fd, "wb")
        self._shown = shown

    def write(self, data: ReadableBuffer, /) -> int:
        with _named(self._shown):
            return super().write(data)


@contextmanager
def _named(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, shown) from None
