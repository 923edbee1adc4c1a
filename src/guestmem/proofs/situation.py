"""The unknowns of every question: a slot, the file range it is bound to, the page touched, the folio the backing took.

All bytes, unsigned 64 bits; orders count as the sizes they stand for. They are multiples of the base page, as the
checks demand of every slot (``arithmetic`` asks about those checks for all values). What else a slot must satisfy
before any rule is asked is not written down here again: it is the model's own checks (``request``), run on the
unknowns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import z3

from guestmem.geometry import Geometry
from guestmem.proofs import request
from guestmem.proofs.paths import Explorer
from guestmem.proofs.solver import proven
from guestmem.proofs.symbolic import WIDTH, Formula, OneOf, SymInt, pages
from guestmem.rules import Binding, Rule

__all__ = ("Situation",)

T = TypeVar("T")


@dataclass(frozen=True)
class Situation:
    """The unknowns on one geometry. Two situations of a geometry have the same unknowns."""

    geometry: Geometry
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def gpa(self) -> SymInt:
        """guest_phys_addr."""
        return pages("gpa", self.geometry.base_page_size)

    @cached_property
    def size(self) -> SymInt:
        """memory_size."""
        return pages("size", self.geometry.base_page_size)

    @cached_property
    def offset(self) -> SymInt:
        """guest_memfd_offset."""
        return pages("offset", self.geometry.base_page_size)

    @cached_property
    def file_size(self) -> SymInt:
        """Size of the file."""
        return pages("file_size", self.geometry.base_page_size)

    @cached_property
    def access(self) -> SymInt:
        """File offset of the page touched."""
        return self.offset + self.into

    @cached_property
    def into(self) -> SymInt:
        """How far into the slot the page touched is; so that its frame and its file offset share their sums."""
        return pages("into", self.geometry.base_page_size)

    @cached_property
    def page(self) -> OneOf:
        """Page size asked for when the file was created."""
        return self.leaf("page")

    @cached_property
    def backing(self) -> OneOf:
        """Page size of the backing when the slot is set."""
        return self.leaf("backing")

    @cached_property
    def folio(self) -> OneOf:
        """Order of the folio that the backing took for the page touched; its term is bytes."""
        return self._order("folio", self.geometry.orders)

    @cached_property
    def level(self) -> OneOf:
        """Order of a huge leaf; its term is bytes."""
        return self._order("level", self.huge)

    @property
    def variables(self) -> dict[str, Any]:
        """In the order in which examples are made small."""
        return self.terms("page", "backing", "folio", "size", "offset", "gpa", "access", "file_size")

    @property
    def slot_variables(self) -> dict[str, Any]:
        """Those of a question that touches no page."""
        return self.terms("page", "backing", "size", "offset", "gpa", "file_size")

    def terms(self, *names: str) -> dict[str, Any]:
        """The unknowns of these names, in this order."""
        return {name: getattr(self, name).term for name in names}

    @property
    def binding(self) -> Binding:
        """The slot as a rule sees it."""
        return self.binding_with(self.page, self.backing)

    def binding_with(self, page: OneOf | int, backing: OneOf | int) -> Binding:
        """The slot with another file page size or another backing."""
        unknowns: tuple[Any, ...] = (self.gpa, self.size, self.offset, page, backing, self.geometry)
        return Binding(*unknowns)

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
        in_slot = self.into.term < self.size.term
        in_file = z3.And(
            [
                z3.Implies(
                    self.folio.term == self.size_of(order), self.block(self.size_of(order))[1] <= self.file_size.term
                )
                for order in self.huge
            ]
        )
        return [in_slot, in_file, *self.lemmas]

    @cached_property
    def lemmas(self) -> list[Formula]:
        """Facts about rounding down, proved here and handed on: with them questions about congruence take a fifth.

        For a page at base + into of a range: its block begins inside if and only if it is no further into the block
        than into the range; and likewise at the end.
        """
        found = []
        for start, size in (
            (base.term, self.size_of(order)) for base in (self.gpa, self.offset) for order in self.huge
        ):
            into, at = self.into.term, start + self.into.term
            first, low = at & -size, at & (size - 1)
            found.append((first >= start) == (low <= into))
            found.append((first + size <= start + self.size.term) == (into - low + size <= self.size.term))
        in_slot = self.into.term < self.size.term
        return [lemma for lemma in found if proven([*self.slot_is_valid, in_slot], lemma)]

    @cached_property
    def backing_is_fixed(self) -> list[Formula]:
        """The backing takes pages of the size that was asked for, or smaller ones, now and later."""
        return [self.backing.term == self.page.term, self.folio.term <= self.page.term]

    @property
    def huge(self) -> tuple[int, ...]:
        """The orders of huge leaves."""
        return self.geometry.orders[1:]

    def size_of(self, order: int) -> int:
        """Bytes of a leaf of this order."""
        return self.geometry.page_size(order)

    def block(self, size: int) -> tuple[Any, Any]:
        """Start and end of the aligned block of the file that contains the access."""
        first = self.access.term & -size
        return first, first + size

    def begins_before(self) -> dict[int, Formula]:
        """By huge order: the block begins before the bound range."""
        return {order: self.block(self.size_of(order))[0] < self.offset.term for order in self.huge}

    def leaves(self) -> dict[int, Formula]:
        """By huge order: the block is not wholly in the bound range."""
        return {order: z3.Not(self.inside(self.size_of(order))) for order in self.huge}

    def inside(self, size: int) -> Formula:
        """The block lies in the bound range."""
        first, end = self.block(size)
        return z3.And(first >= self.offset.term, end <= (self.offset + self.size).term)

    def congruent(self, size: int) -> Formula:
        """GPA and offset agree modulo the size."""
        return (self.gpa - self.offset).term & (size - 1) == 0

    def accepts(self, rule: Rule, binding: Binding | None = None) -> Formula:
        """The rule lets the slot be set."""
        if binding is not None:
            return self.holds(lambda: rule.refuses(binding) is None)
        return self.once(("accepts", rule), lambda: self.accepts(rule, self.binding))

    def maps(self, rule: Rule) -> dict[int, Formula]:
        """By huge order: the rule alone lets the folio be mapped by a leaf of exactly this order."""
        unknown: tuple[Any, Any] = (self.access, self.folio)

        def explore() -> dict[int, Formula]:
            paths = list(self.explorer.paths(lambda: int(rule.fault_order(self.binding, *unknown))))
            return {order: z3.Or([path.condition for path in paths if path.result == order]) for order in self.huge}

        return self.once(("maps", rule), explore)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for this key before, or is made now: the same code on the same unknowns is the same formula."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def holds(self, code: Callable[[], object]) -> Formula:
        """The formula of a piece of code about a valid slot and a page of it."""
        return self.explorer.holds(code)

    @cached_property
    def explorer(self) -> Explorer:
        """Runs code about a valid slot and a page of it."""
        return Explorer([*self.slot_is_valid, *self.page_is_touched])

    def leaf(self, name: str) -> OneOf:
        """One more page size of the geometry, unknown."""
        return OneOf(_size(name), self.geometry.page_sizes, self.geometry.page_sizes)

    def _order(self, name: str, orders: tuple[int, ...]) -> OneOf:
        return OneOf(_size(name), orders, tuple(map(self.size_of, orders)))


def _size(name: str) -> Any:
    return z3.ZeroExt(WIDTH - 64, z3.BitVec(name, 64))
