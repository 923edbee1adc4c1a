"""Descriptors that are not KVM's: /dev/null, an eventfd, a pipe's read end, a memfd.

They exist to be passed where a guest_memfd, a VM or a vCPU is expected, and answer as on a real kernel. Only as much of
them is modelled as such a call can see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from guestmem.backend import AuxKind
from guestmem.errors import HostSignal
from guestmem.model.contents import Contents
from guestmem.model.files import DEVNULL, EVENTFD, MEMFD, PIPE, OpenFile
from guestmem.uapi import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from guestmem.units import align_down, align_up

__all__ = ("AUX_KINDS", "MemFd", "RunArea")


class MemFd(OpenFile):
    """A memfd: size in bytes, pages on demand, a file position."""

    __slots__ = ("contents", "position", "size")

    def __init__(self) -> None:
        super().__init__(MEMFD)
        self.source = self
        self.size = 0
        self.position = 0
        self.contents = Contents()

    def host_fault(self, start: int, end: int) -> None:
        """Past the end of the file is SIGBUS."""
        if end > align_up(self.size, 4096):
            raise HostSignal("SIGBUS", f"offset {end - 1:#x} is past the end of the memfd")

    def discard(self, start: int, end: int) -> bool:
        """MADV_REMOVE punches a hole."""
        self.contents.zero(start, end)
        return True

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """shmem_fallocate: mode 0 and KEEP_SIZE allocate, PUNCH_HOLE frees."""
        if mode & FALLOC_FL_PUNCH_HOLE:
            self.contents.zero(align_up(offset, 4096), align_down(offset + length, 4096))
        elif not mode & FALLOC_FL_KEEP_SIZE:
            self.size = max(self.size, offset + length)

    def ftruncate(self, length: int) -> None:
        """Any size."""
        self.contents.zero(align_up(length, 4096), 1 << 63)
        self.size = length

    def position_at(self, offset: int, whence: int) -> int:
        """The position lseek asks for, negative where there is none; DATA and HOLE see data up to the end."""
        if whence > 2:
            if not 0 <= offset < self.size:
                return -1
            return offset if whence == 3 else self.size
        return (0, self.position, self.size)[whence] + offset

    def transfer(self, length: int, *, writes: bool) -> int:
        """read and write at the file position; what is written is zeros."""
        moved = self.transfer_at(length, self.position, writes=writes)
        self.position += moved
        return moved

    def transfer_at(self, length: int, offset: int, *, writes: bool) -> int:
        """pread and pwrite; what is written is zeros."""
        if not writes:
            return max(0, min(length, self.size - offset))
        if length:
            self.size = max(self.size, offset + length)
        return length


class RunArea:
    """What mapping a vCPU shows: three pages, whose contents are not modelled."""

    _SIZE = 3 * 4096

    def __init__(self) -> None:
        self.contents = Contents()

    def host_fault(self, start: int, end: int) -> None:
        """Past the three pages is SIGBUS (kvm_vcpu_fault)."""
        if end > self._SIZE:
            raise HostSignal("SIGBUS", f"offset {end - 1:#x} is past the vCPU's pages")

    def discard(self, start: int, end: int) -> bool:
        """There is no hole to punch."""
        return False


AUX_KINDS: Mapping[AuxKind, Callable[[], OpenFile]] = MappingProxyType(
    {
        "memfd": MemFd,
        "eventfd": lambda: OpenFile(EVENTFD),
        "pipe": lambda: OpenFile(PIPE),
        "devnull": lambda: OpenFile(DEVNULL),
    }
)
