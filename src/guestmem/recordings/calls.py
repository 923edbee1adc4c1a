"""Operations that are system calls on files and memory, and what a test may do to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from guestmem.backend import AuxKind, ShmemPolicy
from guestmem.errors import HostSignal
from guestmem.recordings.limits import ONLY_A_MODEL
from guestmem.recordings.operation import (
    S32,
    S64,
    U32,
    U64,
    Handle,
    Length,
    MappingName,
    NewHandle,
    NewMapping,
    Observed,
    Operation,
)
from guestmem.uapi import (
    FALLOC_FL_PUNCH_HOLE,
    MADV_COLLAPSE,
    MADV_HWPOISON,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_SOFT_OFFLINE,
    MADV_WILLNEED,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_POPULATE,
)
from guestmem.units import MIB, format_size

if TYPE_CHECKING:
    from guestmem.recordings.handles import Handles
    from guestmem.recordings.limits import Limits

_POISONING: Final = {MADV_HWPOISON: "MADV_HWPOISON", MADV_SOFT_OFFLINE: "MADV_SOFT_OFFLINE"}
_POPULATING: Final = (MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE)
_PINNED: Final = MIB // 2  # half of what a user may make of a pipe, fs.pipe-max-size
_MAP_POPULATED: Final = MAP_LOCKED | MAP_POPULATE | MAP_HUGETLB


class Fallocate(Operation, tag="fallocate"):
    """fallocate(2); offset and len in bytes, signed."""

    fd: Handle
    mode: S32
    offset: S64
    len: S64

    def run(self, here: Handles) -> None:
        here.backend.fallocate(here.fd(self.fd), self.mode, self.offset, self.len)

    def limit(self, limits: Limits) -> str | None:
        return None if self.mode & FALLOC_FL_PUNCH_HOLE or self.len <= 0 else limits.allocates(self.len)


class Ftruncate(Operation, tag="ftruncate"):
    """ftruncate(2)."""

    fd: Handle
    length: S64

    def run(self, here: Handles) -> None:
        here.backend.ftruncate(here.fd(self.fd), self.length)


class Lseek(Operation, tag="lseek"):
    """lseek(2)."""

    fd: Handle
    offset: S64
    whence: S32

    def run(self, here: Handles) -> None:
        self.result = here.backend.lseek(here.fd(self.fd), self.offset, self.whence)


class Transfer(Operation):
    """What read(2) and its like have in common: len bytes, into or from a valid buffer."""

    fd: Handle
    len: Length

    def limit(self, limits: Limits) -> str | None:
        return limits.allocates(self.len)


class Read(Transfer, tag="read"):
    """read(2)."""

    def run(self, here: Handles) -> None:
        self.result = here.backend.read(here.fd(self.fd), self.len)


class Write(Transfer, tag="write"):
    """write(2)."""

    def run(self, here: Handles) -> None:
        self.result = here.backend.write(here.fd(self.fd), self.len)


class Pread(Transfer, tag="pread"):
    """pread(2)."""

    offset: S64

    def run(self, here: Handles) -> None:
        self.result = here.backend.pread(here.fd(self.fd), self.len, self.offset)


class Pwrite(Transfer, tag="pwrite"):
    """pwrite(2)."""

    offset: S64

    def run(self, here: Handles) -> None:
        self.result = here.backend.pwrite(here.fd(self.fd), self.len, self.offset)


class Fsync(Operation, tag="fsync"):
    """fsync(2)."""

    fd: Handle

    def run(self, here: Handles) -> None:
        here.backend.fsync(here.fd(self.fd))


class Dup(Operation, tag="dup"):
    """dup(2)."""

    fd: Handle
    out: NewHandle

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.dup(here.fd(self.fd)), copy_of=self.fd)


class Close(Operation, tag="close"):
    """close(2)."""

    fd: Handle

    def run(self, here: Handles) -> None:
        here.backend.close(here.fd(self.fd))
        here.closed(self.fd)


class Reopen(Operation, tag="reopen"):
    """open(2) of /proc/self/fd/N."""

    fd: Handle
    out: NewHandle
    oflags: S32 = 2  # O_RDWR

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.reopen(here.fd(self.fd), self.oflags))


class Fstat(Operation, tag="fstat"):
    """fstat(2); the fields are those of a guest_memfd, or of a memfd_restricted file."""

    fd: Handle
    st_size: Observed[int | None] = None
    st_blocks: Observed[int | None] = None
    st_blksize: Observed[int | None] = None
    st_mode: Observed[str | None] = None  # octal
    st_nlink: Observed[int | None] = None

    def run(self, here: Handles) -> None:
        stat = here.backend.fstat(here.fd(self.fd))
        if stat is not None:
            self.st_size, self.st_blocks, self.st_blksize = stat.st_size, stat.st_blocks, stat.st_blksize
            self.st_mode, self.st_nlink = oct(stat.st_mode), stat.st_nlink


class OpenAux(Operation, tag="open_aux"):
    """A descriptor of another kind."""

    kind: AuxKind
    out: NewHandle

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.open_aux(self.kind))


class Mmap(Operation, tag="mmap"):
    """mmap(2) at address 0."""

    fd: Handle
    length: U64
    prot: S32
    flags: S32
    offset: S64
    out: NewMapping

    def run(self, here: Handles) -> None:
        addr = here.backend.mmap(here.fd(self.fd), self.length, self.prot, self.flags, self.offset)
        self.result = here.mapped(self.out, addr, self.length)

    def limit(self, limits: Limits) -> str | None:
        return limits.allocates(self.length) if self.flags & _MAP_POPULATED else None


class Munmap(Operation, tag="munmap"):
    """munmap(2) of a mapping, or of length bytes of it from off on."""

    map: MappingName
    off: U64 = 0
    length: U64 | None = None

    def run(self, here: Handles) -> None:
        here.backend.munmap(*here.span(self.map, self.off, self.length))
        here.unmapped(self.map, self.off, self.length)


class Mprotect(Operation, tag="mprotect"):
    """mprotect(2) of a mapping, or of length bytes of it from off on."""

    map: MappingName
    prot: S32
    off: U64 = 0
    length: U64 | None = None

    def run(self, here: Handles) -> None:
        here.backend.mprotect(*here.span(self.map, self.off, self.length), self.prot)


class Madvise(Operation, tag="madvise"):
    """madvise(2) on a mapping, or on length bytes of it from off on."""

    map: MappingName
    advice: S32
    off: U64 = 0
    length: U64 | None = None

    def run(self, here: Handles) -> None:
        here.backend.madvise(*here.span(self.map, self.off, self.length), self.advice)

    def limit(self, limits: Limits) -> str | None:
        if self.advice in _POISONING:
            return f"{_POISONING[self.advice]} takes pages from the host for good"
        return limits.allocates(self.length) if self.advice in _POPULATING and self.length is not None else None


class HostRead(Operation, tag="host_read"):
    """A load by the process; ``signal`` is what it ended in."""

    off: U64
    size: Literal[1, 2, 4, 8]
    map: MappingName = ""
    buf: str = ""
    signal: Observed[str | None] = None

    def run(self, here: Handles) -> None:
        try:
            self.result = here.backend.host_read(here.at(self.map, self.buf, self.off), self.size)
        except HostSignal as ended:
            self.signal = ended.signal
            raise

    def ended(self, touch: int | None = None) -> str:
        return str(self.errno or self.signal or "ok")


class HostWrite(Operation, tag="host_write"):
    """A store by the process; ``signal`` is what it ended in."""

    off: U64
    size: Literal[1, 2, 4, 8]
    value: U64
    map: MappingName = ""
    buf: str = ""
    signal: Observed[str | None] = None

    def run(self, here: Handles) -> None:
        try:
            here.backend.host_write(here.at(self.map, self.buf, self.off), self.size, self.value)
        except HostSignal as ended:
            self.signal = ended.signal
            raise

    def ended(self, touch: int | None = None) -> str:
        return str(self.errno or self.signal or "ok")


class PinPages(Operation, tag="pin"):
    """Hold a reference to each page of length bytes of a mapping, as vmsplice(2) into a pipe does.

    What holds them is a descriptor: its name can be duplicated and closed as others can.
    """

    map: MappingName
    off: U64
    length: Length
    out: NewHandle

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.pin(here.at(self.map, "", self.off), self.length))

    def limit(self, limits: Limits) -> str | None:
        if self.length > _PINNED:
            return f"a pipe may not hold {format_size(self.length)}; the limit is {format_size(_PINNED)}"
        return limits.allocates(self.length)


class UnpinPages(Operation, tag="unpin"):
    """Drop the references that a pin holds: close(2)."""

    pin: Handle

    def run(self, here: Handles) -> None:
        here.backend.close(here.fd(self.pin))
        here.closed(self.pin)


class Poison(Operation, tag="poison"):
    """guestmem's own: memory failure hits the page at offset (bytes) of a file; ``signal`` is what it ended in."""

    fd: Handle
    offset: U64
    signal: Observed[str | None] = None

    def run(self, here: Handles) -> None:
        try:
            here.host().poison(here.fd(self.fd), self.offset)
        except HostSignal as ended:
            self.signal = ended.signal
            raise

    def ended(self, touch: int | None = None) -> str:
        return str(self.errno or self.signal or "ok")

    def limit(self, limits: Limits) -> str | None:
        return ONLY_A_MODEL


class SetShmemEnabled(Operation, tag="set_shmem_enabled"):
    """guestmem's own: write the host's shmem_enabled; page_size is that of a huge page, bytes (Linux on x86: 2M)."""

    policy: ShmemPolicy
    page_size: U64 = 2 * MIB

    def run(self, here: Handles) -> None:
        here.host().set_shmem_enabled(self.policy, self.page_size)

    def limit(self, limits: Limits) -> str | None:
        return ONLY_A_MODEL


class MemfdRestricted(Operation, tag="memfd_restricted"):
    """memfd_restricted(2), which was never merged."""

    flags: U32
    out: NewHandle

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.memfd_restricted(self.flags))
