"""The unknowns of every question: a slot, the file range it is bound to, the page touched, the folio the backing took.

All bytes, unsigned 64 bits, except ``folio``, an order. What a slot must satisfy before any rule is asked is not
written down here again: it is the model's own checks (``request``), run on the unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import z3

from guestmem.geometry import Geometry
from guestmem.proofs import request
from guestmem.proofs.paths import Explorer
from guestmem.proofs.symbolic import WIDTH, Choice, Formula, SymInt, u64
from guestmem.rules import Binding, Rule

__all__ = ("Situation",)


@dataclass(frozen=True)
class Situation:
    """The unknowns on one geometry. Two situations of a geometry have the same unknowns."""

    geometry: Geometry

    @cached_property
    def gpa(self) -> SymInt:
        """guest_phys_addr."""
        return u64("gpa")

    @cached_property
    def size(self) -> SymInt:
        """memory_size."""
        return u64("size")

    @cached_property
    def offset(self) -> SymInt:
        """guest_memfd_offset."""
        return u64("offset")

    @cached_property
    def file_size(self) -> SymInt:
        """Size of the file."""
        return u64("file_size")

    @cached_property
    def access(self) -> SymInt:
        """File offset of the page touched."""
        return u64("access")

    @cached_property
    def page(self) -> Choice:
        """Page size asked for when the file was created."""
        return self.leaf("page")

    @cached_property
    def backing(self) -> Choice:
        """Page size of the backing when the slot is set."""
        return self.leaf("backing")

    @cached_property
    def folio(self) -> Choice:
        """Order of the folio that the backing took for the page touched."""
        return Choice(_small("folio"), self.geometry.orders)

    @cached_property
    def level(self) -> Choice:
        """Order of a huge leaf."""
        return Choice(_small("level"), self.huge)

    @property
    def variables(self) -> dict[str, Any]:
        """In the order in which examples are made small."""
        names = ("page", "backing", "folio", "size", "offset", "gpa", "access", "file_size")
        return {name: getattr(self, name).term for name in names}

    @property
    def binding(self) -> Binding:
        """The slot as a rule sees it."""
        return self.binding_with(self.page, self.backing)

    def binding_with(self, page: Choice | int, backing: Choice | int) -> Binding:
        """The slot with another file page size or another backing."""
        unknowns: tuple[Any, ...] = (self.gpa, self.size, self.offset, page, backing)
        return Binding(*unknowns, geometry=self.geometry)

    @cached_property
    def domains(self) -> list[Formula]:
        """Choices are among their values."""
        return [choice.domain for choice in (self.page, self.backing, self.folio, self.level)]

    @cached_property
    def slot_is_valid(self) -> list[Formula]:
        """The model's checks of a new slot pass: KVM_SET_USER_MEMORY_REGION2's and those of the file's creation."""
        explorer = Explorer(self.domains)
        passes = request.formulas(explorer, self.gpa, self.size, self.offset, self.file_size, self.page, self.geometry)
        return [*self.domains, *passes]

    @cached_property
    def page_is_touched(self) -> list[Formula]:
        """The access is to a base page of the bound range, and the folio the backing took for it is in the file."""
        access, base = self.access, self.geometry.base_page_size
        first, end = self.block(self.folio_size)
        return [
            (access % base).term == 0,
            access.term >= self.offset.term,
            access.term < (self.offset + self.size).term,
            z3.Or(self.folio.term == 0, end <= self.file_size.term),
            first >= 0,
        ]

    @cached_property
    def backing_is_fixed(self) -> list[Formula]:
        """The backing takes pages of the size that was asked for, or smaller ones, now and later."""
        return [self.backing.term == self.page.term, self.folio_size <= self.page.term]

    @cached_property
    def folio_size(self) -> Any:
        """Bytes of the folio."""
        return self.bytes_of(self.folio)

    @property
    def huge(self) -> tuple[int, ...]:
        """The orders of huge leaves."""
        return self.geometry.orders[1:]

    def size_of(self, order: int) -> int:
        """Bytes of a leaf of this order."""
        return self.geometry.page_size(order)

    def bytes_of(self, order: Choice) -> Any:
        """The page size of an order, as a term."""
        return z3.BitVecVal(self.geometry.base_page_size, WIDTH) << order.term

    def block(self, size: Any) -> tuple[Any, Any]:
        """Start and end of the aligned block of the file that contains the access."""
        first = self.access.term & -size
        return first, first + size

    def inside(self, size: Any) -> Formula:
        """The block lies in the bound range."""
        first, end = self.block(size)
        return z3.And(first >= self.offset.term, end <= (self.offset + self.size).term)

    def congruent(self, size: Any) -> Formula:
        """GPA and offset agree modulo the size."""
        return (self.gpa - self.offset).term & (size - 1) == 0

    def accepts(self, rule: Rule, binding: Binding | None = None) -> Formula:
        """The rule lets the slot be set."""
        asked = self.binding if binding is None else binding
        return self.holds(lambda: rule.refuses(asked) is None)

    def maps(self, rule: Rule, binding: Binding | None = None) -> dict[int, Formula]:
        """By huge order: the rule alone lets the folio be mapped by a leaf of exactly this order."""
        asked = self.binding if binding is None else binding
        access: Any = self.access
        folio: Any = self.folio
        paths = list(self.explorer.paths(lambda: int(rule.fault_order(asked, access, folio))))
        return {
            order: z3.Or([path.condition for path in paths if path.result == order])
            for order in self.huge
        }

    def holds(self, code: Callable[[], object]) -> Formula:
        """The formula of a piece of code about a valid slot and a page of it."""
        return self.explorer.holds(code)

    @cached_property
    def explorer(self) -> Explorer:
        """Runs code about a valid slot and a page of it."""
        return Explorer([*self.slot_is_valid, *self.page_is_touched])

    def leaf(self, name: str) -> Choice:
        """One more page size of the geometry, unknown."""
        return Choice(z3.ZeroExt(WIDTH - 64, z3.BitVec(name, 64)), self.geometry.page_sizes)


def _small(name: str) -> Any:
    return z3.ZeroExt(WIDTH - 8, z3.BitVec(name, 8))
