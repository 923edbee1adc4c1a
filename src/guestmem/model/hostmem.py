"""The process's own address space: what a userspace_addr means.

Mappings are runs of addresses over a *source* (anonymous memory, a file). Whoever maps host pages into a guest is
notified when they go, as KVM's mmu notifier is. Addresses are bytes. Leaves out swap, copy-on-write between processes
and page migration: nothing here moves by itself.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from guestmem.errors import HostSignal
from guestmem.model.checks import Check, note, require
from guestmem.model.contents import Contents
from guestmem.model.files import OpenFile, Source
from guestmem.runmap import RunMap
from guestmem.uapi import PROT_EXEC, PROT_READ, PROT_WRITE
from guestmem.units import GIB, MIB, TIB, U64, align_down, align_up

__all__ = ("AddressSpace", "Anonymous", "RangeRequest", "Vma")

_BOTTOM, _TOP = 0x1_0000, 0x7F00_0000_0000  # where mappings are placed, from the top; the program is outside
_APART = GIB  # bytes between mappings, and what they begin at a multiple of
_HUGE = 2 * MIB  # HPAGE_PMD_SIZE

LENGTH_NOT_ZERO: Check[int] = Check(
    "length-not-zero", errno.EINVAL, "length must not be 0", "do_mmap", bool, lambda size: f"length={size:#x}"
)
ADDRESS_SPACE_HAS_ROOM: Check[tuple[int, list[int]]] = Check(
    "address-space-has-room",
    errno.ENOMEM,
    "the process must have a free range of addresses that long",
    "get_unmapped_area",
    lambda asked: bool(asked[1]),
    lambda asked: f"length={asked[0]:#x}",
)


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """A call on a range of the process's addresses; bytes."""

    host: AddressSpace
    addr: int
    length: int

    @property
    def end(self) -> int:
        """One past the last page."""
        return self.addr + align_up(self.length, self.host.page_size)

    def __str__(self) -> str:
        return f"addr={self.addr:#x} length={self.length:#x}"


class Anonymous:
    """Anonymous memory of the process, private or shared; an offset is the address itself."""

    def __init__(self) -> None:
        self.contents = Contents()

    def host_fault(self, start: int, end: int) -> None:
        """Anonymous pages are always to be had."""

    def discard(self, start: int, end: int) -> bool:
        """MADV_REMOVE, which gets this far on shared memory only: a file without a name, which has holes."""
        self.contents.zero(start, end)
        return True


@dataclass(slots=True)
class _FileReference:
    """One mmap call's hold on its file, until its last page is unmapped."""

    file: OpenFile
    bytes_left: int


@dataclass(frozen=True, slots=True)
class Vma:
    """A host mapping: address minus ``delta`` is the offset in source. page_order: size of the host's own mappings."""

    source: Source
    delta: int
    prot: int
    shared: bool = False
    may_exec: bool = True
    page_order: int = 0
    held: _FileReference | None = None


