"""One process of the program: the model's process that answers it, and its memory."""

from __future__ import annotations

from pathlib import Path

from guestmem.backend import Backend
from guestmem.exec.hostmemory import HostMemory
from guestmem.model.process import Process

__all__ = ("Space",)


class Space:
    """A thread group. ``backend`` is what calls go to: the model's process, or what records in front of it."""

    def __init__(self, group: int, process: Process, backend: Backend) -> None:
        self.group = group
        self.process = process
        self.backend = backend
        self.memory = HostMemory(process.host)
        self.kvm = backend.open_kvm()  # /dev/kvm has no state: one descriptor serves all of the program's
        self.not_ours = process.open_aux("devnull")  # a file of the program's where a guest_memfd is expected
        self.objects = 0

    def has(self, tid: int) -> bool:
        """Whether a thread is one of this process."""
        return tid == self.group or Path(f"/proc/{self.group}/task/{tid}").exists()

    @property
    def is_over(self) -> bool:
        """The process has ended."""
        return not Path(f"/proc/{self.group}").exists()
