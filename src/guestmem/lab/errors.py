"""What can go wrong with the lab itself, as against a refusal by the kernel inside it (KvmError).

``LabFailed``: the machine is gone; every backend on it is. ``SessionFailed``: one process in it is gone or hung, the
machine goes on. ``BuildFailed``: there is no kernel. What this host lacks is BackendUnavailable, as for every backend.
"""

from __future__ import annotations

__all__ = ("BuildFailed", "LabFailed", "SessionFailed")


class _WithConsole(Exception):
    def __init__(self, reason: str, console: str = "") -> None:
        super().__init__(f"{reason}\nlast lines of the lab's console:\n{console}" if console else reason)
        self.reason = reason
        self.console = console

    @property
    def line(self) -> str:
        """The reason and the console's last line, on one line."""
        last = self.console.strip().rpartition("\n")[2].strip()
        reason = " ".join(self.reason.split())
        return f"{reason}; the last line of its console: {last}" if last else reason


class LabFailed(_WithConsole):
    """The lab's machine ended or stopped answering; ``console`` is the end of what its kernel printed."""


class SessionFailed(_WithConsole):
    """A process in the lab ended or did not answer; the machine and its other processes are not affected."""


class BuildFailed(Exception):
    """The lab's kernel could not be built; what is done stays, so that building again goes on from there."""
