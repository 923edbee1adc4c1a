"""What to change, in the words of the VMM that made the layout."""

from __future__ import annotations

from collections.abc import Sequence

from guestmem.layout.regions import Regions, allocation_of, name_of
from guestmem.layout.value import Layout, Slot
from guestmem.units import MIB, align_down, align_up, format_size

__all__ = ("align_hva", "bigger_pages", "cut_elsewhere", "no_dirty_logging", "resize", "spare_low_memory")


def align_hva(regions: Regions, slot: Slot, page_size: int) -> str:
    """Make the HVA of the slot's region congruent with its GPA."""
    layout, size = regions.layout, format_size(page_size)
    if layout.vmm in ("qemu", "libvirt"):
        where = "" if layout.vmm == "qemu" else " (libvirt: <hugepages/> in <memoryBacking>)"
        return (
            f"back {slot.region} by hugetlb pages (memory-backend-memfd,hugetlb=on,hugetlbsize={size}){where}, "
            f"or add align={size} to a memory-backend-file, or use memory-backend-ram,share=on"
        )
    if layout.vmm in ("cloud-hypervisor", "firecracker"):  # both map what has such a size at such a multiple
        return resize(regions, slot, page_size)
    residue = (slot.gpa - (slot.offset or 0)) % page_size
    return f"map {name_of(slot)} at {f'{residue:#x} past ' if residue else ''}a multiple of {size}"


def resize(regions: Regions, slot: Slot, page_size: int) -> str:
    """Give what the slot is a piece of a size that is a multiple of the page."""
    layout = regions.layout
    what, size = _sized(regions, slot)
    up, down = align_up(size, page_size), align_down(size, page_size)
    if layout.vmm == "firecracker":
        sizes = [f"{bytes_ // MIB}" for bytes_ in (up, down, size)]
    else:
        sizes = [format_size(bytes_) for bytes_ in (up, down, size)]
    either = f"{sizes[0]} or {sizes[1]}" if down else sizes[0]
    return f"make {what} {either} instead of {sizes[2]}"


def _sized(regions: Regions, slot: Slot) -> tuple[str, int]:
    """What the VMM lets one size, and how large it is."""
    if regions.layout.vmm == "firecracker":
        return "mem_size_mib", sum(other.size for other in regions.layout.slots)
    what = "zone " if regions.layout.vmm == "cloud-hypervisor" else ""
    return f"{what}{allocation_of(regions.layout, slot)}", regions.allocated(slot)


def cut_elsewhere(layout: Layout, gpa: int, page_size: int) -> str:
    """End the memory below the cut, which lies at gpa, at a multiple of the page."""
    better = format_size(align_down(gpa, page_size))
    if layout.vmm in ("qemu", "libvirt"):
        return f"set max-ram-below-4g={better} (the default is 3G on pc-i440fx from 2.0 on, 2G on q35)"
    return f"end the lower part at {better} instead of {format_size(gpa)}"


def bigger_pages(regions: Regions, slots: Sequence[Slot], page_size: int) -> str:
    """Back the memory of these slots by larger pages."""
    layout, size = regions.layout, format_size(page_size)
    if layout.vmm in ("cloud-hypervisor", "firecracker"):  # both refuse huge pages for a size that is no multiple
        odd = dict.fromkeys(_sized(regions, slot) for slot in slots)
        names = ", ".join(name for name, bytes_ in odd if bytes_ % page_size)
        needed = f", with a multiple of {size} for {names}" if names else ""
        return f"{_bigger_pages(layout, size)}{needed}"
    return _bigger_pages(layout, size)


def _bigger_pages(layout: Layout, size: str) -> str:
    if layout.vmm == "qemu":
        return f"memory-backend-memfd,hugetlb=on,hugetlbsize={size}, or memory-backend-file on a hugetlbfs of {size}"
    if layout.vmm == "libvirt":
        return f"<memoryBacking><hugepages><page size='{size[:-1]}' unit='{size[-1]}'/></hugepages></memoryBacking>"
    if layout.vmm == "cloud-hypervisor":
        return f"hugepages=on,hugepage_size={size}"
    if layout.vmm == "firecracker":
        return '"huge_pages": "2M"' if size == "2M" else "none: Firecracker has 2M pages at most"
    return f"back the memory by hugetlb pages of {size}"


def no_dirty_logging(layout: Layout, slot: Slot) -> str:
    """Switch dirty logging off, or know when it ends."""
    if layout.vmm == "firecracker":
        return '"track_dirty_pages": false'
    if slot.region == "vga.vram":
        return "none needed where the display is idle; -vga none removes the slot"
    return "clear KVM_MEM_LOG_DIRTY_PAGES when migration or snapshot tracking ends"


def spare_low_memory(layout: Layout, *, vga_hole: bool) -> str:
    """What can be saved in the first megabyte, although no level can be gained."""
    remedy = "none that gains a level: firmware wants it so"
    if layout.vmm in ("qemu", "libvirt") and vga_hole:
        return f"{remedy}; -nodefaults or -vga none closes the VGA hole, -machine microvm has neither hole nor ROMs"
    return remedy
