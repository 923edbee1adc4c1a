"""What can go wrong, one class for each who must act.

``KvmError``: the kernel (or the model of it) refused a system call; it is an OSError with the kernel's errno and, from
the model, the named check that refused. ``HostSignal``: a host access to memory ended in a signal. ``NotVisible``: this
backend cannot show what was asked. ``BackendUnavailable``: this machine cannot run that backend. ``InputError``: what
the user gave cannot be used, and the message says why. Other misuse of the Python API is TypeError or ValueError; a
broken invariant is an AssertionError that says it is our bug. ``UnexpectedExit``: a guest ended in a way that no access
to memory can cause. ``CallUnfinished``: the model is in the middle of a call.
"""

from __future__ import annotations

import errno as _errno

__all__ = (
    "EHWPOISON",
    "BackendUnavailable",
    "CallUnfinished",
    "HostSignal",
    "InputError",
    "KvmError",
    "NotVisible",
    "UnexpectedExit",
    "errno_name",
    "errno_number",
)

EHWPOISON = 133  # Python 3.11's errno module does not name it

# Linux has one number for both names; recordings write the POSIX one.
_NAMES = {**_errno.errorcode, 95: "EOPNOTSUPP", EHWPOISON: "EHWPOISON"}


def errno_name(number: int) -> str:
    """The symbolic name of an errno, as recordings write it.

    >>> errno_name(95), errno_name(133)
    ('EOPNOTSUPP', 'EHWPOISON')
    """
    return _NAMES.get(number, f"errno {number}")


def errno_number(name: str) -> int:
    """The number of a symbolic errno as ``errno_name`` writes it; ValueError for an unknown name.

    >>> errno_number("EINVAL")
    22
    """
    return next((number for number, known in _NAMES.items() if known == name), 0) or int(name.removeprefix("errno "))


class InputError(ValueError):
    """What the user gave (a file, a name, an option's value) cannot be used; the message is one line that says why."""


class KvmError(OSError):
    """A system call was refused.

    errno is the kernel's; ``check`` names the check that refused ("" when a real kernel did, which does not say);
    ``reason`` holds the values, ``hint`` what to do about it. ``error_offset`` is what a conversion of a guest_memfd
    wrote back: where, in bytes, the first page is that cannot be converted.
    """

    error_offset: int | None = None

    def __init__(self, errno: int, reason: str = "", *, check: str = "", hint: str = "") -> None:
        super().__init__(errno, reason)
        self.reason = reason
        self.check = check
        self.hint = hint

    @property
    def name(self) -> str:
        """The symbolic errno, "EINVAL"."""
        return errno_name(self.errno or 0)

    def __str__(self) -> str:
        parts = [self.name]
        if self.check:
            parts.append(f"[{self.check}]")
        if self.reason:
            parts.append(self.reason)
        text = " ".join(parts)
        return f"{text} (hint: {self.hint})" if self.hint else text


class HostSignal(Exception):
    """A host load or store ended in a signal: ``signal`` is "SIGBUS" or "SIGSEGV"."""

    def __init__(self, signal: str, reason: str = "") -> None:
        super().__init__(f"{signal}: {reason}" if reason else signal)
        self.signal = signal
        self.reason = reason


class NotVisible(Exception):
    """The backend cannot show this: a real kernel does not report it to user space."""


class BackendUnavailable(Exception):
    """This machine cannot run the backend; the message says what is missing and what to do."""


class UnexpectedExit(RuntimeError):
    """KVM_RUN ended in a way that no guest access can cause: the boot memory is not what it has to be."""


class CallUnfinished(RuntimeError):
    """The model is in the middle of a call that another thread makes, or that was interrupted."""

    def __init__(self, call: str) -> None:
        super().__init__(
            f"{call} cannot be made: the model is in the middle of a call, which another thread makes or which was "
            f"interrupted; use a model from one thread, and open a new one after an interrupt"
        )
