"""What a sequence may not ask of a real kernel: memory without bound, and what harms the host for good.

A recording is a file from anywhere, and a kernel does what it is told. With shadow paging a memslot costs 8 bytes of
kernel memory for each of its pages (measured on 6.18: 64 GiB take 130 MiB and 0.2 s, 1 TiB takes 2 GiB and 5 s);
setting attributes stores one entry per page; allocating is what it says. Operations above a limit are not issued and
say so; whatever a kernel refuses by its arguments alone stays cheap, but is measured with the same stick.
"""

from __future__ import annotations

from guestmem.recordings import vocabulary as v
from guestmem.uapi import FALLOC_FL_PUNCH_HOLE
from guestmem.units import GIB, MIB, U64, format_size

__all__ = ("Limits",)

_SLOT = 64 * GIB  # bytes of one memslot, and
_SLOTS = 256 * GIB  # of all that a sequence sets
_ATTRIBUTES = 4 * GIB  # bytes of one range of attributes: a million entries
_MEMORY = 256 * MIB  # bytes that one operation may allocate, and
_MEMORY_ALL = 1024 * MIB  # that a sequence may
_PAGES_PER_SLOT = (1 << 31) - 1  # above, KVM refuses (KVM_MEM_MAX_NR_PAGES)
_PAGE = 4096
_POISONING = {100: "MADV_HWPOISON", 101: "MADV_SOFT_OFFLINE"}
_POPULATING = {22: "MADV_POPULATE_READ", 23: "MADV_POPULATE_WRITE", 25: "MADV_COLLAPSE", 3: "MADV_WILLNEED"}
_MAP_LOCKED, _MAP_POPULATE, _MAP_HUGETLB = 0x2000, 0x8000, 0x40000


class Limits:
    """The account of one sequence."""

    def __init__(self) -> None:
        self._slots = 0
        self._memory = 0

    def refuses(self, operation: v.Operation) -> str | None:
        """Why the operation is not to be issued, None if it may be; what may be is put on the account."""
        match operation:
            case v.SetUserMemoryRegion2() | v.SetUserMemoryRegion():
                return self._slot(operation.size)
            case v.SetMemoryAttributes():
                return _attributes(operation)
            case v.Fallocate():
                punch = operation.mode & FALLOC_FL_PUNCH_HOLE
                return None if punch or operation.len <= 0 else self._allocates(operation.len)
            case v.Write() | v.Pwrite() | v.Read() | v.Pread():
                return self._allocates(operation.len)
            case v.PreFault():
                return None if _wraps(operation.gpa, operation.size) else self._allocates(operation.size)
            case v.Mmap():
                return self._mmap(operation)
            case v.Madvise():
                return self._madvise(operation)
            case v.Poison() | v.SetHugePageSize():
                return "only a model lets a test do this to its host"
            case _:
                return None

    def _slot(self, size: int) -> str | None:
        if size > _PAGES_PER_SLOT * _PAGE:
            return None  # EINVAL before anything is allocated
        if size > _SLOT:
            return f"a memslot of {format_size(size)} costs too much kernel memory; the limit is {format_size(_SLOT)}"
        if self._slots + size > _SLOTS:
            return f"the memslots of the sequence reach {format_size(_SLOTS)}"
        self._slots += size
        return None

    def _allocates(self, size: int) -> str | None:
        if size > _MEMORY:
            return f"may allocate {format_size(size)}; the limit is {format_size(_MEMORY)}"
        if self._memory + size > _MEMORY_ALL:
            return f"the allocations of the sequence reach {format_size(_MEMORY_ALL)}"
        self._memory += size
        return None

    def _mmap(self, operation: v.Mmap) -> str | None:
        if not operation.flags & (_MAP_LOCKED | _MAP_POPULATE | _MAP_HUGETLB):
            return None
        return self._allocates(operation.length)

    def _madvise(self, operation: v.Madvise) -> str | None:
        if operation.advice in _POISONING:
            return f"{_POISONING[operation.advice]} takes pages from the host for good"
        if operation.advice in _POPULATING and operation.length is not None:
            return self._allocates(operation.length)
        return None


def _attributes(operation: v.SetMemoryAttributes) -> str | None:
    if operation.flags or _wraps(operation.address, operation.size) or operation.size <= _ATTRIBUTES:
        return None
    return f"attributes of {format_size(operation.size)} are kept page by page; the limit is {format_size(_ATTRIBUTES)}"


def _wraps(start: int, size: int) -> bool:
    """Whether the kernel refuses the range by itself."""
    return size == 0 or start + size >= U64 or bool((start | size) % _PAGE)
