"""The backend "lab": the calls of ``guestmem.backend`` made by a process in the lab's machine.

One object is one fresh process in the guest, forked for it and gone with it. Nothing is decided here: a call travels,
the guest's kernel answers, and the answer comes back as the value or the exception it was there. Descriptors and
addresses are those of that process.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from guestmem.arguments import checked
from guestmem.backend import METHODS, Backend, Statistics
from guestmem.errors import BackendUnavailable, HostSignal, NotVisible
from guestmem.kvm.guest import BOOT_PAGES
from guestmem.lab import channel
from guestmem.lab.errors import SessionFailed
from guestmem.lab.machine import ANSWER_LIMIT_S, LabMachine
from guestmem.text import counted

__all__ = ("LabBackend",)


class LabBackend(Backend, Statistics):
    """Backend "lab" on a running machine.

    answer_limit_s bounds every call: SessionFailed if it takes longer, and the process in the guest is killed. With
    owns_machine, the end of the backend is the end of the machine. SessionFailed or LabFailed on any call says that
    the process, or the whole machine, is gone. The calls are those of the protocols: each travels as it is.
    """

    name = "lab"
    boot_pages = BOOT_PAGES

    def __init__(
        self,
        machine: LabMachine,
        *,
        owns_machine: bool = False,
        answer_limit_s: float = ANSWER_LIMIT_S,
        module: str = "",
    ) -> None:
        self.machine = machine
        self._owns_machine = owns_machine
        self._limit_s = answer_limit_s
        self._session = machine.start(channel.Open(module))

    @classmethod
    def on(
        cls,
        machine: LabMachine,
        *,
        owns_machine: bool = False,
        answer_limit_s: float = ANSWER_LIMIT_S,
        module: str = "",
    ) -> LabBackend:
        """A fresh process in a machine that runs; module is one that it was booted with, for ``work``."""
        return cls(machine, owns_machine=owns_machine, answer_limit_s=answer_limit_s, module=module)

    def __enter__(self) -> LabBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def batch(self, calls: Sequence[channel.Call]) -> tuple[channel.Outcome, ...]:
        """Make many calls in one round trip; their outcomes, values as they travelled (see ``channel.Call``).

        Each is made whatever became of the ones before, but for those that refer to a value which is not there.
        """
        reply = self.machine.ask(self._session, channel.Batch(tuple(calls)), self._limit_s)
        if not isinstance(reply, channel.Done):
            self.machine.distrust(channel.ProtocolError(f"calls were answered by {type(reply).__name__}"))
        if len(reply.outcomes) != len(calls):
            wrong = f"{counted(len(calls), 'call')} had {counted(len(reply.outcomes), 'outcome')}"
            self.machine.distrust(channel.ProtocolError(wrong))
        return reply.outcomes

    def work(self, data: bytes) -> bytes:
        """What the function ``work`` of the module makes of data, in the guest with its backend."""
        reply = self.machine.ask(self._session, channel.Work(data), self._limit_s)
        if not isinstance(reply, channel.Worked):
            self.machine.distrust(channel.ProtocolError(f"work was answered by {type(reply).__name__}"))
        return reply.data

    def shutdown(self) -> None:
        """End the process in the guest, and the machine if it is this backend's own. A second time: nothing."""
        session, self._session = self._session, channel.MACHINE
        if self._owns_machine:
            self.machine.close()
        elif session != channel.MACHINE and self.machine.is_open:
            self.machine.end(session)

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._session == channel.MACHINE:
            raise SessionFailed("this backend was shut down")
        (outcome,) = self.batch((channel.Call(method, arguments),))
        match outcome:
            case channel.Returned(value):
                return value
            case channel.Refused():
                raise outcome.error()
            case channel.Signalled(signal, reason):
                raise HostSignal(signal, reason)
            case channel.Invisible(reason):
                raise NotVisible(reason)
            case channel.Unavailable(reason):
                raise BackendUnavailable(reason)
            case channel.Bug(error, trace):
                raise SessionFailed(f"{method} failed in the lab: {error}\n{trace}")


def _forwarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of the protocol as a call that travels; its answer is of the type that the protocol says."""
    signature, kind = inspect.signature(method), typing.get_type_hints(method)["return"]

    def call(self: LabBackend, *arguments: Any, **named: Any) -> Any:
        _, *travelling = signature.bind(self, *arguments, **named).args
        values = (tuple(value) if isinstance(value, list) else value for value in travelling)
        answer = self._call(name, *values)
        try:
            return channel.convert(answer, kind)
        except channel.ProtocolError as wrong:
            self.machine.distrust(wrong)

    return functools.wraps(method)(call)


for _name, _method in METHODS.items():
    if _name not in vars(LabBackend):
        setattr(LabBackend, _name, _forwarded(_name, _method))
checked(Backend, Statistics)(LabBackend)  # type: ignore[type-abstract]
