"""One thing that was looked at, and what came of it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ("Finding", "State", "Values")

Values = dict[str, int | str | bool | list[str]]


class State(StrEnum):
    """How a thing is: as wanted, usable with less, not usable, or not to be told from here."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True):
    """found says what is there; cause and remedy what keeps it from being better, "" where nothing does.

    values are the numbers and words behind it, as they were read.
    """

    subject: str
    state: State
    found: str
    cause: str = ""
    remedy: str = ""
    values: Values = {}
