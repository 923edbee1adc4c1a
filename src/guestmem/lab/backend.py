"""The backend "lab": the calls of ``guestmem.backend`` made by a process in the lab's machine.

One object is one fresh process in the guest, forked for it and gone with it. Nothing is decided here: a call travels,
the guest's kernel answers, and the answer comes back as the value or the exception it was there. Descriptors and
addresses are those of that process.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from guestmem.arguments import checked
from guestmem.backend import AuxKind, Backend, Boot, Exit, FileStat, PreFaultResult, Statistics, Touch
from guestmem.errors import BackendUnavailable, HostSignal, NotVisible
from guestmem.kvm.guest import BOOT_PAGES
from guestmem.lab import channel
from guestmem.lab.errors import SessionFailed
from guestmem.lab.machine import ANSWER_LIMIT_S, LabMachine

__all__ = ("LabBackend",)


@checked(Backend, Statistics)
class LabBackend:
    """Backend "lab" on a running machine.

    answer_limit_s bounds every call: SessionFailed if it takes longer, and the process in the guest is killed. With
    owns_machine, the end of the backend is the end of the machine. SessionFailed or LabFailed on any call says that
    the process, or the whole machine, is gone.
    """

    name = "lab"
    boot_pages = BOOT_PAGES

    def __init__(
        self, machine: LabMachine, *, owns_machine: bool = False, answer_limit_s: float = ANSWER_LIMIT_S
    ) -> None:
        self.machine = machine
        self._owns_machine = owns_machine
        self._limit_s = answer_limit_s
        self._session = machine.start(channel.Open())

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
        if not isinstance(reply, channel.Done) or len(reply.outcomes) != len(calls):
            raise channel.ProtocolError(f"{len(calls)} calls were answered by {reply!r:.200}")
        return reply.outcomes

    def shutdown(self) -> None:
        """End the process in the guest, and the machine if it is this backend's own. A second time: nothing."""
        session, self._session = self._session, channel.MACHINE
        if self._owns_machine:
            self.machine.close()
        elif session != channel.MACHINE and self.machine.is_open:
            self.machine.end(session)

    def open_kvm(self) -> int:
        """open("/dev/kvm", O_RDWR)."""
        return self._integer("open_kvm")

    # -- any file ----------------------------------------------------------------------------------------------------

    def close(self, fd: int) -> None:
        """close(2)."""
        self._call("close", fd)

    def dup(self, fd: int) -> int:
        """dup(2)."""
        return self._integer("dup", fd)

    def reopen(self, fd: int, oflags: int) -> int:
        """open(2) of /proc/self/fd/N."""
        return self._integer("reopen", fd, oflags)

    def open_aux(self, kind: AuxKind) -> int:
        """A descriptor of another kind."""
        return self._integer("open_aux", kind)

    def fstat(self, fd: int) -> FileStat | None:
        """fstat(2); None for any other file."""
        answer: FileStat | None = self._value(FileStat | None, "fstat", fd)
        return answer

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        """fallocate(2)."""
        self._call("fallocate", fd, mode, offset, len)

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""
        self._call("ftruncate", fd, length)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2)."""
        return self._integer("lseek", fd, offset, whence)

    def read(self, fd: int, len: int) -> int:
        """read(2)."""
        return self._integer("read", fd, len)

    def write(self, fd: int, len: int) -> int:
        """write(2) of zeros."""
        return self._integer("write", fd, len)

    def pread(self, fd: int, len: int, offset: int) -> int:
        """pread(2)."""
        return self._integer("pread", fd, len, offset)

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        """pwrite(2) of zeros."""
        return self._integer("pwrite", fd, len, offset)

    def fsync(self, fd: int) -> None:
        """fsync(2)."""
        self._call("fsync", fd)

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def check_extension(self, fd: int, cap: int) -> int:
        """KVM_CHECK_EXTENSION."""
        return self._integer("check_extension", fd, cap)

    def create_vm(self, fd: int, type: int) -> int:
        """KVM_CREATE_VM."""
        return self._integer("create_vm", fd, type)

    def create_vcpu(self, fd: int, id: int) -> int:
        """KVM_CREATE_VCPU."""
        return self._integer("create_vcpu", fd, id)

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        """KVM_CREATE_GUEST_MEMFD."""
        return self._integer("create_guest_memfd", fd, size, flags, tuple(reserved))

    def set_user_memory_region(self, fd: int, slot: int, flags: int, gpa: int, size: int, userspace_addr: int) -> None:
        """KVM_SET_USER_MEMORY_REGION."""
        self._call("set_user_memory_region", fd, slot, flags, gpa, size, userspace_addr)

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
        region = (slot, flags, gpa, size, userspace_addr, guest_memfd, guest_memfd_offset, pad1, tuple(pad2))
        self._call("set_user_memory_region2", fd, *region)

    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES."""
        self._call("set_memory_attributes", fd, address, size, attributes, flags)

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult:
        """KVM_PRE_FAULT_MEMORY."""
        answer: PreFaultResult = self._value(PreFaultResult, "pre_fault_memory", fd, gpa, size, flags)
        return answer

    def mapped_pages(self, fd: int) -> dict[int, int]:
        """Leaves of a VM by page size in bytes (``backend.Statistics``)."""
        answer: dict[int, int] = self._value(dict[int, int], "mapped_pages", fd)
        return answer

    # -- host memory: the guest process's ----------------------------------------------------------------------------

    def anonymous(self, size: int, prot: int, align: int) -> int:
        """Private anonymous memory at a multiple of align."""
        return self._integer("anonymous", size, prot, align)

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        """mmap(2) at an address of the kernel's choice."""
        return self._integer("mmap", fd, length, prot, flags, offset)

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""
        self._call("munmap", addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """mprotect(2)."""
        self._call("mprotect", addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """madvise(2)."""
        self._call("madvise", addr, length, advice)

    def host_read(self, addr: int, size: int) -> int:
        """One load of 1, 2, 4 or 8 bytes; HostSignal."""
        return self._integer("host_read", addr, size)

    def host_write(self, addr: int, size: int, value: int) -> None:
        """One store of 1, 2, 4 or 8 bytes; HostSignal."""
        self._call("host_write", addr, size, value)

    # -- the guest's guest -------------------------------------------------------------------------------------------

    def run_touch(self, vcpu_fd: int, boot: Boot | None, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Guest accesses."""
        answer: list[list[Exit]] = self._value(list[list[Exit]], "run_touch", vcpu_fd, boot, tuple(touches))
        return answer

    def _integer(self, method: str, *arguments: Any) -> int:
        value: int = self._value(int, method, *arguments)
        return value

    def _value(self, kind: Any, method: str, *arguments: Any) -> Any:
        return channel.convert(self._call(method, *arguments), kind)

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
