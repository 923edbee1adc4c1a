"""The rules since guest_memfd: hugepages in RFC v11 to v13 (2023, dropped before the merge), upstream, 1G pages (2025).

Each class names its mail or patch.
"""

from __future__ import annotations

from guestmem.rules.rule import Binding, Rule, congruent
from guestmem.units import align_down, align_up, format_size

__all__ = ("BothMultiples", "Congruent", "Contained", "ContainedAsPosted", "Upstream", "WholeBinding")


class BothMultiples(Rule):
    """Offset and size multiples of the huge page, if the file may have huge pages at all."""

    __slots__ = ()
    name = "both-multiples-of-2M"
    author = "Sean Christopherson"
    date = "2023-07-18"
    message_id = "20230718234512.1690985-14-seanjc@google.com"
    source = "[RFC PATCH v11 13/29] KVM: Add transparent hugepage support for dedicated guest memory"
    statement = "offset and size of the slot must be multiples of the PMD page (2M on x86) if the file allows it"
    verdict = "given up: one file for all guest memory must be able to skip the VGA hole"

    def refuses(self, binding: Binding) -> str | None:
        geometry = binding.geometry
        if binding.page_size == geometry.base_page_size:
            return None
        page = geometry.page_sizes[1]
        for what, value in (("offset", binding.offset), ("size", binding.size)):
            if value % page:
                return f"{what} {value:#x} is not a multiple of {page:#x} ({format_size(page)})"
        return None


class WholeBinding(Rule):
    """A folio counts only if the whole binding is aligned to it."""

    __slots__ = ()
    name = "whole-binding"
    author = "Sean Christopherson"
    date = "2023-09-21"
    message_id = "20230921203331.3746712-7-seanjc@google.com"
    source = "[PATCH 06/13] KVM: Disallow hugepages for incompatible gmem bindings, but let 'em succeed"
    statement = "a folio is mapped whole only if offset and size of the binding are multiples of it, else page by page"
    verdict = "relaxed in v13: QEMU's slot at 1M is not aligned, so the bulk of a guest's memory got no huge page"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size(order)
        return 0 if binding.offset % page or binding.size % page else order


class Contained(Rule):
    """A folio counts only if it lies wholly in the binding, as was meant."""

    __slots__ = ()
    name = "contained"
    author = "Michael Roth"
    date = "2023-09-22"
    message_id = "20230922224210.6klwbphnsk5j2wft@amd.com"
    source = "reply to [PATCH 06/13] KVM: Disallow hugepages for incompatible gmem bindings, but let 'em succeed"
    statement = "a folio is mapped whole only if it is fully contained in the binding, else page by page"
    verdict = "lost its rounding down in review; a later SNP tree has it again"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size(order)
        first = align_down(offset, page)
        return order if binding.offset <= first and first + page <= binding.offset + binding.size else 0


class ContainedAsPosted(Rule):
    """The same as it was posted: rounding up where down was meant. A specimen."""

    __slots__ = ()
    name = "contained-as-posted"
    author = "Michael Roth"
    date = "2023-10-02"
    message_id = "20231002133342.195882-1-michael.roth@amd.com"
    source = "[PATCH gmem] KVM: Relax guest_memfd restrictions on hugepages"
    statement = "as contained, but page and start of the binding are rounded up"
    verdict = "in v13 17/35, and quoted as late as May 2025; errs at both ends of a binding; dropped before the merge"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size(order)
        first = align_up(offset, page)
        inside = align_up(binding.offset, page) <= first and first + page <= binding.offset + binding.size
        return order if inside else 0


class Upstream(Rule):
    """Released kernels: any page-aligned offset, and base pages only."""

    __slots__ = ()
    name = "upstream"
    author = "Sean Christopherson"
    date = "2023-10-27"
    message_id = "20231027182217.3615211-17-seanjc@google.com"
    source = "KVM: Add KVM_CREATE_GUEST_MEMFD ioctl() for guest-specific backing memory"
    statement = "any page-aligned offset will do, because every page is mapped by itself"
    verdict = "in every release from 6.8 to 7.2"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        return 0


class Congruent(Rule):
    """GPA and offset agree modulo the file's page size: the weakest demand under which huge pages can be mapped."""

    __slots__ = ()
    name = "congruent"
    author = "Vishal Annapurve"
    date = "2025-04-24"
    message_id = "CAGtprH-Ana5A2hz_D+CQ0NYRVxfpR6e0Sojssym-UtUnYpOPqg@mail.gmail.com"
    source = "reply to [RFC PATCH 39/39] KVM: guest_memfd: Dynamically split/reconstruct HugeTLB page"
    statement = "GPA and offset must agree modulo the page size of the file"
    verdict = (
        "too strict: with 1G pages and 2.5G below 4G the memory above is refused; slot-metadata was taken up instead"
    )

    def refuses(self, binding: Binding) -> str | None:
        if congruent(binding.gpa, binding.offset, binding.page_size):
            return None
        size = format_size(binding.page_size)
        return f"gpa {binding.gpa:#x} and offset {binding.offset:#x} differ modulo {binding.page_size:#x} ({size})"
