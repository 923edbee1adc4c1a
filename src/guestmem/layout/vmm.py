"""What to change, in the words of the VMM that made the layout: one class for each VMM, and one for those unknown.

Findings ask ``words_of(layout)`` and never which VMM it is. Sizes and addresses are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from guestmem.layout.regions import Regions
from guestmem.layout.value import Layout, Slot
from guestmem.units import MIB, align_down, align_up, format_size

__all__ = ("DISPLAY", "Words", "words_of")

DISPLAY = "vga.vram"  # QEMU's name for the memory of its VGA devices, which it logs to find what to redraw


class Words:
    """For a VMM that is not known: what to ask of KVM itself."""

    def align_hva(self, regions: Regions, slot: Slot, page_size: int) -> str:
        """Make the HVA of the slot's region congruent with its GPA."""
        residue = (slot.gpa - (slot.offset or 0)) % page_size
        return f"map {slot.name} at {f'{residue:#x} past ' if residue else ''}a multiple of {format_size(page_size)}"

    def sized(self, regions: Regions, slot: Slot) -> tuple[str, int]:
        """What the user gives a size to that decides the size of the slot, and how large it is now."""
        return slot.allocation, regions.allocated(slot)

    def size(self, size: int) -> str:
        """A size as it is written in the VMM's configuration."""
        return format_size(size)

    def resize(self, regions: Regions, slot: Slot, page_size: int) -> str:
        """Give the slot's memory a size that is a multiple of the page."""
        what, size = self.sized(regions, slot)
        up, down = align_up(size, page_size), align_down(size, page_size)
        either = f"{self.size(up)} or {self.size(down)}" if down else self.size(up)
        return f"make {what} {either} instead of {self.size(size)}"

    def cut_elsewhere(self, gpa: int, page_size: int) -> str:
        """End the memory below the cut, which lies at gpa, at a multiple of the page."""
        return f"end the lower part at {format_size(align_down(gpa, page_size))} instead of {format_size(gpa)}"

    def larger_pages(self, page_size: int) -> str:
        """Back the guest's memory by pages of the size."""
        return f"back the memory by hugetlb pages of {format_size(page_size)}"

    def larger_pages_for(self, regions: Regions, slots: Sequence[Slot], page_size: int) -> str:
        """Back the memory of these slots by pages of the size."""
        return self.larger_pages(page_size)

    def no_dirty_logging(self, slot: Slot) -> str:
        """Switch dirty logging off, or know when it ends."""
        if slot.region == DISPLAY:
            return "nothing to change where the display is idle; -vga none removes the slot"
        return "clear KVM_MEM_LOG_DIRTY_PAGES when migration or snapshot tracking ends"

    def find_out(self, gpa: int, *, hva: bool) -> str:
        """What tells whether the host grants huge pages, and where the memory is; gpa is that of a large slot."""
        return "on its host, sudo guestmem check pid:PID reads both from the kernel; --thp never is the worst case"

    def spare_low_memory(self, *, vga_hole: bool) -> str:
        """What can be saved in the first megabyte, although no level can be gained."""
        return "nothing to change: the firmware needs this layout"


class QemuWords(Words):
    """QEMU's command line."""

    def align_hva(self, regions: Regions, slot: Slot, page_size: int) -> str:
        size = format_size(page_size)
        return (
            f"back {slot.region} by hugetlb pages ({self.hugetlb(size)}), which is certain; where the host grants "
            f"transparent huge pages for this memory (shmem_enabled), align={size} of a memory-backend-file or "
            "memory-backend-ram,share=on will do"
        )

    def hugetlb(self, size: str) -> str:
        """The memory backend with pages of the size."""
        return f"memory-backend-memfd,hugetlb=on,hugetlbsize={size}"

    def cut_elsewhere(self, gpa: int, page_size: int) -> str:
        better = format_size(align_down(gpa, page_size))
        return f"set max-ram-below-4g={better} (the default is 3G on pc-i440fx from 2.0 on, 2G on q35)"

    def larger_pages(self, page_size: int) -> str:
        size = format_size(page_size)
        return f"use {self.hugetlb(size)}, or memory-backend-file on a hugetlbfs of {size}"

    def find_out(self, gpa: int, *, hva: bool) -> str:
        where = f"; {self.monitor(f'gpa2hva {gpa:#x}')} has the address" if hva else ""
        return super().find_out(gpa, hva=hva) + where

    def monitor(self, command: str) -> str:
        """A command of QEMU's monitor."""
        return f"'{command}' in the monitor"

    def spare_low_memory(self, *, vga_hole: bool) -> str:
        fixed = super().spare_low_memory(vga_hole=vga_hole)
        options = "-nodefaults or -vga none closes the VGA hole, -machine microvm has neither hole nor ROMs"
        return f"{fixed}; {options}" if vga_hole else fixed


