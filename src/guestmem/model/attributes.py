"""KVM_SET_MEMORY_ATTRIBUTES and its successor: private or shared, per guest frame or per page of a file.

Attributes of a VM belong to its frames, not to memslots: they exist where no slot is and survive slots. A frame without
a value is shared. Attributes of a guest_memfd belong to its pages, there or not, bound or not; with in-place conversion
those count and the VM has none. The kernel also keeps a "mixed" mark per hugepage range of each slot
(hugepage_has_attrs in arch/x86/kvm/mmu/mmu.c); the mark says no more than that the range is not uniform, so here it is
computed when asked.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guestmem.backend import ConversionResult
from guestmem.errors import KvmError
from guestmem.model.checks import Check, flags_zero, require
from guestmem.model.vm import GuestMemfd, Vm
from guestmem.runmap import RunMap
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE
from guestmem.units import U64, align_down, align_up

__all__ = ("ARGUMENT_CHECKS", "AttributesRequest", "ConversionRequest", "convert", "give", "set_attributes")

_SOURCE = "kvm_vm_ioctl_set_mem_attributes"
_QUEUED = "KVM: guest_memfd: In-place conversion support, 799c9fadc639"
_REFERENCES = "KVM: guest_memfd: In-place conversion support, dcde2f853ff4"


@dataclass(frozen=True, slots=True)
class AttributesRequest:
    """KVM_SET_MEMORY_ATTRIBUTES: start (the kernel's address) and size in bytes."""

    vm: Vm
    start: int
    size: int
    attributes: int
    flags: int

    @property
    def supported(self) -> int:
        """The attributes that the frames of the VM can have."""
        return KVM_MEMORY_ATTRIBUTE_PRIVATE if self.vm.has_private_mem and not self.vm.in_place else 0


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd: start (the kernel's offset) and size in bytes."""

    gmem: GuestMemfd
    start: int
    size: int
    attributes: int
    flags: int
    reserved: Sequence[int]
    supported: int = KVM_MEMORY_ATTRIBUTE_PRIVATE

    @property
    def vm(self) -> Vm:
        """The VM that the file belongs to."""
        return self.gmem.vm


def _argument_checks(source: str) -> tuple[Check[Any], Check[Any], Check[Any]]:
    """What both ioctls ask of attributes and range."""
    return (
        Check(
            "attributes-supported",
            errno.EINVAL,
            "only attributes that are supported may be set",
            source,
            lambda r: r.attributes & ~r.supported == 0,
            lambda r: f"attributes={r.attributes:#x} supported={r.supported:#x}",
            "private memory needs a VM type that has it; KVM_CAP_MEMORY_ATTRIBUTES on the VM tells",
        ),
        Check(
            "range-not-empty",
            errno.EINVAL,
            "size must not be 0 and the range must end below 2**64",
            source,
            lambda r: r.size != 0 and r.start + r.size < U64,
            lambda r: f"start={r.start:#x} size={r.size:#x}",
        ),
        Check(
            "range-page-aligned",
            errno.EINVAL,
            "start and size must be multiples of the page size",
            source,
            lambda r: not (r.start | r.size) & (r.vm.page_size - 1),
            lambda r: f"start={r.start:#x} size={r.size:#x} page={r.vm.page_size:#x}",
        ),
    )


ARGUMENT_CHECKS: tuple[Check[AttributesRequest], ...] = (flags_zero(_SOURCE), *_argument_checks(_SOURCE))
CHECKS: tuple[Check[AttributesRequest], ...] = (
    Check(
        "kernel-has-attributes",
        errno.ENOTTY,
        "the kernel is built with attributes of VMs",
        "kvm_vm_ioctl (CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES; from 7.4 on CONFIG_KVM_VM_MEMORY_ATTRIBUTES)",
        lambda r: r.vm.has_attributes,
        lambda r: f"VM types offered: {', '.join(map(str, r.vm.machine.vm_types))}",
        "use a kernel with KVM_SW_PROTECTED_VM; where attributes belong to files, the ioctl of the file",
    ),
    *ARGUMENT_CHECKS,
)

CONVERSION_CHECKS: tuple[Check[ConversionRequest], ...] = (
    flags_zero(_QUEUED),
    Check(
        "reserved-zero",
        errno.EINVAL,
        "the reserved words must be 0",
        _QUEUED,
        lambda r: not any(r.reserved),
        lambda r: f"reserved={[*r.reserved]}",
    ),
    Check(
        "vm-has-private-memory",
        errno.EINVAL,
        "the VM of the file must have private memory",
        _QUEUED,
        lambda r: r.vm.has_private_mem,
        lambda r: f"VM type {r.vm.type}",
        "create the VM with a type that has private memory",
    ),
    *_argument_checks(_QUEUED),
    Check(
        "range-in-file",
        errno.EINVAL,
        "the range must lie inside the file",
        _QUEUED,
        lambda r: r.start + r.size <= r.gmem.size,
        lambda r: f"[{r.start:#x}, {r.start + r.size:#x}) file size {r.gmem.size:#x}",
    ),
)

NO_PAGE_HELD: Check[tuple[int, int, int | None]] = Check(
    "no-page-held",
    errno.EAGAIN,
    "nothing but the file may hold a page that becomes private",
    _REFERENCES,
    lambda asked: asked[2] is None,
    lambda asked: f"file indexes [{asked[0]:#x}, {asked[1]:#x}), the first one held: {asked[2]}",
    "let the device or pipe drop the page at error_offset, and try again",
)


def set_attributes(request: AttributesRequest) -> None:
    """Check the request, then set the attributes of its range (kvm_vm_set_mem_attributes).

    A range that has them already is left alone, mappings included. Otherwise every mapping of the whole range goes,
    also of frames that keep their value.
    """
    require(CHECKS, request)
    vm = request.vm
    start, end = request.start >> vm.page_shift, (request.start + request.size) >> vm.page_shift
    if not _has(vm.attributes, start, end, request.attributes):
        vm.invalidate(start, end)
        give(vm.attributes, start, end, request.attributes)


def convert(request: ConversionRequest) -> ConversionResult:
    """Check the request, then make pages of the file private or shared. Their contents stay.

    Guests lose their mappings of what changes. To private, the host's mappings go first, and stay gone if a page is
    held: then the result has where, with EAGAIN. A file of base pages converts all of the range or nothing; one of huge
    pages goes block by block, and what came before the block that failed stays converted.
    """
    require(CONVERSION_CHECKS, request)
    gmem, shift = request.gmem, request.vm.page_shift
    start, end = request.start >> shift, (request.start + request.size) >> shift
    if _has(gmem.attributes, start, end, request.attributes):
        return ConversionResult()
    if not request.attributes:
        _make_shared(gmem, start, end)
        return ConversionResult()
    block = 1 << gmem.cache.page_order if gmem.cache.page_order else end
    while start < end:
        stop = min(align_down(start, block) + block, end)
        if (refused := _make_private(gmem, start, stop, request.attributes)) is not None:
            return refused
        start = stop
    return ConversionResult()


def _make_private(gmem: GuestMemfd, start: int, end: int, attributes: int) -> ConversionResult | None:
    """Convert a range that is in one huge page of the file, or refuse it; a page that is all private is whole again."""
    gmem.unmap_from_host(start, end)
    held = gmem.cache.first_held(start, end)
    try:
        require((NO_PAGE_HELD,), (start, end, held))
    except KvmError as refused:
        return ConversionResult(None if held is None else held << gmem.vm.page_shift, refused)
    for first, last in list(gmem.attributes.gaps(start, end)):
        gmem.invalidate(first, last)
    gmem.attributes.set(start, end, attributes)
    first, last = _whole_pages(gmem, start, end)
    if gmem.attributes.covers(first, last, attributes) and not gmem.cache.poisoned.overlaps(first, last):
        gmem.cache.merge(first, last)
    return None


def _make_shared(gmem: GuestMemfd, start: int, end: int) -> None:
    """Guests lose every mapping of the huge pages that change, and these are split: shared pages are base pages."""
    for first, last, _ in list(gmem.attributes.runs(start, end)):
        gmem.invalidate(*_whole_pages(gmem, first, last))
        gmem.cache.split(first, last)
    gmem.attributes.clear(start, end)


def _whole_pages(gmem: GuestMemfd, start: int, end: int) -> tuple[int, int]:
    """The range widened to whole pages of the file (HugeTLB work in progress, 07fb82367304)."""
    size = 1 << gmem.cache.page_order
    return align_down(start, size), align_up(end, size)


def _has(attributes: RunMap[int], start: int, end: int, value: int) -> bool:
    return attributes.covers(start, end, value) if value else not attributes.overlaps(start, end)


def give(attributes: RunMap[int], start: int, end: int, value: int) -> None:
    """Set the value of [start, end); 0 is none."""
    if value:
        attributes.set(start, end, value)
    else:
        attributes.clear(start, end)
