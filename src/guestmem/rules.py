"""The alignment rules: how the offset of a binding into its file must be aligned, as proposed on the kernel lists.

KVM asks the file for a page by offset; the backing takes the huge page that contains the offset, rounding *down*. If
the binding's offset is not "sanely" aligned, that page may begin before the bound range. Each class here is one answer
to how sane is sane, with who gave it and when. A rule speaks twice:

- ``refuses``, when the slot is set: None to accept, else why not;
- ``fault_order``, when a page is mapped: the largest order that the rule *alone* would allow for a folio.

No rule is trusted to keep a mapping inside the binding; the model checks that itself, so a loose rule loses huge pages
or (``as posted``) would have lost more. Unless said otherwise the mails are replies to "[PATCH v10 9/9] KVM: Enable and
expose KVM_MEM_PRIVATE"; each is found on lore.kernel.org by its message_id. All sizes, offsets and addresses are bytes,
as Python integers that do not wrap: KVM_SET_USER_MEMORY_REGION2 refuses ranges that wrap before any rule is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from guestmem.geometry import Geometry
from guestmem.units import U64, align_down, align_up, format_size

__all__ = (
    "DEFAULT",
    "RULES",
    "Binding",
    "BothMultiples",
    "Congruent",
    "Contained",
    "ContainedAsPosted",
    "CreationFlags",
    "CurrentBacking",
    "FitsSize",
    "GpaAlignment",
    "GpaAlignmentByHighestBit",
    "GpaPage",
    "JanuaryAsWritten",
    "LargestBackingOrSize",
    "Rule",
    "SizeAndGpa",
    "SlotMetadata",
    "Upstream",
    "WholeBinding",
    "congruent",
    "rule_named",
)


@dataclass(frozen=True, slots=True)
class Binding:
    """A slot bound, or to be bound, to a range of a file.

    page_size is what was asked for when the file was created; backing_page_size is what the backing takes at the
    moment, which may change later.
    """

    gpa: int
    size: int
    offset: int
    page_size: int
    backing_page_size: int
    geometry: Geometry


def congruent(gpa: int, offset: int, page_size: int) -> bool:
    """Whether GPA and offset agree modulo a page size, without which no page of that size can ever be mapped."""
    return (gpa - offset) % page_size == 0


def _alignment(value: int) -> int:
    """The largest power of two that divides value; 0 is divided by all of them."""
    return value & -value if value else U64


@dataclass(frozen=True, slots=True)
class Rule:
    """One alignment rule; author, date and message_id are of the mail that first had exactly this form."""

    name: ClassVar[str]
    author: ClassVar[str]
    date: ClassVar[str]
    message_id: ClassVar[str]
    source: ClassVar[str] = "reply to [PATCH v10 9/9] KVM: Enable and expose KVM_MEM_PRIVATE"
    statement: ClassVar[str]
    fate: ClassVar[str]

    def refuses(self, binding: Binding) -> str | None:
        """Why the slot is refused (EINVAL), or None."""
        return None

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        """The largest order the rule alone allows for the folio of ``order`` that contains the file offset."""
        return order

    def nearest_offset(self, binding: Binding) -> int | None:
        """The offset nearest to the binding's that the rule accepts (the lower of two), or None if no offset will do.

        A hint: whether the range is free there, and the file as large, the caller must see.
        """
        accepted = (o for o in _candidates(binding) if o >= 0 and self.refuses(replace(binding, offset=o)) is None)
        return min(accepted, key=lambda offset: (abs(offset - binding.offset), offset), default=None)


def _candidates(binding: Binding) -> set[int]:
    """Offsets among which every rule has its nearest: each demands an alignment, agreement with the GPA, or a bit."""
    gpa, offset, base = binding.gpa, binding.offset, binding.geometry.base_page_size
    found = {0, offset - base, offset + base, 1 << gpa.bit_length() >> 1}
    for page in (*binding.geometry.page_sizes, _alignment(gpa)):
        congruent_above = offset + (gpa - offset) % page
        found |= {align_down(offset, page), align_up(offset, page), congruent_above - page, congruent_above}
    return found


class _AlignedOffset(Rule):
    """Rules of the form: the offset must be a multiple of some page size."""

    __slots__ = ()

    def alignment(self, binding: Binding) -> int:
        """What the offset must be a multiple of, bytes."""
        raise NotImplementedError

    def refuses(self, binding: Binding) -> str | None:
        alignment = self.alignment(binding)
        if binding.offset % alignment == 0:
            return None
        return f"offset {binding.offset:#x} is not a multiple of {alignment:#x} ({format_size(alignment)})"


class Upstream(Rule):
    """Released kernels: any page-aligned offset, and base pages only."""

    __slots__ = ()
    name = "upstream"
    author = "Sean Christopherson"
    date = "2023-10-27"
    message_id = "20231027182217.3615211-17-seanjc@google.com"
    source = "KVM: Add KVM_CREATE_GUEST_MEMFD ioctl() for guest-specific backing memory"
    statement = "any page-aligned offset will do, because every page is mapped by itself"
    fate = "in every release from 6.8 to 7.2"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        return 0


class JanuaryAsWritten(Rule):
    """The first wording, taken literally."""

    __slots__ = ()
    name = "january-as-written"
    author = "Sean Christopherson"
    date = "2023-01-13"
    message_id = "Y8HldeHBrw+OOZVm@google.com"
    source = "reply to [PATCH v10 7/9] KVM: Update lpage info when private/shared memory are mixed"
    statement = "a slot whose frame is less aligned than its offset is refused"
    fate = "its author later thought that he had inverted the direction"

    def refuses(self, binding: Binding) -> str | None:
        if _alignment(binding.gpa) >= _alignment(binding.offset):
            return None
        return f"gpa {binding.gpa:#x} is less aligned than offset {binding.offset:#x}"


class GpaAlignment(Rule):
    """The first wording as it was understood and coded: the offset at least as aligned as the GPA."""

    __slots__ = ()
    name = "gpa-alignment"
    author = "Chao Peng"
    date = "2023-01-28"
    message_id = "20230128140030.GB700688@chaop.bj.intel.com"
    statement = "the offset must be at least as aligned as the GPA; offset 0 is always good"
    fate = "too strict: the memory above 4G of a QEMU guest, at offset 2G, is refused"

    def refuses(self, binding: Binding) -> str | None:
        if binding.offset == 0 or (binding.gpa and _alignment(binding.offset) >= _alignment(binding.gpa)):
            return None
        return f"offset {binding.offset:#x} is less aligned than gpa {binding.gpa:#x}"


class GpaPage(Rule):
    """The same, capped: no alignment beyond the largest page at which the GPA can be mapped is asked for."""

    __slots__ = ()
    name = "gpa-page"
    author = "Isaku Yamahata"
    date = "2023-03-22"
    message_id = "20230323004131.GA214881@ls.amr.corp.intel.com"
    source = "[PATCH] KVM: Relax alignment check for restricted mem, in a reply to [PATCH v10 9/9]"
    statement = "the offset must be a multiple of the largest page size that divides the GPA; offset 0 is always good"
    fate = (
        "takes QEMU's memory above 4G; put off as x86-specific until a real use was shown, then overtaken by fits-size"
    )

    def refuses(self, binding: Binding) -> str | None:
        if binding.offset == 0:
            return None
        if binding.gpa == 0:  # the patch kept this line of the check it relaxed
            return f"offset {binding.offset:#x} is not 0, but gpa is"
        page = max(page for page in binding.geometry.page_sizes if binding.gpa % page == 0)
        if binding.offset % page == 0:
            return None
        size = format_size(page)
        return f"offset {binding.offset:#x} is not a multiple of {page:#x} ({size}), as gpa {binding.gpa:#x} is"


class GpaAlignmentByHighestBit(Rule):
    """The same with fls64() for count_trailing_zeros(): it compares the highest bits, not the lowest. A specimen."""

    __slots__ = ()
    name = "gpa-alignment-fls64"
    author = "Chao Peng"
    date = "2023-03-24"
    message_id = "20230324021029.GA2774613@chaop.bj.intel.com"
    statement = "the highest bit of the offset must not be below the highest bit of the GPA; offset 0 is always good"
    fate = "a slip: it compares magnitudes; Xiaoyao Li asked for ffs64() and <=, which is January's direction again"

    def refuses(self, binding: Binding) -> str | None:
        if binding.offset == 0 or (binding.gpa and binding.offset.bit_length() >= binding.gpa.bit_length()):
            return None
        return f"highest bit of offset {binding.offset:#x} is below that of gpa {binding.gpa:#x}"


class SlotMetadata(Rule):
    """Accept every slot, and forbid the levels at which GPA and offset differ."""

    __slots__ = ()
    name = "slot-metadata"
    author = "Chao Peng"
    date = "2023-03-28"
    message_id = "20230328104108.GB2909606@chaop.bj.intel.com"
    statement = "every offset is accepted; a level is forbidden to the whole slot where GPA and offset differ modulo it"
    fate = "v10 7/9 had a first form; not taken up then; back in May 2025 for 1G pages, RFC v2 31/51 (Ackerley Tng)"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size
        return max(o for o in binding.geometry.orders if o <= order and congruent(binding.gpa, binding.offset, page(o)))


class FitsSize(_AlignedOffset):
    """Aligned to the largest page that the slot's size allows."""

    __slots__ = ()
    name = "fits-size"
    author = "Sean Christopherson"
    date = "2023-04-14"
    message_id = "ZDnAuGKrCO2wgjlG@google.com"
    statement = "the offset must be a multiple of the largest page size that fits the slot's size"
    fate = "the accepted direction for eleven days, until 512G pages were thought of"

    def alignment(self, binding: Binding) -> int:
        return binding.geometry.largest_fitting(binding.size)


