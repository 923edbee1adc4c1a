"""How much one source may make of its bytes: a small file can ask for gigabytes of values.

The limits are far above what VMs have, and together they keep any reader within 1 GiB of address space.
docs/security.md has them as a table.
"""

from __future__ import annotations

from guestmem.layout.error import LayoutError
from guestmem.layout.value import Layout
from guestmem.units import MIB

__all__ = (
    "MAX_BYTES",
    "MAX_DOCUMENT",
    "MAX_KEPT",
    "MAX_LAYOUTS",
    "MAX_NAME",
    "MAX_PLANNED",
    "MAX_RANGES",
    "MAX_ROWS",
    "MAX_SLOTS",
    "MAX_TOML",
    "Budget",
    "within",
)

MAX_BYTES = 128 * MIB  # of any source, unpacked: what is read line by line
MAX_DOCUMENT = 8 * MIB  # of JSON or XML that is one document: decoded as a whole
MAX_TOML = MIB // 2  # its parser keeps about a kilobyte for a table of four bytes
MAX_SLOTS = 1 << 17  # of all layouts of a source; KVM allows a VM 2 * 32,764
MAX_RANGES = 1 << 17  # private ranges of all layouts of a source
MAX_LAYOUTS = 1 << 14
MAX_ROWS = 1 << 20  # slots, and VMs, of a fleet: kept in arrays
MAX_PLANNED = 1 << 13  # slots for which offsets are looked for: some milliseconds each
MAX_KEPT = 1 << 17  # mappings, descriptors and blocks that a log or a capture tells of
MAX_NAME = 4096  # characters of the name of a region, a file or a VM; no path is longer


def within(source: str, count: int, limit: int, what: str, *, line: int = 0) -> None:
    """Refuse a source of more than ``limit`` of something."""
    if count > limit:
        raise LayoutError(source, f"at most {limit:,} {what} are read from one source", line=line, remedy="split it")


class Budget:
    """What a source may still give in layouts, slots and private ranges."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._layouts = self._slots = self._ranges = 0

    def take(self, layout: Layout) -> Layout:
        """The layout, once it is counted."""
        self._layouts += 1
        self._slots += len(layout.slots)
        self._ranges += len(layout.private)
        within(self.source, self._layouts, MAX_LAYOUTS, "layouts")
        within(self.source, self._slots, MAX_SLOTS, "slots")
        within(self.source, self._ranges, MAX_RANGES, "private ranges")
        return layout
