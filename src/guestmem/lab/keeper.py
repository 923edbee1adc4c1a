"""Ends QEMU when the process that started it is gone, however it went: also by SIGKILL, also with a hung guest.

A process of its own, given two pidfds as arguments: its owner's and QEMU's. It waits for either to end. pidfds name a
process and not a number, so it can never kill another one. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys

__all__ = ("keep",)


def keep(owner: int, machine: int) -> None:
    """Return when the process of pidfd machine has ended; end it when that of pidfd owner has."""
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    poll.register(machine, select.POLLIN)
    ended = [fd for fd, _ in poll.poll()]
    if machine not in ended:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(machine, signal.SIGKILL)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends by itself, and only then
        signal.signal(ignored, signal.SIG_IGN)
    keep(int(sys.argv[1]), int(sys.argv[2]))