class SizeAndGpa(_AlignedOffset):
    """Aligned to the largest page that the slot can really hold, given where it lies in guest-physical space."""

    __slots__ = ()
    name = "size-and-gpa"
    author = "Sean Christopherson"
    date = "2023-04-14"
    message_id = "ZDnAuGKrCO2wgjlG@google.com"
    statement = "the offset must be a multiple of the largest page size of which the slot holds an aligned one"
    fate = "thought not worth the effort for want of a use"

    def alignment(self, binding: Binding) -> int:
        end = binding.gpa + binding.size
        whole = (page for page in binding.geometry.page_sizes if align_up(binding.gpa, page) + page <= end)
        return max(whole, default=binding.geometry.base_page_size)


class LargestBackingOrSize(_AlignedOffset):
    """Aligned to the smaller of: the largest page any backing can have, the largest page that fits the size."""

    __slots__ = ()
    name = "largest-backing-or-size"
    author = "Ackerley Tng"
    date = "2023-04-18"
    message_id = "diqz354w92x3.fsf@ackerleytng-cloudtop.c.googlers.com"
    statement = "rounding the offset down to min(largest page of all backings, largest that fits the size) must keep it"
    fate = "the general form; its author reduced it to fits-size"

    def alignment(self, binding: Binding) -> int:
        return min(binding.geometry.page_sizes[-1], binding.geometry.largest_fitting(binding.size))


