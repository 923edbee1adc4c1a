"""Reports on disk: written next to their place, then renamed, so that nobody ever reads half of one.

What is not a regular file (/dev/stdout, a pipe) cannot be replaced and is written as it is.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ("write_text",)


def write_text(path: Path, text: str) -> None:
    """Put text (UTF-8) at path whole or not at all; OSError as writing raises it, with path as its file name."""
    data = text.encode("utf-8", "replace")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(Path(os.path.realpath(path)), data)  # a symbolic link stays one
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _replace(target: Path, data: bytes) -> None:
    new = target.with_name(f".guestmem-{secrets.token_hex(8)}")
    try:
        with new.open("xb") as file:
            file.write(data)
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
