"""The rules of December 2022 to April 2023, for restrictedmem, from its tenth version on.

In the order of the mails; unless said otherwise these are replies to "[PATCH v10 9/9] KVM: Enable and expose
KVM_MEM_PRIVATE". The last one, CreationFlags, is where the discussion ended.
"""

from __future__ import annotations

from guestmem.rules.rule import AlignedOffset, Binding, Rule, alignment_of, congruent
from guestmem.units import align_up, format_size

__all__ = (
    "CreationFlags",
    "CurrentBacking",
    "FitsSize",
    "GpaAlignment",
    "GpaAlignmentByHighestBit",
    "GpaPage",
    "JanuaryAsWritten",
    "LargestBackingOrSize",
    "NoRule",
    "OrMetadata",
    "SizeAndGpa",
    "SlotMetadata",
)


class NoRule(Rule):
    """No rule at all, which is what the discussion started from: every slot is accepted, nothing limits a mapping."""

    __slots__ = ()
    name = "none"
    author = "Sean Christopherson"
    date = "2023-01-14"
    message_id = "Y8HwvTik/2avrCOU@google.com"
    statement = "every offset is accepted and every folio is mapped whole"
    verdict = "the state of things that the discussion started from: a place in the region ioctl, marked to do"


class OrMetadata(Rule):
    """Accept every slot, and forbid the levels at which the GPA and ``hva | offset`` differ."""

    __slots__ = ()
    name = "or-metadata"
    author = "Chao Peng"
    date = "2022-12-02"
    message_id = "20221202061347.1070246-8-chao.p.peng@linux.intel.com"
    source = "[PATCH v10 7/9] KVM: Update lpage info when private/shared memory are mixed"
    statement = (
        "every offset is accepted; a level is forbidden where the GPA and the OR of hva and offset differ modulo it"
    )
    verdict = "lets an offset pass whose bits the GPA has too; dropped for a check in the region ioctl"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size
        both = (binding.gpa if binding.userspace_addr is None else binding.userspace_addr) | binding.offset
        return max(o for o in binding.geometry.orders if o <= order and congruent(binding.gpa, both, page(o)))


class JanuaryAsWritten(Rule):
    """The first wording, taken literally."""

    __slots__ = ()
    name = "january-as-written"
    author = "Sean Christopherson"
    date = "2023-01-13"
    message_id = "Y8HldeHBrw+OOZVm@google.com"
    source = "reply to [PATCH v10 7/9] KVM: Update lpage info when private/shared memory are mixed"
    statement = "a slot whose frame is less aligned than its offset is refused"
    verdict = "its author later thought that he had inverted the direction"

    def refuses(self, binding: Binding) -> str | None:
        if alignment_of(binding.gpa) >= alignment_of(binding.offset):
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
    verdict = "too strict: the memory above 4G of a QEMU guest, at offset 2G, is refused"

    def refuses(self, binding: Binding) -> str | None:
        if binding.offset == 0 or (binding.gpa and alignment_of(binding.offset) >= alignment_of(binding.gpa)):
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
    verdict = (
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
    verdict = "a slip: it compares magnitudes; Xiaoyao Li asked for ffs64() and <=, which is January's direction again"

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
    verdict = "not taken up then; posted for 1G pages in May 2025 (A. Tng, RFC v2 31/51); the default"

    def fault_order(self, binding: Binding, offset: int, order: int) -> int:
        page = binding.geometry.page_size
        return max(o for o in binding.geometry.orders if o <= order and congruent(binding.gpa, binding.offset, page(o)))


class FitsSize(AlignedOffset):
    """Aligned to the largest page that the slot's size allows."""

    __slots__ = ()
    name = "fits-size"
    author = "Sean Christopherson"
    date = "2023-04-14"
    message_id = "ZDnAuGKrCO2wgjlG@google.com"
    statement = "the offset must be a multiple of the largest page size that fits the slot's size"
    verdict = "the accepted direction for eleven days, until 512G pages were thought of"

    def alignment(self, binding: Binding) -> int:
        return binding.geometry.largest_fitting(binding.size)


class SizeAndGpa(AlignedOffset):
    """Aligned to the largest page that the slot can really hold, given where it lies in guest-physical space."""

    __slots__ = ()
    name = "size-and-gpa"
    author = "Sean Christopherson"
    date = "2023-04-14"
    message_id = "ZDnAuGKrCO2wgjlG@google.com"
    statement = "the offset must be a multiple of the largest page size of which the slot holds an aligned one"
    verdict = "thought not worth the effort for want of a use"

    def alignment(self, binding: Binding) -> int:
        end = binding.gpa + binding.size
        whole = (page for page in binding.geometry.page_sizes if align_up(binding.gpa, page) + page <= end)
        return max(whole, default=binding.geometry.base_page_size)


class LargestBackingOrSize(AlignedOffset):
    """Aligned to the smaller of: the largest page any backing can have, the largest page that fits the size."""

    __slots__ = ()
    name = "largest-backing-or-size"
    author = "Ackerley Tng"
    date = "2023-04-18"
    message_id = "diqz354w92x3.fsf@ackerleytng-cloudtop.c.googlers.com"
    statement = "rounding the offset down to min(largest page of all backings, largest that fits the size) must keep it"
    verdict = "the general form; its author reduced it to fits-size"

    def alignment(self, binding: Binding) -> int:
        return min(binding.geometry.page_sizes[-1], binding.geometry.largest_fitting(binding.size))


class CurrentBacking(AlignedOffset):
    """Aligned to the smaller of: the page the backing has now, the largest page that fits the size."""

    __slots__ = ()
    name = "current-backing"
    author = "Ackerley Tng"
    date = "2023-04-18"
    message_id = "diqz354w92x3.fsf@ackerleytng-cloudtop.c.googlers.com"
    statement = "rounding the offset down to min(page of the backing now, largest that fits the size) must keep it"
    verdict = "warned against in the same mail: the backing's page size may grow after the slot was set"

    def alignment(self, binding: Binding) -> int:
        return min(binding.backing_page_size, binding.geometry.largest_fitting(binding.size))


class CreationFlags(AlignedOffset):
    """Aligned to the page size asked for when the file was created. The conclusion of 2023."""

    __slots__ = ()
    name = "creation-flags"
    author = "Sean Christopherson"
    date = "2023-04-25"
    message_id = "ZEhbsHqBapHtdrg7@google.com"
    statement = "the offset must be a multiple of the page size asked for when the file was created"
    verdict = "led to guest_memfd's creation flags; upstream came to refuse no binding at all"

    def alignment(self, binding: Binding) -> int:
        return binding.page_size
