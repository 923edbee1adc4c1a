"""The second-level page tables of a trace, rebuilt from its events: how many leaves of each level there are.

Where the trace has ``kvm_tdp_mmu_spte_changed`` and ``kvm_mmu_split_huge_page``, the count is KVM's own: every entry
that becomes a leaf or ceases to be one is an event, but for the children of a split, which the split alone tells. A
trace that begins later than the VM, or that lost events, is never exact: entries that were there before show up as
leaves that go without having come, and are counted as ``unknown``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from guestmem.trace.event import TraceEvent

__all__ = ("Tables", "is_leaf")

_PRESENT = 1 << 11  # SPTE_MMU_PRESENT_MASK
_MAPS_MORE = 1 << 7  # PT_PAGE_SIZE_MASK
_CHILDREN = 512  # entries of a table


def is_leaf(spte: int, level: int) -> bool:
    """Whether an entry of a TDP MMU table at this level (1: 4K) maps memory (is_shadow_present_pte, is_last_spte)."""
    return bool(spte & _PRESENT) and (level == 1 or bool(spte & _MAPS_MORE))


@dataclass(slots=True)
class Tables:
    """Leaves by level and frame. Several roots of a VM may map one frame for a while, so each has a count.

    splits counts by level what became smaller; unknown what went without having come.
    """

    leaves: dict[int, Counter[int]] = field(default_factory=dict)
    splits: Counter[int] = field(default_factory=Counter)
    unknown: int = 0
    exact: bool = False  # some change was seen
    _totals: Counter[int] = field(default_factory=Counter)

    def see(self, event: TraceEvent) -> None:
        """Take one event into account."""
        if event.kind == "kvm_tdp_mmu_spte_changed":
            self.exact = True
            gfn, level = event.fields["gfn"], event.fields["level"]
            was, becomes = (is_leaf(event.fields[name], level) for name in ("old_spte", "new_spte"))
            if was and not becomes:
                self._goes(level, gfn)
            elif becomes and not was:
                self._comes(level, gfn)
        elif event.kind == "kvm_mmu_split_huge_page" and not event.fields["errno"]:
            level = event.fields["level"]
            self.splits[level] += 1
            step = _CHILDREN ** (level - 2)
            for child in range(_CHILDREN):
                self._comes(level - 1, event.fields["gfn"] + child * step)

    def count(self) -> dict[int, int]:
        """Leaves by level (1: 4K, 2: 2M, 3: 1G), levels without any left out."""
        return {level: n for level, n in sorted(self._totals.items()) if n}

    def _comes(self, level: int, gfn: int) -> None:
        self.leaves.setdefault(level, Counter())[gfn] += 1
        self._totals[level] += 1

    def _goes(self, level: int, gfn: int) -> None:
        there = self.leaves.setdefault(level, Counter())
        if not there[gfn]:
            del there[gfn]
            self.unknown += 1
            return
        there[gfn] -= 1
        self._totals[level] -= 1
        if not there[gfn]:
            del there[gfn]
