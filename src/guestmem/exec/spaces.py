"""One process of the program: the model's process that answers it, and its memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from guestmem.backend import FileStat, PreFaultResult
from guestmem.exec.hostmemory import HostMemory
from guestmem.model.process import Process

__all__ = ("Calls", "Space")


class Calls(Protocol):
    """The part of ``backend.Backend`` that a served program's calls go to; descriptors are the backend's."""

    def open_kvm(self) -> int: ...
    def close(self, fd: int) -> None: ...
    def reopen(self, fd: int, oflags: int) -> int: ...
    def fstat(self, fd: int) -> FileStat | None: ...
    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None: ...
    def ftruncate(self, fd: int, length: int) -> None: ...
    def lseek(self, fd: int, offset: int, whence: int) -> int: ...
    def read(self, fd: int, len: int) -> int: ...
    def write(self, fd: int, len: int) -> int: ...
    def pread(self, fd: int, len: int, offset: int) -> int: ...
    def pwrite(self, fd: int, len: int, offset: int) -> int: ...
    def fsync(self, fd: int) -> None: ...
    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int: ...
    def check_extension(self, fd: int, cap: int) -> int: ...
    def create_vm(self, fd: int, type: int) -> int: ...
    def create_vcpu(self, fd: int, id: int) -> int: ...
    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int: ...
    def set_user_memory_region(
        self, fd: int, slot: int, flags: int, gpa: int, size: int, userspace_addr: int
    ) -> None: ...
    def set_user_memory_region2(
        self,
        fd: int,
        slot: int,
        flags: int,
        gpa: int,
        size: int,
        userspace_addr: int,
        guest_memfd: int,
        guest_memfd_offset: int,
        pad1: int = 0,
        pad2: Sequence[int] = (),
    ) -> None: ...
    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> None: ...
    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult: ...


class Space:
    """A thread group. ``backend`` is what calls go to: the model's process, or what records in front of it."""

    def __init__(self, group: int, process: Process, backend: Calls) -> None:
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