class AddressSpace:
    """The mappings of one process."""

    def __init__(self, page_size: int, user_limit: int) -> None:
        self.page_size = page_size
        self.user_limit = user_limit  # TASK_SIZE
        self.anonymous = Anonymous()
        self.vmas: RunMap[Vma] = RunMap()
        self._lowest = _TOP  # mappings were placed down to here
        self.on_invalidate: list[Callable[[int, int], None]] = []
        # The page table: addresses that were faulted in, False where the page is the zero page, which is never written.
        self._present: RunMap[bool] = RunMap()
        self._tables: set[int] = set()  # gibibytes of addresses with a page table: something in them was accessed
        self._poisoned: RunMap[bool] = RunMap()  # markers in the page table: the page that was there is broken

    def map_anonymous(self, size: int, prot: int, align: int, page_order: int = 0, *, shared: bool = False) -> int:
        """Map zeroed memory, whole pages, at a multiple of align; the address. EINVAL for size 0."""
        if not size:
            require((LENGTH_NOT_ZERO,), size)
        size = align_up(size, self.page_size)
        addr = self.find_hole(size, max(align, self.page_size))
        self.vmas.set(addr, addr + size, Vma(self.anonymous, 0, prot, shared, page_order=page_order))
        return addr

    def find_hole(self, size: int, align: int) -> int:
        """A free range of size bytes at a multiple of align: below all that were taken, apart from the one before.

        Where no such room is left, the highest that is free. ENOMEM (get_unmapped_area). A kernel may put mappings side
        by side and use an address again, and then an access past the end of a mapping, or into what was unmapped, hits
        another one. The backend of /dev/kvm places mappings as this one does, so that such an access is what it says.
        """
        addr = align_down(self._lowest - _APART - size, max(align, _APART) if size <= TIB else align)
        if addr < _BOTTOM or self.vmas.overlaps(addr, addr + size):
            holes = self.vmas.gaps(_BOTTOM, _TOP)
            fits = [align_down(end - size, align) for start, end in holes if align_down(end - size, align) >= start]
            require((ADDRESS_SPACE_HAS_ROOM,), (size, fits))
            addr = fits[-1]
        elif size <= TIB:
            self._lowest = addr
        return addr

    def map_file(self, file: OpenFile, length: int, prot: int, offset: int, *, shared: bool, may_exec: bool) -> int:
        """Map a file that has a source; the mapping holds the file open. The address."""
        assert file.source is not None
        length = align_up(length, self.page_size)
        addr = self.find_hole(length, self.page_size)
        file.get()
        vma = Vma(file.source, addr - offset, prot, shared, may_exec, held=_FileReference(file, length))
        self.vmas.set(addr, addr + length, vma)
        return addr

    def place(self, start: int, end: int, vma: Vma) -> None:
        """A mapping that the process has made itself, at addresses of its own choice."""
        self.vmas.set(start, end, vma)

    def unmap(self, addr: int, end: int) -> None:
        """Remove the mappings of whole pages [addr, end)."""
        gone = list(self.vmas.runs(addr, end))
        self.cut(addr)
        self.cut(end)
        self.invalidate(addr, end)
        self.vmas.clear(addr, end)
        self.anonymous.contents.zero(addr, end)
        self._present.clear(addr, end)
        self._poisoned.clear(addr, end)
        self._tables = {at for at in self._tables if self.vmas.overlaps(at * GIB, (at + 1) * GIB)}
        for start, stop, vma in gone:
            self._forget(vma, stop - start)

    def cut(self, addr: int) -> None:
        """A mapping is cut in two at addr (__split_vma).

        Where it could hold a huge page across addr, the kernel would have to split that, and tells guests so for the
        whole 2M, whether there is one or not, as soon as there is a page table (split_huge_pmd_if_needed).
        """
        run, block = self.vmas.run_at(addr), align_down(addr, _HUGE)
        if addr == block or run is None or not run[0] <= block or block + _HUGE > run[1]:
            return
        if addr // GIB in self._tables:
            self.invalidate(block, block + _HUGE)

    def load(self, addr: int, size: int) -> int:
        """A load of size bytes, little-endian; HostSignal."""
        parts = self._parts(addr, size, write=False)
        return sum(source.contents.read(offset, length) << 8 * done for source, offset, length, done in parts)

    def store(self, addr: int, size: int, value: int) -> None:
        """A store of size bytes, little-endian, all or nothing; HostSignal."""
        for source, offset, length, done in self._parts(addr, size, write=True):
            source.contents.write(offset, length, value >> 8 * done & (1 << 8 * length) - 1)

    def _parts(self, addr: int, size: int, *, write: bool) -> list[tuple[Source, int, int, int]]:
        """The accesses (source, offset, length, bytes before it) of one that may cross a page."""
        first = min(size, self.page_size - addr % self.page_size)
        parts = [(*self.access(addr, write=write), first, 0)]
        if first < size:
            parts.append((*self.access(addr + first, write=write), size - first, first))
        return parts

    def access(self, addr: int, *, write: bool) -> tuple[Source, int]:
        """The source and offset behind a host access; HostSignal where the process would get one."""
        try:
            vma = self._mapping_for(addr, write=write)
            page = align_down(addr, self.page_size)
            self.fault_in(vma, page, page + self.page_size, write=write)
        except HostSignal as signal:
            note("host-access", str, signal)
            raise
        note("host-access", "{:#x} is mapped and its page is present".format, addr)
        return vma.source, addr - vma.delta

    def _mapping_for(self, addr: int, *, write: bool) -> Vma:
        vma = self.vmas.get(addr)
        if vma is None:
            raise HostSignal("SIGSEGV", f"nothing is mapped at {addr:#x}")
        if not permits(vma.prot, write=write):
            raise HostSignal("SIGSEGV", f"protection {vma.prot} of {addr:#x} forbids the access")
        return vma

    def fault_in(self, vma: Vma, start: int, end: int, *, write: bool) -> None:
        """Whole pages of one mapping become present, for the process or for a guest (handle_mm_fault); HostSignal.

        Private anonymous memory that is read first is the zero page. The first store gives it a page of its own, and
        whoever mapped the zero page is notified (wp_page_copy).
        """
        self._tables.update(range(start // GIB, (end - 1) // GIB + 1))
        marker = next(self._poisoned.runs(start, end), None)
        if marker is not None:
            if start < marker[0]:
                self.fault_in(vma, start, marker[0], write=write)
            raise HostSignal("SIGBUS", f"the page that was at {marker[0]:#x} is poisoned")
        try:
            vma.source.host_fault(start - vma.delta, end - vma.delta)
        except HostSignal:
            middle = align_down((start + end) // 2, self.page_size)
            if start < middle:  # pages are taken one after the other: those before the one that fails are there
                self.fault_in(vma, start, middle, write=write)
                self.fault_in(vma, middle, end, write=write)
            raise
        if not self._may_be_zero_page(vma):
            self._present.set(start, end, True)
        elif write:
            for first, last, own in list(self._present.runs(start, end)):
                if not own:
                    self.invalidate(first, last)
            self._present.set(start, end, True)
        else:
            for first, last in list(self._present.gaps(start, end)):
                self._present.set(first, last, False)

    def get_pages(self, start: int, end: int) -> list[tuple[Source, int, int]]:
        """Whole pages [start, end) as parts of sources, present now, to be read; HostSignal where one cannot be.

        A page that is there is taken without a look at the mapping, if its protection allows any access
        (get_user_pages_fast).
        """
        parts: list[tuple[Source, int, int]] = []
        while start < end:
            run = self.vmas.run_at(start)
            if run is None:
                raise HostSignal("SIGSEGV", f"nothing is mapped at {start:#x}")
            vma, last = run[2], min(run[1], end)
            if not vma.prot & PROT_READ:
                absent = next(self._present.gaps(start, last), None) if vma.prot else (start, last)
                if absent is not None:
                    raise HostSignal("SIGSEGV", f"protection {vma.prot} of {absent[0]:#x} forbids the access")
            self.fault_in(vma, start, last, write=False)
            parts.append((vma.source, start - vma.delta, last - vma.delta))
            start = last
        return parts

    def is_writable(self, vma: Vma, addr: int) -> bool:
        """Whether a store at addr needs no fault: the page is present, and the page table lets it be written."""
        return bool(vma.prot & PROT_WRITE) and self._present.get(addr) is True

    def alike_until(self, vma: Vma, addr: int) -> int:
        """The end of the addresses from addr on, in the mapping, that a guest's read faults find alike."""
        if not self._may_be_zero_page(vma) and vma.prot & PROT_READ:
            return U64
        here = self._present.run_at(addr)
        if here is not None and here[2]:
            return here[1]
        return next((start for start, _, own in self._present.runs(addr, None) if own), U64)

    def _may_be_zero_page(self, vma: Vma) -> bool:
        return vma.source is self.anonymous and not vma.shared and not vma.page_order

    def dont_need(self, start: int, end: int, *, shared: bool) -> None:
        """MADV_DONTNEED: private anonymous pages become zero; file pages stay in their file, shared ones too."""
        self.invalidate(start, end)
        self._present.clear(start, end)
        self._poisoned.clear(start, end)
        if not shared:
            self.anonymous.contents.zero(start, end)

    def may_free(self, start: int, end: int) -> None:
        """MADV_FREE: the pages may go when memory is short, which it never is here."""
        self.invalidate(start, end)

    def file_changed(self, source: Source, start: int, end: int) -> None:
        """Pages [start, end) (bytes) of a file are going: unmap them from every mapping (unmap_mapping_range)."""
        for first, last, vma in list(self.vmas):
            if vma.source is source:
                low, high = max(first, start + vma.delta), min(last, end + vma.delta)
                if low < high:
                    self.invalidate(low, high)
                    self._present.clear(low, high)

    def memory_failure(self, source: Source, start: int, end: int) -> None:
        """Pages [start, end) (bytes) of a file are broken: where one was present, a marker stays (try_to_unmap_one).

        Punching the page out of the file does not take the marker away; MADV_DONTNEED and munmap(2) do.
        """
        for first, last, vma in list(self.vmas):
            if vma.source is source:
                low, high = max(first, start + vma.delta), min(last, end + vma.delta)
                for at, to, _ in list(self._present.runs(low, high)) if low < high else ():
                    self._poisoned.set(at, to, True)

    def unmap_all(self) -> None:
        """The process ends."""
        gone = list(self.vmas)
        self.vmas, self._present = RunMap(), RunMap()
        for start, stop, vma in gone:
            self._forget(vma, stop - start)

    def invalidate(self, start: int, end: int) -> None:
        """Tell whoever shows the addresses [start, end) to a guest that they go."""
        for callback in self.on_invalidate:
            callback(start, end)

    @staticmethod
    def _forget(vma: Vma, size: int) -> None:
        if vma.held is not None:
            vma.held.bytes_left -= size
            if vma.held.bytes_left == 0:
                vma.held.file.put()


def permits(prot: int, *, write: bool) -> bool:
    """Whether a protection allows the access; on x86 a page that may be written or executed may be read."""
    return bool(prot & PROT_WRITE) if write else bool(prot & (PROT_READ | PROT_WRITE | PROT_EXEC))
