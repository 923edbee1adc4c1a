"""The console script as a user runs it, without a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from guestmem.cli import main

__all__ = ("Ended", "Guestmem", "runner")


class Ended(NamedTuple):
    """How the program ended."""

    code: int
    out: str
    err: str


Guestmem = Callable[..., Ended]


def runner(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *before: str) -> Callable[..., Ended]:
    """Runs guestmem with some arguments, after those that are always there."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["guestmem", *before, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capture.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, captured.out, captured.err)

    return run