class CurrentBacking(_AlignedOffset):
    """Aligned to the smaller of: the page the backing has now, the largest page that fits the size."""

    __slots__ = ()
    name = "current-backing"
    author = "Ackerley Tng"
    date = "2023-04-18"
    message_id = "diqz354w92x3.fsf@ackerleytng-cloudtop.c.googlers.com"
    statement = "rounding the offset down to min(page of the backing now, largest that fits the size) must keep it"
    fate = "warned against in the same mail: the backing's page size may grow after the slot was set"

    def alignment(self, binding: Binding) -> int:
        return min(binding.backing_page_size, binding.geometry.largest_fitting(binding.size))


class CreationFlags(_AlignedOffset):
    """Aligned to the page size asked for when the file was created. The conclusion, and the default."""

    __slots__ = ()
    name = "creation-flags"
    author = "Sean Christopherson"
    date = "2023-04-25"
    message_id = "ZEhbsHqBapHtdrg7@google.com"
    statement = "the offset must be a multiple of the page size asked for when the file was created"
    fate = "led to guest_memfd's creation flags; what profile next checks unless told otherwise"

    def alignment(self, binding: Binding) -> int:
        return binding.page_size


class BothMultiples(Rule):
    """Offset and size multiples of the huge page, if the file may have huge pages at all."""

    __slots__ = ()
    name = "both-multiples-of-2M"
    author = "Sean Christopherson"
    date = "2023-07-18"
    message_id = "20230718234512.1690985-14-seanjc@google.com"
    source = "[RFC PATCH v11 13/29] KVM: Add transparent hugepage support for dedicated guest memory"
    statement = "offset and size of the slot must be multiples of the PMD page (2M on x86) if the file allows it"
    fate = "given up: one file for all guest memory must be able to skip the VGA hole"

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
    fate = "relaxed in v13: QEMU's slot at 1M is not aligned, so the bulk of a guest's memory got no huge page"

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
    fate = "lost its rounding down in review; a later SNP tree has it again"

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
    fate = "in v13 17/35, and quoted as late as May 2025; errs at both ends of a binding; dropped before the merge"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size(order)
        first = align_up(offset, page)
        inside = align_up(binding.offset, page) <= first and first + page <= binding.offset + binding.size
        return order if inside else 0


class Congruent(Rule):
    """GPA and offset agree modulo the file's page size: the weakest demand under which huge pages can be mapped."""

    __slots__ = ()
    name = "congruent"
    author = "Vishal Annapurve"
    date = "2025-04-24"
    message_id = "CAGtprH-Ana5A2hz_D+CQ0NYRVxfpR6e0Sojssym-UtUnYpOPqg@mail.gmail.com"
    source = "reply to [RFC PATCH 39/39] KVM: guest_memfd: Dynamically split/reconstruct HugeTLB page"
    statement = "GPA and offset must agree modulo the page size of the file"
    fate = "too strict: with 1G pages and 2.5G below 4G the memory above is refused; slot-metadata was taken up instead"

    def refuses(self, binding: Binding) -> str | None:
        if congruent(binding.gpa, binding.offset, binding.page_size):
            return None
        size = format_size(binding.page_size)
        return f"gpa {binding.gpa:#x} and offset {binding.offset:#x} differ modulo {binding.page_size:#x} ({size})"


RULES: tuple[Rule, ...] = (
    JanuaryAsWritten(),
    GpaAlignment(),
    GpaPage(),
    GpaAlignmentByHighestBit(),
    SlotMetadata(),
    FitsSize(),
    SizeAndGpa(),
    LargestBackingOrSize(),
    CurrentBacking(),
    CreationFlags(),
    BothMultiples(),
    WholeBinding(),
    Contained(),
    ContainedAsPosted(),
    Upstream(),
    Congruent(),
)
DEFAULT: Rule = CreationFlags()


def rule_named(name: str) -> Rule:
    """Find a rule by name; ValueError lists the names."""
    for rule in RULES:
        if rule.name == name:
            return rule
    raise ValueError(f"no rule {name!r}; there are {', '.join(rule.name for rule in RULES)}")
