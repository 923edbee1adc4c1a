"""A deliberately naive oracle of coverage: page by page, frame by frame, from docs/kernel-behaviour.md#mapping-levels.

No ranges, no closed form, nothing shared with guestmem.layout but its values: every base page of a slot is asked, for
every level, what would limit a fault on it. Only for layouts of a few hundred pages.
"""

from __future__ import annotations

from guestmem.layout import HostLimits, Layout, Reason, Slot
from guestmem.rules import Binding


def naive_reason(layout: Layout, slot: Slot, host: HostLimits, page: int, size: int) -> Reason | None:
    """Why the base page at ``page`` cannot be mapped with pages of ``size`` bytes or larger, or None."""
    larger = [other for other in host.sizes if other > size]
    if any(_exactly(layout, slot, host, page, other) is None for other in larger):
        return None
    return _exactly(layout, slot, host, page, size)


def _exactly(layout: Layout, slot: Slot, host: HostLimits, page: int, size: int) -> Reason | None:
    base = host.geometry.base_page_size
    private = {p for run in layout.private for p in range(run.start - run.start % base, run.end, base)}
    frame = page - page % size
    pages = range(frame, frame + size, base)
    inside = [slot.gpa <= p < slot.gpa + slot.size for p in pages]
    if not all(inside):
        others = [other for other in layout.slots if other is not slot and not naive_refusal(layout, other, host)]
        if any(other.gpa <= p < other.gpa + other.size for other in others for p in pages):
            return Reason.SHARED_FRAME
        return Reason.HEAD if slot.gpa > frame else Reason.TAIL
    kinds = {p in private for p in pages}
    if len(kinds) > 1:
        return Reason.MIXED
    file = layout.file_of(slot)
    if True in kinds and file is None:
        return Reason.NO_FILE
    if size == base:
        return None
    hva = slot.hva if slot.hva is not None else slot.assumed_hva
    crooked = hva is not None and hva % size != slot.gpa % size
    if file is not None and (True in kinds or (file.mmap and host.files.serve_shared)):
        return _naive_file(slot, host, file.page_size or host.files.page_size, page, size, crooked=crooked)
    if crooked:
        return Reason.HVA
    largest = slot.backing.page_size
    if host.thp and slot.backing.kind in ("anonymous", "shmem", "unknown"):
        largest = max(largest, host.sizes[1])
    if largest < size:
        return Reason.BACKING
    return Reason.DIRTY_LOG if slot.flags & 1 else None


def _naive_file(slot: Slot, host: HostLimits, folio_size: int, page: int, size: int, *, crooked: bool) -> Reason | None:
    if host.files.page_size == 0:
        return Reason.ORDER_0
    if folio_size < size:
        return Reason.BACKING
    offset = slot.offset or 0
    index = page - slot.gpa + offset
    first = index - index % size
    if first < offset or first + size > offset + slot.size:
        return Reason.BINDING
    if offset % size != slot.gpa % size:
        return Reason.OFFSET
    if crooked:
        return Reason.HVA
    binding = Binding(slot.gpa, slot.size, offset, folio_size, folio_size, host.geometry)
    order, wanted = host.geometry.order_of(folio_size), host.geometry.order_of(size)
    # A frame is huge as soon as one fault on any of its pages may map it so.
    pages = range(first, first + size, host.geometry.base_page_size)
    allowed = any(host.files.rule.fault_order(binding, at, order) >= wanted for at in pages)
    return None if allowed else Reason.RULE


def naive_refusal(layout: Layout, slot: Slot, host: HostLimits) -> bool:
    """Whether the alignment rule refuses the slot's binding."""
    file = layout.file_of(slot)
    if file is None or host.files.page_size == 0:
        return False
    page_size = file.page_size or host.files.page_size
    binding = Binding(slot.gpa, slot.size, slot.offset or 0, page_size, page_size, host.geometry)
    return host.files.rule.refuses(binding) is not None
