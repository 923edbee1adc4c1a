"""Run one selftest: on the model under a profile, or on a real kernel in the lab."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ("Outcome", "on_lab", "on_model")

_SKIPPED: Final = 4  # KSFT_SKIP
_GUESTMEM: Final = (sys.executable, "-m", "guestmem")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: "pass", "skip", "fail", "no end". where: the assertion that failed, file and line."""

    how: str
    seconds: float
    where: str = ""

    def agrees(self, other: Outcome) -> bool:
        """The same end, at the same place."""
        return (self.how, self.where) == (other.how, other.where)

    def __str__(self) -> str:
        return f"{self.how} at {self.where}" if self.where else self.how


def on_model(program: Path, arguments: Sequence[str], profile: str, limit_s: float) -> Outcome:
    """Under ``guestmem exec``."""
    return _run([*_GUESTMEM, "exec", "--profile", profile, "--", str(program), *arguments], limit_s)


def on_lab(program: Path, arguments: Sequence[str], kernel: str, limit_s: float) -> Outcome:
    """Under ``guestmem lab exec``, which boots the kernel for it: the seconds include that."""
    return _run([*_GUESTMEM, "lab", "exec", "--kernel", kernel, "--", str(program), *arguments], limit_s)


def _run(command: list[str], limit_s: float) -> Outcome:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            text, _ = running.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            return Outcome("no end", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    how = {0: "pass", _SKIPPED: "skip"}.get(running.returncode, "fail")
    return Outcome(how, seconds, _assertion(text) if how == "fail" else "")


def _assertion(text: str) -> str:
    """ "guest_memfd_test.c:354", from the report of a failed assertion; "" where there is none."""
    lines = iter(text.splitlines())
    for line in lines:
        if "Test Assertion Failure" in line:
            place = next(lines, "").strip().partition(": ")[0]
            name, _, number = place.rpartition(":")
            return f"{Path(name).name}:{number}"
    return ""
