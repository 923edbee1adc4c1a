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
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from guestmem.arguments import S32, S64, U32, U64, Alignment, Length, Size, Words
from guestmem.errors import InputError, KvmError
from guestmem.harness import PAGE_SIZE

__all__ = (
    "METHODS",
    "SHMEM_POLICIES",
    "AttributesWritten",
    "AuxKind",
    "Backend",
    "Boot",
    "ConversionResult",
    "Exit",
    "FileStat",
    "Host",
    "PreFaultResult",
    "ShmemPolicy",
    "Statistics",
    "Touch",
)

AuxKind = Literal["memfd", "eventfd", "pipe", "devnull"]
ShmemPolicy = Literal["always", "within_size", "advise", "never", "deny", "force"]
SHMEM_POLICIES: tuple[ShmemPolicy, ...] = get_args(ShmemPolicy)
"""The words of /sys/kernel/mm/transparent_hugepage/shmem_enabled."""


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
class AttributesWritten:
    """KVM_SET_MEMORY_ATTRIBUTES of restrictedmem: address and size (bytes) as it wrote them back."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """KVM_SET_MEMORY_ATTRIBUTES2: error_offset in bytes as the kernel wrote it back, None if it wrote none."""

    error_offset: int | None = None
    refused: KvmError | None = None


@dataclass(frozen=True, slots=True)
class Touch:
    """One guest access of size 1, 2, 4 or 8 bytes at gpa, never across a page. rw: "r" load, "w" store, "x" fetch."""

    gpa: int
    rw: Literal["r", "w", "x"]
    size: int
    value: int = 0

    def __post_init__(self) -> None:
        if self.size not in (1, 2, 4, 8) or self.rw not in ("r", "w", "x"):
            raise ValueError(f"a touch is a load, store or fetch (r, w, x) of 1, 2, 4 or 8 bytes, not {self!r:.80}")
        if self.gpa >> 64 or self.value >> 64:
            raise ValueError(f"gpa and value of a touch must be from 0 to 2**64 - 1; they are {self!r:.80}")
        if self.gpa % PAGE_SIZE + self.size > PAGE_SIZE:
            raise InputError(f"the touch at gpa {self.gpa:#x} crosses a page")


@dataclass(frozen=True, slots=True)
class Exit:
    """One step a guest access took: ``kind`` "done", "mmio", "memory_fault", "shutdown" or "unknown".

    done: value for loads. mmio: gpa, len (bytes), is_write, data (little-endian, stores). memory_fault and unknown:
    KVM_RUN failed with ``errno`` (a name); flags is kvm_run.memory_fault.flags, size its size in bytes. Under
    restrictedmem KVM_RUN returned 0 with a memory_fault, and memory failure can end a VM by a shutdown.
    """

    kind: Literal["done", "mmio", "memory_fault", "shutdown", "unknown"]
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
    """What a test may do to the host under the guests; a real kernel offers it only in part, or not at all."""

    def poison(self, fd: int, offset: U64) -> None:
        """Memory failure hits the page at offset (bytes) of a file; EBADF, EINVAL, HostSignal."""

    def set_shmem_enabled(self, policy: ShmemPolicy, page_size: U64) -> None:
        """Write the host's shmem_enabled, which restrictedmem asks at each allocation.

        page_size (bytes) is that of a huge page: 2M on x86. EINVAL for what is no leaf size.
        """


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

    def reopen(self, fd: int, oflags: S32) -> int:
        """open("/proc/self/fd/N", oflags)."""

    def open_aux(self, kind: AuxKind) -> int:
        """A descriptor of another kind, to be used where it does not belong (pipe: its read end)."""

    def fstat(self, fd: int) -> FileStat | None:
        """FileStat of a guest_memfd, None for any other file."""

    def fallocate(self, fd: int, mode: S32, offset: S64, len: S64) -> None:
        """fallocate(2); offset and len in bytes, signed."""

    def ftruncate(self, fd: int, length: S64) -> None:
        """ftruncate(2)."""

    def lseek(self, fd: int, offset: S64, whence: S32) -> int:
        """lseek(2)."""

    def read(self, fd: int, len: Length) -> int:
        """read(2) of len bytes; how many there were."""

    def write(self, fd: int, len: Length) -> int:
        """write(2) of len bytes; how many were taken."""

    def pread(self, fd: int, len: Length, offset: S64) -> int:
        """pread(2)."""

    def pwrite(self, fd: int, len: Length, offset: S64) -> int:
        """pwrite(2)."""

    def fsync(self, fd: int) -> None:
        """fsync(2)."""

    # -- ioctls -----------------------------------------------------------------------------------------------------
    def check_extension(self, fd: int, cap: U64) -> int:
        """KVM_CHECK_EXTENSION on /dev/kvm or a VM."""

    def enable_cap(self, fd: int, cap: U32, args: Words, flags: U32 = 0) -> None:
        """KVM_ENABLE_CAP on a VM; at most four words of arguments, the others 0."""

    def create_vm(self, fd: int, type: U64) -> int:
        """KVM_CREATE_VM on /dev/kvm."""

    def create_vcpu(self, fd: int, id: U64) -> int:
        """KVM_CREATE_VCPU on a VM."""

    def create_guest_memfd(self, fd: int, size: U64, flags: U64, reserved: Words = ()) -> int:
        """KVM_CREATE_GUEST_MEMFD on a VM; size in bytes."""

    def memfd_restricted(self, flags: U32) -> int:
        """memfd_restricted(2), which was never merged: ENOSYS. NotVisible of a kernel that has another call there."""

    def set_user_memory_region(
        self,
        fd: int,
        slot: U32,
        flags: U32,
        gpa: U64,
        size: U64,
        userspace_addr: U64,
        restricted_fd: int = -1,
        restricted_offset: U64 = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION on a VM; gpa and size in bytes.

        The last two are read by v10 of restrictedmem only, with KVM_MEM_PRIVATE: 160 bytes instead of 32.
        """

    def set_user_memory_region2(
        self,
        fd: int,
        slot: U32,
        flags: U32,
        gpa: U64,
        size: U64,
        userspace_addr: U64,
        guest_memfd: int,
        guest_memfd_offset: U64,
        pad1: U32 = 0,
        pad2: Words = (),
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2; guest_memfd is a descriptor, or any int (a u32 to the kernel)."""

    def set_memory_attributes(
        self, fd: int, address: U64, size: U64, attributes: U64, flags: U64
    ) -> AttributesWritten | None:
        """KVM_SET_MEMORY_ATTRIBUTES on a VM; address and size in bytes. Released kernels write nothing back."""

    def gmem_set_memory_attributes(
        self, fd: int, offset: U64, size: U64, attributes: U64, flags: U64, reserved: Words = ()
    ) -> ConversionResult:
        """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd; offset and size in bytes, a refusal is in the value."""

    def pre_fault_memory(self, fd: int, gpa: U64, size: U64, flags: U64) -> PreFaultResult:
        """KVM_PRE_FAULT_MEMORY on a vCPU; a refusal is in the value, because gpa and size are written back with it."""

    # -- host memory ------------------------------------------------------------------------------------------------
    def anonymous(self, size: U64, prot: S32, align: Alignment) -> int:
        """Map size bytes of private anonymous memory at a multiple of align; the address."""

    def mmap(self, fd: int, length: U64, prot: S32, flags: S32, offset: S64) -> int:
        """mmap at an address of the kernel's choice; the address."""

    def munmap(self, addr: U64, length: U64) -> None:
        """munmap(2)."""

    def mprotect(self, addr: U64, length: U64, prot: S32) -> None:
        """mprotect(2)."""

    def madvise(self, addr: U64, length: U64, advice: S32) -> None:
        """madvise(2)."""

    def host_read(self, addr: U64, size: Size) -> int:
        """Load size (1, 4 or 8) bytes, little-endian; HostSignal where the process would get one."""

    def host_write(self, addr: U64, size: Size, value: U64) -> None:
        """Store size (1, 4 or 8) bytes, little-endian; HostSignal where the process would get one."""

    def pin(self, addr: U64, length: Length) -> int:
        """Hold a reference to each page of [addr, addr + length), as vmsplice(2) into a pipe does; a descriptor.

        Its close(2) drops them. EFAULT where a page cannot be read.
        """

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
