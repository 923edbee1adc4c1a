"""Named checks: why an operation is refused, as data.

An operation validates its request by walking checks in the kernel's order. The errno is the kernel's; the name, the
rule in words, the values and the hint are ours. ``observing`` collects every check walked, passed or not, which is all
that ``guestmem explain`` needs. Nothing else raises KvmError in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from errno import EINVAL
from typing import Any, Generic, TypeVar

from guestmem.errors import KvmError

__all__ = ("Check", "Observation", "flags_zero", "note", "observed", "observing", "require")

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Check(Generic[R]):
    """One thing the kernel demands of a request.

    ``passes`` decides; ``values`` writes the values it looked at; ``errno`` and ``hint`` may depend on the request.
    source names the kernel function that does it.
    """

    name: str
    errno: int | Callable[[R], int]
    rule: str
    source: str
    passes: Callable[[R], bool]
    values: Callable[[R], str]
    hint: str | Callable[[R], str] = ""

    def errno_for(self, request: R) -> int:
        """The errno that this request would be refused with."""
        return self.errno if isinstance(self.errno, int) else self.errno(request)

    def refusal(self, request: R) -> KvmError:
        """The error user space sees, with the values and what to do."""
        hint = self.hint if isinstance(self.hint, str) else self.hint(request)
        return KvmError(self.errno_for(request), f"{self.rule}: {self.values(request)}", check=self.name, hint=hint)


@dataclass(frozen=True, slots=True)
class Observation:
    """A check or step that was walked: ``passed`` None is a remark rather than a check (a step of the fault)."""

    name: str
    passed: bool | None
    text: str
    rule: str = ""
    source: str = ""
    errno: int = 0


def _say_flags(request: Any) -> str:
    return f"flags={request.flags:#x}"


def flags_zero(source: str) -> Check[Any]:
    """The check of an ioctl whose flags are for later."""
    return Check("flags-zero", EINVAL, "flags must be 0", source, lambda r: not r.flags, _say_flags)


_observations: ContextVar[list[Observation] | None] = ContextVar("observations", default=None)


@contextmanager
def observing() -> Iterator[list[Observation]]:
    """Collect the checks and steps walked inside the block, in order."""
    observations: list[Observation] = []
    token = _observations.set(observations)
    try:
        yield observations
    finally:
        _observations.reset(token)


def require(checks: Iterable[Check[Any]], request: Any) -> None:
    """Walk the checks in order; KvmError from the first that does not pass."""
    observations = _observations.get()
    if observations is None:
        for check in checks:
            if not check.passes(request):
                raise check.refusal(request)
        return
    for check in checks:
        passed = check.passes(request)
        values, errno = check.values(request), check.errno_for(request)
        observations.append(Observation(check.name, passed, values, check.rule, check.source, errno))
        if not passed:
            raise check.refusal(request)


def observed() -> bool:
    """Whether anybody collects checks and remarks."""
    return _observations.get() is not None


def note(name: str, text: Callable[..., str], *arguments: Any) -> None:
    """Leave the remark text(*arguments) for an observer; it is not even written when nobody observes."""
    observations = _observations.get()
    if observations is not None:
        observations.append(Observation(name, None, text(*arguments)))
