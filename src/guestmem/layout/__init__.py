"""What a VMM asked KVM for, which pages it will get, what is lost and why, and what to change."""

from guestmem.layout.coverage import Coverage, HostLimits, SlotCoverage, best_possible, cover
from guestmem.layout.error import LayoutError
from guestmem.layout.reasons import Reason
from guestmem.layout.value import Assumption, Backing, File, Layout, Range, Slot

__all__ = (
    "Assumption",
    "Backing",
    "Coverage",
    "File",
    "HostLimits",
    "Layout",
    "LayoutError",
    "Range",
    "Reason",
    "Slot",
    "SlotCoverage",
    "best_possible",
    "cover",
)
