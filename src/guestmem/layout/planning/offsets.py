"""Which file offsets serve a slot best: the classes of offsets at which it is accepted and costs the fewest leaves.

Under every rule but four, whether a binding is accepted and what it can map depends on the offset modulo the largest
page size only. So the best offsets of a slot are a few classes (modulus, residue), found by trying residues: all that
are congruent with the GPA, or multiples, for the second largest size, and one of each kind below that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from guestmem.layout.coverage import HostLimits, cover
from guestmem.layout.value import File, Layout, Range, Slot
from guestmem.rules import GpaAlignment, GpaAlignmentByHighestBit, GpaPage, JanuaryAsWritten, Rule
from guestmem.uapi import KVM_MEM_GUEST_MEMFD

__all__ = ("Choice", "best_choice", "cost_at", "is_modular")

_BY_MAGNITUDE = (JanuaryAsWritten, GpaAlignment, GpaPage, GpaAlignmentByHighestBit)
_TRIES = 4  # offsets of one class tried under a rule that looks at more than the residue


@dataclass(frozen=True, slots=True)
class Choice:
    """The best offsets of one slot: ``cost`` leaves at any offset of the classes (modulus, residue)."""

    slot: Slot
    host: HostLimits
    cost: int
    classes: tuple[tuple[int, int], ...]

    def next_offset(self, start: int) -> int:
        """The smallest best offset from start upwards."""
        found = [offset for offset in self._candidates(start) if self._serves(offset)]
        return min(found, default=start + (self.classes[0][1] - start) % self.classes[0][0])

    def serves(self, offset: int) -> bool:
        """Whether an offset is one of the best."""
        in_class = any((offset - residue) % modulus == 0 for modulus, residue in self.classes)
        return in_class and self._serves(offset)

    def _candidates(self, start: int) -> Iterator[int]:
        tries = 1 if is_modular(self.host.files.rule) else _TRIES
        for modulus, residue in self.classes:
            first = start + (residue - start) % modulus
            yield from range(first, first + tries * modulus, modulus)
        if tries > 1:  # rules by magnitude: beyond the GPA's own magnitude, and at its own alignment
            own = self.slot.gpa & -self.slot.gpa or 1
            yield from (start + (-start) % own, max(start, 1 << self.slot.gpa.bit_length()), max(start, self.slot.gpa))

    def _serves(self, offset: int) -> bool:
        return is_modular(self.host.files.rule) or cost_at(self.slot, offset, self.host) == self.cost


def is_modular(rule: Rule) -> bool:
    """Whether the rule looks at the offset modulo page sizes only, so that best offsets can be claimed."""
    return not isinstance(rule, _BY_MAGNITUDE)


def best_choice(slot: Slot, host: HostLimits) -> Choice | None:
    """The best offsets of a slot in a file of host.files.page_size pages; None if the rule accepts none."""
    if is_modular(host.files.rule):  # then so is the answer: slots of one size and residue share it
        found = _best_residues(slot.gpa % host.sizes[-1], slot.size, host)
    else:
        found = _best_residues(slot.gpa, slot.size, host)
    return None if found is None else Choice(slot, host, *found)


@lru_cache(maxsize=4096)
def _best_residues(gpa: int, size: int, host: HostLimits) -> tuple[int, tuple[tuple[int, int], ...]] | None:
    """The least cost of a slot and the classes of offsets that have it."""
    slot = Slot(gpa, size, flags=KVM_MEM_GUEST_MEMFD)
    tried = _residues(slot, host)
    accepted = {residue: cost for residue in tried if (cost := cost_at(slot, residue, host)) is not None}
    if not accepted:
        return None
    best = min(accepted.values())
    chosen = [residue for residue, cost in accepted.items() if cost == best]
    return best, tuple(_merged(slot, chosen, host))


def cost_at(slot: Slot, offset: int, host: HostLimits) -> int | None:
    """Leaves that the slot costs when bound at an offset, all private; None if the binding is refused."""
    bound = replace(slot, file="f", offset=offset, flags=KVM_MEM_GUEST_MEMFD)
    layout = Layout("plan", "plan", (bound,), files=(File("f"),), private=(Range(slot.gpa, slot.end),))
    coverage = cover(layout, host)
    return sum(coverage.leaves) if coverage.mapped[0] == slot.size else None


def _residues(slot: Slot, host: HostLimits) -> Iterator[int]:
    """Offsets modulo the largest page size that are worth trying, each once."""
    sizes, largest = host.sizes, host.sizes[-1]
    step = sizes[-2] if len(sizes) > 1 else largest
    seen: set[int] = set()
    groups: list[Iterable[int]] = [
        range(slot.gpa % step, largest, step),
        range(0, largest, step),
        *([slot.gpa % size, size % largest] for size in sizes),
        # The smallest offset of each class that is congruent or aligned for a size and for none above.
        *([(slot.gpa % size + size) % largest] for size in sizes),
    ]
    for group in groups:
        for residue in group:
            if residue not in seen:
                seen.add(residue)
                yield residue


def _merged(slot: Slot, residues: list[int], host: HostLimits) -> Iterator[tuple[int, int]]:
    """Residues as classes: one of a small modulus where every tried residue of it is as good."""
    largest = host.sizes[-1]
    chosen = set(residues)
    tried = set(_residues(slot, host))
    for size in (size for size in host.sizes if size < largest):
        for start in (0, slot.gpa % size):
            inside = {residue for residue in tried if (residue - start) % size == 0}
            if inside and inside <= chosen:
                yield size, start
                chosen -= inside
    for residue in residues:
        if residue in chosen:
            yield largest, residue
