"""The operations of a recording, one per line, as typed values (TRANSCRIPT's tables of operations).

Every operation carries its sequence and index, its arguments, and, if it was recorded, what was observed. A line whose
``errno`` is absent was never run: there is nothing to compare with. What the types do not know is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from guestmem.backend import AuxKind

__all__ = (
    "Begin",
    "CheckExtension",
    "Close",
    "CreateGuestMemfd",
    "CreateVcpu",
    "CreateVm",
    "Dup",
    "Fallocate",
    "Fstat",
    "Fsync",
    "Ftruncate",
    "HostAddress",
    "HostRead",
    "HostWrite",
    "Line",
    "Lseek",
    "Madvise",
    "MappedPages",
    "Mmap",
    "Mprotect",
    "Munmap",
    "OpenAux",
    "Operation",
    "Poison",
    "PreFault",
    "Pread",
    "Pwrite",
    "Read",
    "RecordedExit",
    "RecordedTouch",
    "Reopen",
    "RunTouch",
    "SetHugePageSize",
    "SetMemoryAttributes",
    "SetUserMemoryRegion",
    "SetUserMemoryRegion2",
    "Write",
)

U64 = Annotated[int, msgspec.Meta(ge=0)]  # the upper bound is the reader's: msgspec cannot state it
U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
S64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
S32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 32) - 1)]  # recorders write some as unsigned
Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]  # of a data buffer
Handle = S64 | str
Result = int | str | None


class Begin(msgspec.Struct, tag_field="op", tag="begin", forbid_unknown_fields=True):
    """Opens a sequence: one fresh process. guestmem's own recordings may name machine, geometry, rule and backing."""

    seq: str
    i: int = -1
    kind: str = ""
    profile: str = ""
    seed: int | None = None
    title: str = ""
    kernel: str = ""
    geometry: str = ""
    rule: str = ""
    vm_types: list[Literal[0, 1]] = []
    gpa_bits: Literal[0] | Annotated[int, msgspec.Meta(ge=32, le=52)] = 0
    smm: bool | None = None
    two_dimensional_paging: bool | None = None
    pools: dict[
        str, Annotated[int, msgspec.Meta(ge=0, le=1 << 52)]
    ] = {}  # page size, as "2M", to how many the host has


