"""Why a call of the program was refused, as it happens, and what the other kernels would have answered.

Every operation is run on a model of each other profile too, so that their state is what it would be there. Guest code
runs on none of them: what depends on pages that a guest has touched is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guestmem.errors import InputError
from guestmem.model.process import Process
from guestmem.model.profiles import PROFILES, Profile
from guestmem.recordings.operation import Field, Operation, marked, unrun
from guestmem.recordings.outcome import Answered
from guestmem.recordings.runner import Runner

__all__ = ("Refusal", "Refusals")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused call. elsewhere: what other profiles answer, where that is something else ("ok" or an errno)."""

    process: int
    number: int  # which call of the process it is
    operation: str
    arguments: dict[str, Any]
    errno: str
    check: str
    reason: str
    elsewhere: dict[str, str]


class _Elsewhere:
    """The same calls under another profile. ``missing``: what was made here and could not be made there."""

    def __init__(self, profile: Profile) -> None:
        self._runner = Runner(Process(profile))
        self._missing: set[str] = set()

    def ended(self, operation: Operation) -> str:
        """How the operation ends there, "" where it needs what is missing."""
        makes = _named(operation, Field.MAKES, Field.MAKES_MAPPING)
        if self._missing.intersection(_names(operation)):
            self._missing.update(makes)
            return ""
        try:
            outcome = self._runner.run(unrun(operation))
        except InputError:
            return ""
        if not isinstance(outcome, Answered):
            return ""
        if outcome.operation.errno is not None and operation.errno is None:
            self._missing.update(makes)
        return str(outcome.operation.ended())


def _named(operation: Operation, *marks: Field) -> set[str]:
    return {str(getattr(operation, field)) for field in marked(type(operation), *marks) if getattr(operation, field)}


def _names(operation: Operation) -> set[str]:
    """What the operation uses, by name."""
    names = _named(operation, Field.USES)
    where = getattr(operation, "userspace_addr", None)
    return names | {where.map} if where is not None and where.map else names


class Refusals:
    """Listens to one process's operations."""

    def __init__(self, process: int, profile: Profile, tell: Callable[[Refusal], None]) -> None:
        self._process = process
        self._tell = tell
        self._count = 0
        self._others = {name: _Elsewhere(other) for name, other in PROFILES.items() if name != profile.name}

    def __call__(self, operation: Operation, check: str, reason: str) -> None:
        """One operation that was run."""
        self._count += 1
        ended = operation.ended()
        elsewhere = {name: other.ended(operation) for name, other in self._others.items()}
        if isinstance(operation.errno, str):
            self._tell(
                Refusal(
                    self._process,
                    self._count,
                    operation.name(),
                    operation.arguments(),
                    operation.errno,
                    check,
                    reason,
                    {name: answer for name, answer in elsewhere.items() if answer not in ("", ended)},
                )
            )
