"""What the doctor reads of a host, and what it says of it."""

from __future__ import annotations

import errno
import gzip
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

__all__ = ("Condition", "Diagnosis", "HostFiles", "Values")

Values = dict[str, int | str | bool | list[str]]


class Condition(StrEnum):
    """As wanted, usable but limited, not usable, or unknown because it cannot be read from here."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"
    UNKNOWN = "unknown"


class Diagnosis(msgspec.Struct, frozen=True):
    """found says what is there; cause and remedy what keeps it from being better, "" where nothing does.

    values are the numbers and words behind it, as they were read.
    """

    subject: str
    state: Condition
    found: str
    cause: str = ""
    remedy: str = ""
    values: Values = {}


@dataclass(frozen=True, slots=True)
class HostFiles:
    """Files below /proc, /sys, /dev and /boot; nothing is written. root is "/" but for tests."""

    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """The stripped text of a file, None if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """The entries of a directory, sorted; none if it cannot be read."""
        try:
            return sorted(entry.name for entry in (self.root / path.lstrip("/")).iterdir())
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file, of any kind."""
        return (self.root / path.lstrip("/")).exists()

    def open_errno(self, path: str) -> str | None:
        """The errno's name with which opening for reading and writing fails, None if it succeeds."""
        try:
            os.close(os.open(self.root / path.lstrip("/"), os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        return None

    def config(self, option: str) -> str | None:
        """What the running kernel's configuration says of CONFIG_option: "y", "m", "n"; None if it cannot be read."""
        text = self._config_text()
        if text is None:
            return None
        found = [line for line in text.splitlines() if line.startswith(f"CONFIG_{option}=")]
        return found[0].partition("=")[2] if found else "n"

    def _config_text(self) -> str | None:
        try:
            return gzip.decompress((self.root / "proc/config.gz").read_bytes()).decode()
        except (OSError, EOFError):
            return self.read(f"/boot/config-{self.read('/proc/sys/kernel/osrelease')}")
