"""What an alignment rule is: a value with a history, asked when a slot is set and again when a page is mapped.

All sizes, offsets and addresses are bytes, as Python integers that do not wrap: KVM_SET_USER_MEMORY_REGION2 refuses
ranges that wrap before any rule is asked. Pure; the rules themselves are in the modules beside this one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from guestmem.geometry import Geometry
from guestmem.units import U64, align_down, align_up, format_size

__all__ = ("AlignedOffset", "Binding", "Rule", "alignment_of", "congruent")


@dataclass(frozen=True, slots=True)
class Binding:
    """A slot bound, or to be bound, to a range of a file.

    page_size is what was asked for when the file was created; backing_page_size is what the backing takes at the
    moment, which may change later. A userspace_addr of None is one that agrees with the GPA.
    """

    gpa: int
    size: int
    offset: int
    page_size: int
    backing_page_size: int
    geometry: Geometry
    userspace_addr: int | None = None


def congruent(gpa: int, offset: int, page_size: int) -> bool:
    """Whether GPA and offset agree modulo a page size, without which no page of that size can ever be mapped."""
    return (gpa - offset) % page_size == 0


def alignment_of(value: int) -> int:
    """The largest power of two that divides value; 0 is divided by all of them."""
    return value & -value if value else U64


@dataclass(frozen=True, slots=True)
class Rule:
    """One alignment rule; author, date and message_id are of the mail that first had exactly this form.

    verdict is what came of it. A rule of one's own (``guestmem.rules.own``) needs none of them.
    """

    name: ClassVar[str] = "a rule of one's own"
    author: ClassVar[str] = ""
    date: ClassVar[str] = ""
    message_id: ClassVar[str] = ""
    source: ClassVar[str] = "reply to [PATCH v10 9/9] KVM: Enable and expose KVM_MEM_PRIVATE"
    statement: ClassVar[str] = ""
    verdict: ClassVar[str] = ""

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
    for page in (*binding.geometry.page_sizes, alignment_of(gpa)):
        congruent_above = offset + (gpa - offset) % page
        found |= {align_down(offset, page), align_up(offset, page), congruent_above - page, congruent_above}
    return found


class AlignedOffset(Rule):
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