class Operation(msgspec.Struct, tag_field="op", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What every operation carries. ``result``: return value or handle; ``errno``: a name, null for success."""

    seq: str
    i: int
    result: Result = None
    errno: str | UnsetType | None = UNSET


class HostAddress(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A userspace_addr: an offset into a buffer or a mapping, or a number."""

    buf: str = ""
    map: str = ""
    off: U64 = 0
    abs: U64 | None = None


class CreateVm(Operation, tag="create_vm"):
    """KVM_CREATE_VM on /dev/kvm, or on whatever ``on`` names."""

    type: U64
    out: str
    on: Handle = "kvm"


class CheckExtension(Operation, tag="check_extension"):
    """KVM_CHECK_EXTENSION on /dev/kvm or a VM."""

    on: Handle
    cap: U64


class CreateVcpu(Operation, tag="create_vcpu"):
    """KVM_CREATE_VCPU."""

    vm: Handle
    id: U64
    out: str


class CreateGuestMemfd(Operation, tag="create_guest_memfd"):
    """KVM_CREATE_GUEST_MEMFD; size in bytes, six reserved words."""

    vm: Handle
    size: U64
    flags: U64
    out: str
    reserved: list[U64] = []


class SetUserMemoryRegion(Operation, tag="set_user_memory_region"):
    """KVM_SET_USER_MEMORY_REGION; gpa and size in bytes."""

    vm: Handle
    slot: U32
    flags: U32
    gpa: U64
    size: U64
    userspace_addr: HostAddress


class SetUserMemoryRegion2(Operation, tag="set_user_memory_region2"):
    """KVM_SET_USER_MEMORY_REGION2; gpa, size and offset in bytes."""

    vm: Handle
    slot: U32
    flags: U32
    gpa: U64
    size: U64
    userspace_addr: HostAddress
    guest_memfd: Handle
    guest_memfd_offset: U64
    pad1: U32 = 0
    pad2: U64 | list[U64] = 0  # one number fills all fourteen words


class SetMemoryAttributes(Operation, tag="set_memory_attributes"):
    """KVM_SET_MEMORY_ATTRIBUTES; address and size in bytes."""

    vm: Handle
    address: U64
    size: U64
    attributes: U64
    flags: U64


class Fallocate(Operation, tag="fallocate"):
    """fallocate(2); offset and len in bytes, signed."""

    fd: Handle
    mode: S32
    offset: S64
    len: S64


class Ftruncate(Operation, tag="ftruncate"):
    """ftruncate(2)."""

    fd: Handle
    length: S64


class Lseek(Operation, tag="lseek"):
    """lseek(2)."""

    fd: Handle
    offset: S64
    whence: S32


class Read(Operation, tag="read"):
    """read(2) into a valid buffer."""

    fd: Handle
    len: Length


class Write(Operation, tag="write"):
    """write(2) from a valid buffer."""

    fd: Handle
    len: Length


class Pread(Operation, tag="pread"):
    """pread(2) into a valid buffer."""

    fd: Handle
    len: Length
    offset: S64


class Pwrite(Operation, tag="pwrite"):
    """pwrite(2) from a valid buffer."""

    fd: Handle
    len: Length
    offset: S64


class Fsync(Operation, tag="fsync"):
    """fsync(2)."""

    fd: Handle


class Dup(Operation, tag="dup"):
    """dup(2)."""

    fd: Handle
    out: str


class Close(Operation, tag="close"):
    """close(2)."""

    fd: Handle


class Reopen(Operation, tag="reopen"):
    """open(2) of /proc/self/fd/N."""

    fd: Handle
    out: str
    oflags: S32 = 2  # O_RDWR


class Fstat(Operation, tag="fstat"):
    """fstat(2); the fields are those of a guest_memfd."""

    fd: Handle
    st_size: int | None = None
    st_blocks: int | None = None
    st_blksize: int | None = None
    st_mode: str | None = None  # octal
    st_nlink: int | None = None


class OpenAux(Operation, tag="open_aux"):
    """A descriptor of another kind."""

    kind: AuxKind
    out: str


class Mmap(Operation, tag="mmap"):
    """mmap(2) at address 0."""

    fd: Handle
    length: U64
    prot: S32
    flags: S32
    offset: S64
    out: str


class Munmap(Operation, tag="munmap"):
    """munmap(2) of a mapping, or of length bytes of it from off on."""

    map: str
    off: U64 = 0
    length: U64 | None = None


class Mprotect(Operation, tag="mprotect"):
    """mprotect(2) of a mapping, or of length bytes of it from off on."""

    map: str
    prot: S32
    off: U64 = 0
    length: U64 | None = None


class Madvise(Operation, tag="madvise"):
    """madvise(2) on a mapping, or on length bytes of it from off on."""

    map: str
    advice: S32
    off: U64 = 0
    length: U64 | None = None


class HostRead(Operation, tag="host_read"):
    """A load by the process; ``signal`` is what it ended in."""

    off: U64
    size: Literal[1, 2, 4, 8]
    map: str = ""
    buf: str = ""
    signal: str | None = None


class HostWrite(Operation, tag="host_write"):
    """A store by the process; ``signal`` is what it ended in."""

    off: U64
    size: Literal[1, 2, 4, 8]
    value: U64
    map: str = ""
    buf: str = ""
    signal: str | None = None


class PreFault(Operation, tag="pre_fault"):
    """KVM_PRE_FAULT_MEMORY; gpa_out and size_out are what the kernel wrote back."""

    vcpu: Handle
    gpa: U64
    size: U64
    flags: U64
    gpa_out: U64 | None = None
    size_out: U64 | None = None
    livelock: bool = False


class RecordedTouch(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One guest access, as ``backend.Touch``."""

    gpa: U64
    rw: Literal["r", "w", "x"]
    size: Literal[1, 2, 4, 8]
    value: U64 = 0


class RecordedExit(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One exit, as ``backend.Exit``; anomaly marks kernel state that depends on history."""

    exit: str
    errno: str | None = None
    value: U64 | None = None
    gpa: U64 | None = None
    len: int | None = None
    is_write: int | None = None
    data: str | None = None
    flags: U64 | None = None
    size: U64 | None = None
    anomaly: str | None = None


class RunTouch(Operation, tag="run_touch"):
    """KVM_RUN once per touch; ``exits`` has a list for each."""

    vm: Handle
    vcpu: Handle
    boot_gpa: U64
    touches: list[RecordedTouch]
    exits: list[list[RecordedExit]] | None = None


class MappedPages(Operation, tag="mapped_pages"):
    """guestmem's own: what KVM counts as mapped right after a guest ran, without the guest's code and page tables.

    pages: how many leaves, by page size in bytes.
    """

    vm: Handle
    pages: dict[Annotated[str, msgspec.Meta(pattern="^[0-9]{1,20}$")], int] | None = None


class Poison(Operation, tag="poison"):
    """guestmem's own: memory failure hits the page at offset (bytes) of a guest_memfd."""

    fd: Handle
    offset: U64


class SetHugePageSize(Operation, tag="set_huge_page_size"):
    """guestmem's own: change the page size that a shmem-backed file takes from now on (bytes)."""

    fd: Handle
    page_size: U64


Line = (
    Begin
    | CheckExtension
    | Close
    | CreateGuestMemfd
    | CreateVcpu
    | CreateVm
    | Dup
    | Fallocate
    | Fstat
    | Fsync
    | Ftruncate
    | HostRead
    | HostWrite
    | Lseek
    | Madvise
    | MappedPages
    | Mmap
    | Mprotect
    | Munmap
    | OpenAux
    | Poison
    | PreFault
    | Pread
    | Pwrite
    | Read
    | Reopen
    | RunTouch
    | SetHugePageSize
    | SetMemoryAttributes
    | SetUserMemoryRegion
    | SetUserMemoryRegion2
    | Write
)