class LibvirtWords(QemuWords):
    """libvirt's domain XML, which QEMU gets as options."""

    def align_hva(self, regions: Regions, slot: Slot, page_size: int) -> str:
        return f"{self.larger_pages(page_size)}, which is certain: its mapping is aligned"

    def larger_pages(self, page_size: int) -> str:
        size = format_size(page_size)
        page = f"<page size='{size[:-1]}' unit='{size[-1]}'/>"
        return f"add <memoryBacking><hugepages>{page}</hugepages></memoryBacking> to the domain"

    def monitor(self, command: str) -> str:
        return f"virsh qemu-monitor-command DOMAIN --hmp '{command}'"

    def larger_pages_for(self, regions: Regions, slots: Sequence[Slot], page_size: int) -> str:
        nvdimms = [slot.region for slot in slots if slot.region.startswith("memnvdimm")]
        size = format_size(page_size)
        own = f"put the file of {', '.join(nvdimms)} on DAX or hugetlbfs and set <alignsize> to {size}"
        if len(nvdimms) == len(slots):
            return own
        return f"{self.larger_pages(page_size)}{f'; {own}' if nvdimms else ''}"


class SizedByPagesWords(Words):
    """VMMs that map memory at a multiple of a page where its size is one, and refuse huge pages for another size."""

    def align_hva(self, regions: Regions, slot: Slot, page_size: int) -> str:
        if self.sized(regions, slot)[1] % page_size == 0:
            return super().align_hva(regions, slot, page_size)
        return self.resize(regions, slot, page_size)

    def larger_pages_for(self, regions: Regions, slots: Sequence[Slot], page_size: int) -> str:
        sized = dict.fromkeys(self.sized(regions, slot) for slot in slots)
        odd = ", ".join(name for name, size in sized if size % page_size)
        needed = f", with a multiple of {format_size(page_size)} for {odd}" if odd else ""
        return f"{self.larger_pages(page_size)}{needed}"


class CloudHypervisorWords(SizedByPagesWords):
    """Cloud Hypervisor's VM config."""

    def sized(self, regions: Regions, slot: Slot) -> tuple[str, int]:
        what, size = super().sized(regions, slot)
        return f"zone {what}", size

    def larger_pages(self, page_size: int) -> str:
        return f"set hugepages=on,hugepage_size={format_size(page_size)}"


class FirecrackerWords(SizedByPagesWords):
    """Firecracker's config."""

    def sized(self, regions: Regions, slot: Slot) -> tuple[str, int]:
        return "mem_size_mib", sum(other.size for other in regions.layout.slots)

    def size(self, size: int) -> str:
        return f"{size // MIB}"

    def larger_pages(self, page_size: int) -> str:
        if page_size != 2 * MIB:
            return "nothing to change: Firecracker has 2M pages at most"
        return 'set "huge_pages": "2M"'

    def no_dirty_logging(self, slot: Slot) -> str:
        return 'set "track_dirty_pages": false'


_UNKNOWN = Words()
_WORDS = {
    "qemu": QemuWords(),
    "libvirt": LibvirtWords(),
    "cloud-hypervisor": CloudHypervisorWords(),
    "firecracker": FirecrackerWords(),
}


def words_of(layout: Layout) -> Words:
    """The words of the VMM that made the layout."""
    return _WORDS.get(layout.vmm, _UNKNOWN)
