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

    def open_kvm(self) -> int:
        """open("/dev/kvm")."""

    def close(self, fd: int) -> None:
        """close(2)."""

    def reopen(self, fd: int, oflags: int) -> int:
        """open("/proc/self/fd/N", oflags)."""

    def fstat(self, fd: int) -> FileStat | None:
        """fstat(2), of a guest_memfd."""

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        """fallocate(2)."""

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2)."""

    def read(self, fd: int, len: int) -> int:
        """read(2)."""

    def write(self, fd: int, len: int) -> int:
        """write(2)."""

    def pread(self, fd: int, len: int, offset: int) -> int:
        """pread(2)."""

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        """pwrite(2)."""

    def fsync(self, fd: int) -> None:
        """fsync(2)."""

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        """mmap(2); the address."""

    def check_extension(self, fd: int, cap: int) -> int:
        """KVM_CHECK_EXTENSION."""

    def enable_cap(self, fd: int, cap: int, args: Sequence[int], flags: int = 0) -> None:
        """KVM_ENABLE_CAP."""

    def create_vm(self, fd: int, type: int) -> int:
        """KVM_CREATE_VM."""

    def create_vcpu(self, fd: int, id: int) -> int:
        """KVM_CREATE_VCPU."""

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        """KVM_CREATE_GUEST_MEMFD."""

    def set_user_memory_region(self, fd: int, slot: int, flags: int, gpa: int, size: int, userspace_addr: int) -> None:
        """KVM_SET_USER_MEMORY_REGION."""

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
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2."""

    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> object:
        """KVM_SET_MEMORY_ATTRIBUTES."""

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult:
        """KVM_PRE_FAULT_MEMORY."""


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
