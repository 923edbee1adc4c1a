"""Where the lab keeps what takes minutes to make: the user's cache directory.

``kernels/KEY`` is a finished kernel and appears whole or not at all; ``work/KEY`` is a build in progress, kept when it
fails so that it can go on; ``sources`` holds downloaded source archives. Nothing else is ever written there, and only
these three are ever removed.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ("clean", "directory", "locked", "size")

_between_threads = threading.Lock()  # lockf is between processes
_PARTS = ("kernels", "work", "sources")


def directory() -> Path:
    """$GUESTMEM_CACHE/lab, else guestmem/lab in the user's cache directory; it need not exist."""
    ours = os.environ.get("GUESTMEM_CACHE")
    if ours:
        return Path(ours) / "lab"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "guestmem" / "lab"


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Wait until no other process builds this key; the kernel drops the lock with the process, however it ends."""
    work = directory() / "work"
    work.mkdir(parents=True, exist_ok=True)
    with _between_threads, (work / f"{key}.lock").open("w") as lock:
        os.lockf(lock.fileno(), os.F_LOCK, 0)
        yield


def size(path: Path) -> int:
    """Bytes on disk of everything below path; 0 if there is nothing."""
    return sum(found.lstat().st_blocks * 512 for found in path.rglob("*"))


def clean() -> int:
    """Remove all of it; the bytes that were freed. Kernels of running labs are in memory and go on."""
    freed = 0
    for part in _PARTS:
        path = directory() / part
        if path.exists():
            freed += size(path)
            shutil.rmtree(path)
    return freed
