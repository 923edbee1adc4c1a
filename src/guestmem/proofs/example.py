"""Numbers in place of the unknowns: what the plain Python of the rules and the model says of them.

Every counterexample is played back here before anybody sees it; a solver's word alone refutes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guestmem.geometry import Geometry
from guestmem.model.levels import LIMITS, Limit
from guestmem.proofs.limits import fault_on
from guestmem.proofs.verdict import Values
from guestmem.rules import Binding, Rule
from guestmem.units import align_down, format_size

__all__ = ("Example",)


@dataclass(frozen=True, slots=True)
class Example:
    """The unknowns of ``situation`` as numbers. Those that a question did not have are 0 or the base page."""

    geometry: Geometry
    values: Values

    @property
    def gpa(self) -> int:
        """guest_phys_addr."""
        return self.values.get("gpa", 0)

    @property
    def size(self) -> int:
        """memory_size."""
        return self.values.get("size", 0)

    @property
    def offset(self) -> int:
        """guest_memfd_offset."""
        return self.values.get("offset", 0)

    @property
    def file_size(self) -> int:
        """Size of the file."""
        return self.values.get("file_size", 0)

    @property
    def access(self) -> int:
        """File offset of the page touched."""
        return self.values.get("access", self.offset)

    @property
    def into(self) -> int:
        """How far into the slot that is."""
        return self.access - self.offset

    @property
    def page(self) -> int:
        """Page size asked for when the file was created."""
        return self.values.get("page", self.geometry.base_page_size)

    @property
    def backing(self) -> int:
        """Page size of the backing when the slot is set."""
        return self.values.get("backing", self.page)

    @property
    def folio(self) -> int:
        """Order of the folio the backing took."""
        return self.geometry.order_of(self.folio_size)

    @property
    def folio_size(self) -> int:
        """Bytes of that folio."""
        return self.values.get("folio", self.geometry.base_page_size)

    @property
    def binding(self) -> Binding:
        """The slot as a rule sees it."""
        return Binding(self.gpa, self.size, self.offset, self.page, self.backing, self.geometry)

    def accepted(self, rule: Rule, **changed: object) -> bool:
        """The rule lets the slot be set, perhaps with other fields."""
        binding: Binding = replace(self.binding, **changed)  # type: ignore[arg-type]  # fields by name
        return rule.refuses(binding) is None

    def mapped_order(self, rule: Rule) -> int:
        """The order at which the rule alone lets the folio be mapped."""
        return rule.fault_order(self.binding, self.access, self.folio)

    def forbidding(self, rule: Rule, order: int, limits: Sequence[Limit] = LIMITS) -> Limit | None:
        """The first of the model's limits that forbids a leaf of this order."""
        fault = fault_on(self, rule)
        return next((limit for limit in limits if not limit.allows(fault, order)), None)

    def leaves(self, order: int) -> str | None:
        """How the block of the access leaves the bound range, in words; None if it is inside. Plain arithmetic."""
        size = self.geometry.page_size(order)
        first = align_down(self.access, size)
        if first < self.offset:
            return "begins before the bound range"
        return "ends after the bound range" if first + size > self.offset + self.size else None

    def taken(self, order: int) -> str:
        """The access and the page it takes, as a sentence without its end."""
        size = self.geometry.page_size(order)
        return (
            f"for {format_size(size)} pages, a slot of {format_size(self.size)} at offset {self.offset:#x}: the access "
            f"at {self.access:#x} takes the page at file offset {align_down(self.access, size):#x}"
        )
