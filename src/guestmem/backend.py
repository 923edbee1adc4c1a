"""The system calls of one process that concern guest memory: the border between guestmem and a kernel.

A backend is a process: a table of file descriptors, an address space, and the calls of this protocol. The model is one
(in pure Python), /dev/kvm is one, a kernel booted in the lab is one. Everything above (the objects of
``guestmem.objects``, recordings, the command line) speaks this protocol only, so whatever runs on one runs on all.

Every refusal is a KvmError with the kernel's errno. File descriptors are plain ints: an int that is not open is EBADF,
a descriptor of the wrong kind is whatever the kernel answers, and that answer is part of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from guestmem.errors import KvmError

__all__ = ("METHODS", "AuxKind", "Backend", "Boot", "Exit", "FileStat", "Host", "PreFaultResult", "Statistics", "Touch")

AuxKind = Literal["memfd", "eventfd", "pipe", "devnull"]


@dataclass(frozen=True, slots=True)
class FileStat:
    """What fstat reports of a guest_memfd (struct stat; bytes, 512-byte blocks, mode with the file type)."""

    st_size: int
    st_blocks: int
    st_blksize: int
    st_mode: int
    st_nlink: int


@dataclass(frozen=True, slots=True)
class PreFaultResult:
    """KVM_PRE_FAULT_MEMORY: gpa and size (bytes) as the kernel wrote them back, also when it failed (refused)."""

    gpa: int
    size: int
    refused: KvmError | None = None


@dataclass(frozen=True, slots=True)
class Touch:
    """One guest access of size 1, 4 or 8 bytes at gpa, never across a page. rw: "r" load, "w" store, "x" fetch."""

    gpa: int
    rw: Literal["r", "w", "x"]
    size: int
    value: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """One step a guest access took: ``kind`` "done", "mmio", "memory_fault" or "unknown".

    done: value for loads. mmio: gpa, len (bytes), is_write, data (little-endian, stores). memory_fault and unknown:
    KVM_RUN failed with ``errno`` (a name); flags is kvm_run.memory_fault.flags, size its size in bytes.
    """

    kind: Literal["done", "mmio", "memory_fault", "unknown"]
    value: int | None = None
    gpa: int | None = None
    len: int | None = None
    is_write: int | None = None
    data: str | None = None
    errno: str | None = None
    flags: int | None = None
    size: int | None = None

    def __repr__(self) -> str:
        """Only what is set, addresses in hex."""
        shown = [f"kind={self.kind!r}"]
        for name in ("value", "gpa", "len", "is_write", "data", "errno", "flags", "size"):
            value = getattr(self, name)
            if value is not None:
                shown.append(f"{name}={value:#x}" if name in ("gpa", "size") else f"{name}={value!r}")
        return f"Exit({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Boot:
    """Where the guest's own code lives: gpa and the host address of 64 KiB that a memslot maps there.

    Real kernels need it to run anything; the page after the range must stay without a slot (it is the doorbell).
    """

    gpa: int
    hva: int


@runtime_checkable
class Host(Protocol):
    """What a test may do to the host under a guest_memfd; a real kernel offers it only in part, or not at all."""

    def poison(self, fd: int, offset: int) -> None:
        """Memory failure hits the page at offset (bytes); EBADF, EINVAL."""

    def set_huge_page_size(self, fd: int, page_size: int) -> None:
        """Change the page size (bytes) that a shmem-backed file takes from now on; EBADF, EINVAL."""


@runtime_checkable
class Statistics(Protocol):
    """What KVM counts for a VM, where a backend can report it.

    boot_pages is how many base pages the backend's own guest code takes right after a touch; they are in the count.
    A slot that goes may have taken them along, so the count without them is known only then, and only while the guest
    has touched fewer than 512 different 2 MiB frames.
    """

    boot_pages: int

    def mapped_pages(self, fd: int) -> dict[int, int]:
        """Leaves of a VM's second-level tables by page size (bytes), sizes without any left out; EBADF, ENOTTY, EINVAL.

        KVM's statistics pages_4k, pages_2m, pages_1g (KVM_GET_STATS_FD). NotVisible with shadow paging, where leaves
        follow the guest's own page tables.
        """


class Backend(Protocol):
    """One process. Methods are the system calls; ``fd`` is a descriptor of this process."""

    name: str

    def open_kvm(self) -> int:
        """open("/dev/kvm", O_RDWR)."""

    def shutdown(self) -> None:
        """End the process: every descriptor and mapping goes."""

    # -- any file ---------------------------------------------------------------------------------------------------
    def close(self, fd: int) -> None:
        """close(2)."""

    def dup(self, fd: int) -> int:
        """dup(2)."""

    def reopen(self, fd: int, oflags: int) -> int:
        """open("/proc/self/fd/N", oflags)."""

    def open_aux(self, kind: AuxKind) -> int:
        """A descriptor of another kind, to be used where it does not belong (pipe: its read end)."""

    def fstat(self, fd: int) -> FileStat | None:
        """FileStat of a guest_memfd, None for any other file."""

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        """fallocate(2); offset and len in bytes, signed."""

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2)."""

    def read(self, fd: int, len: int) -> int:
        """read(2) of len bytes; how many there were."""

    def write(self, fd: int, len: int) -> int:
        """write(2) of len bytes; how many were taken."""

    def pread(self, fd: int, len: int, offset: int) -> int:
        """pread(2)."""

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        """pwrite(2)."""

    def fsync(self, fd: int) -> None:
        """fsync(2)."""

    # -- ioctls -----------------------------------------------------------------------------------------------------
    def check_extension(self, fd: int, cap: int) -> int:
        """KVM_CHECK_EXTENSION on /dev/kvm or a VM."""

    def enable_cap(self, fd: int, cap: int, args: Sequence[int], flags: int = 0) -> None:
        """KVM_ENABLE_CAP on a VM; at most four words of arguments, the others 0."""

    def create_vm(self, fd: int, type: int) -> int:
        """KVM_CREATE_VM on /dev/kvm."""

    def create_vcpu(self, fd: int, id: int) -> int:
        """KVM_CREATE_VCPU on a VM."""

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        """KVM_CREATE_GUEST_MEMFD on a VM; size in bytes."""

    def set_user_memory_region(self, fd: int, slot: int, flags: int, gpa: int, size: int, userspace_addr: int) -> None:
        """KVM_SET_USER_MEMORY_REGION on a VM; gpa and size in bytes."""

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
        """KVM_SET_USER_MEMORY_REGION2; guest_memfd is a descriptor, or any int (a u32 to the kernel)."""

    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES on a VM; address and size in bytes."""

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult:
        """KVM_PRE_FAULT_MEMORY on a vCPU; a refusal is in the value, because gpa and size are written back with it."""

    # -- host memory ------------------------------------------------------------------------------------------------
    def anonymous(self, size: int, prot: int, align: int) -> int:
        """Map size bytes of private anonymous memory at a multiple of align; the address."""

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        """mmap at an address of the kernel's choice; the address."""

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """mprotect(2)."""

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """madvise(2)."""

    def host_read(self, addr: int, size: int) -> int:
        """Load size (1, 4 or 8) bytes, little-endian; HostSignal where the process would get one."""

    def host_write(self, addr: int, size: int, value: int) -> None:
        """Store size (1, 4 or 8) bytes, little-endian; HostSignal where the process would get one."""

    # -- the guest --------------------------------------------------------------------------------------------------
    def run_touch(self, vcpu_fd: int, boot: Boot | None, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Run the guest once per touch and report the exits each took; on no live vCPU, a bare KVM_RUN (KvmError).

        boot None lets the backend set up what it needs (on a real kernel: slot 1000 at GPA 0xd0000000).
        """


METHODS: Mapping[str, Callable[..., Any]] = {
    name: function
    for protocol in (Backend, Statistics)
    for name, function in vars(protocol).items()
    if not name.startswith("_") and callable(function)
}
"""The calls of a process by name, as the protocols declare them."""
