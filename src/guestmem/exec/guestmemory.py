"""Guest-physical memory of one VM: the model's stage 2 decides, the bytes are in memory files.

What the model answered for a frame is kept until a leaf goes or loses write permission (``Stage2.generation``); a vCPU
flushes its TLB when it finds another generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from errno import EFAULT
from struct import unpack_from
from typing import Final

from guestmem.errors import HostSignal
from guestmem.exec.vcpu.stops import Access, NoMemory
from guestmem.exec.windows import MappedFile, ProgramFile
from guestmem.model.files import Source
from guestmem.model.vcpu import Vcpu
from guestmem.model.vm import GuestMemfd, Vm

__all__ = ("GuestMemory", "Page")

_OFFSET: Final = 0xFFF


@dataclass(slots=True, eq=False)
class Page:
    """One frame's bytes: view[start : start + 4096]. ``address`` and ``window``: in the engines' physical space."""

    view: memoryview
    start: int
    address: int
    writable: bool
    window: int  # address of the window
    size: int  # ... its bytes
    pointer: int  # ... where it is in this process


@dataclass(slots=True)
class Counts:
    """What happened, for --stats."""

    fills: int = 0
    faults: int = 0
    flushes: int = 0
    slices: int = 0
    exits: dict[str, int] = field(default_factory=dict)


class GuestMemory:
    """The frames of one VM. ``files`` knows where the bytes of a guest_memfd are."""

    def __init__(self, vm: Vm, files: Mapping[GuestMemfd, MappedFile]) -> None:
        self.vm = vm
        self.counts = Counts()
        self._files = files
        self._pages: dict[int, Page] = {}
        self._generation = -1

    @property
    def generation(self) -> int:
        """Grows when something that was answered may be wrong."""
        return self.vm.stage2.generation

    def page(self, vcpu: Vcpu, gpa: int, access: Access) -> Page:
        """The page of a guest-physical address, for one kind of access; NoMemory."""
        if self._generation != self.vm.stage2.generation:
            self._pages.clear()
            self._generation = self.vm.stage2.generation
        page = self._pages.get(gpa >> 12)
        if page is not None and (page.writable or access != "w"):
            return page
        return self._fault(vcpu, gpa, access)

    def read64(self, vcpu: Vcpu, gpa: int) -> int:
        """Eight aligned bytes, as a walk of page tables reads them; NoMemory."""
        page = self.page(vcpu, gpa, "r")
        word: int = unpack_from("<Q", page.view, page.start + (gpa & _OFFSET))[0]
        return word

    def unknown(self, gpa: int) -> tuple[int, int] | None:
        """The addresses of the slot at gpa, if the model does not know what the program has there."""
        slot = self.vm.spaces[0].by_gfn.get(gpa >> 12)
        if slot is None:
            return None
        address = slot.userspace_addr + ((gpa >> 12) - slot.base_gfn << 12)
        if self.vm.host.vmas.get(address) is not None:
            return None
        return slot.userspace_addr, slot.userspace_addr + (slot.npages << 12)

    def _fault(self, vcpu: Vcpu, gpa: int, access: Access) -> Page:
        gfn = gpa >> 12
        answer = vcpu.translate(gfn, write=access == "w", fetch=access == "x")
        leaf = answer.leaf
        if leaf is None:
            result = answer.result
            assert result.kind in ("mmio", "memory_fault", "host_error"), f"bug in guestmem: a fault ended {result}"
            raise NoMemory(gpa, access, result.kind, result.errno, private=answer.private)
        self.counts.faults += 1
        offset = (gfn - leaf.delta) << 12
        try:
            window = self._file_of(leaf.source).window(offset)
        except HostSignal as signal:
            raise NoMemory(gpa, access, "host_error", EFAULT) from signal
        start = offset - window.start
        page = Page(
            window.view,
            start,
            window.address + start,
            leaf.writable,
            window.address,
            len(window.view),
            window.pointer,
        )
        if self._generation == self.vm.stage2.generation:  # else the fault itself has unmapped something
            self._pages[gfn] = page
        return page

    def _file_of(self, source: Source) -> MappedFile:
        if isinstance(source, GuestMemfd):
            return self._files[source]
        assert isinstance(source, ProgramFile), f"bug in guestmem: {source!r} holds no bytes"
        return source
