"""Run recorded operations on a backend, in order: every operation gets an outcome, whatever the backend does.

A runner is one sequence: one fresh process.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from guestmem.backend import Backend
from guestmem.errors import HostSignal, KvmError, NotVisible, UnexpectedExit, errno_name
from guestmem.recordings.handles import Handles, NotThere, UnknownHandle
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import Field, Operation, begun, marked, success
from guestmem.recordings.outcome import Answered, GuestLeft, NotRun, Outcome, Skipped, UnknownName

__all__ = ("Runner", "prepare")


class Runner:
    """Runs the operations of one sequence; limits are those of a real kernel, None for none."""

    def __init__(self, backend: Backend, limits: Limits | None = None) -> None:
        self.handles = Handles(backend)
        self.limits = limits

    def run(self, operation: Operation) -> Outcome:
        """Run one operation.

        One that needs what an earlier one failed to make is run with what there is: descriptor -1. What is done to a
        mapping that was not made cannot be done at all.
        """
        refused = operation.limit(self.limits) if self.limits is not None else None
        if refused is not None:
            self._not_made(operation)
            return Skipped(refused)
        self.handles.next_operation()
        answer = begun(operation)
        try:
            answer.run(self.handles)
        except KvmError as error:
            self._not_made(operation)
            answer.result, answer.errno = None, errno_name(error.errno or 0)
            return Answered(answer, error.check, error.reason)
        except HostSignal as signal:
            answer.result = None
            return Answered(answer, reason=signal.reason)
        except NotThere as reason:
            return NotRun(str(reason))
        except UnexpectedExit as error:
            return GuestLeft(str(error))
        except NotVisible as reason:
            return Skipped(str(reason))
        except UnknownHandle as error:
            return UnknownName(str(error))
        return Answered(answer)

    def _not_made(self, operation: Operation) -> None:
        """What the operation would make is not there for those that follow."""
        for name, mapping in _makes(type(operation)):
            self.handles.not_made(getattr(operation, name), mapping=mapping)


def prepare(kinds: Iterable[type[Operation]]) -> None:
    """Work out what is the same for all operations of a kind: a process that is forked later need not."""
    for kind in kinds:
        success(kind)
        _makes(kind)


@cache
def _makes(kind: type[Operation]) -> tuple[tuple[str, bool], ...]:
    """The fields that name what such an operation makes, and whether it is a mapping."""
    mappings = marked(kind, Field.MAKES_MAPPING)
    return tuple((name, name in mappings) for name in (*marked(kind, Field.MAKES), *mappings))
