"""Why a byte cannot be mapped at a level: the vocabulary of every report.

A byte that several limits touch is counted under the first of this order: first the shape of guest-physical space,
then what the guest converts, then what another address or offset would change, then what a switch would. So the
bytes under a reason are those that removing only the *later* reasons does not bring back.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ("RANK", "Reason")


class Reason(StrEnum):
    """The limit that a byte meets first; ``text`` says it for people."""

    REFUSED = "refused"
    SHARED_FRAME = "shared_frame"
    HEAD = "head"
    TAIL = "tail"
    MIXED = "mixed"
    NO_FILE = "no_file"
    ORDER_0 = "order_0"
    HVA = "hva"
    BACKING = "backing"
    BINDING = "binding"
    OFFSET = "offset"
    RULE = "rule"
    DIRTY_LOG = "dirty_log"

    @property
    def text(self) -> str:
        """One line for people."""
        return _TEXTS[self]


_TEXTS = {
    Reason.REFUSED: "KVM refuses the slot",
    Reason.SHARED_FRAME: "two slots share the huge frame",
    Reason.HEAD: "head: the slot starts inside the frame",
    Reason.TAIL: "tail: the slot ends inside the frame",
    Reason.MIXED: "private and shared pages are in one frame",
    Reason.NO_FILE: "private, but the slot has no guest_memfd",
    Reason.ORDER_0: "guest_memfd hands out single pages in this kernel",
    Reason.HVA: "GPA and HVA differ modulo the page size",
    Reason.BACKING: "the pages of the host memory are too small",
    Reason.BINDING: "the file's huge page extends past the bound range",
    Reason.OFFSET: "GPA and file offset differ modulo the page size",
    Reason.RULE: "the alignment rule forbids it",
    Reason.DIRTY_LOG: "dirty logging is on",
}

RANK = {reason: rank for rank, reason in enumerate(Reason)}  # the order in which reasons are listed
