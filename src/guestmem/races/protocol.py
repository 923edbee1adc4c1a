"""How KVM orders a fault against whatever takes memory away, as switches: what protects, and what 6.12 does not have.

Every field is one rule of the protocol. The default is the protocol that profile ``next`` needs: Linux 7.2 as
docs/kernel-behaviour.md has it, plus what huge folios in a file need, plus the two repairs that ``V6_12`` lacks. A
*mutation* takes one rule away; the explorer must find the shortest schedule that fails without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

__all__ = ("MUTATIONS", "NEXT", "V6_12", "Mutation", "Protocol")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rules that keep a fault and an invalidation apart."""

    huge_folios: bool = True
    """A file takes huge folios (profile next). Not a rule: released kernels know single pages only."""
    recheck: bool = True
    """With mmu_lock held, a fault looks again whether its frame was invalidated (is_page_fault_stale)."""
    sample_first: bool = True
    """The invalidation count is sampled before the attribute that it protects is compared (kvm_mmu_faultin_pfn)."""
    widen_attributes: bool = True
    """An attribute change invalidates the still uniform huge ranges of its head and tail whole
    (kvm_arch_pre_set_memory_attributes)."""
    widen_punch: bool = True
    """A punch hole invalidates huge folios of its head and tail whole. Released kernels do not: they have none."""
    widen_punch_holes: bool = True
    """... also where the file has a hole when the invalidation begins: a fault may put a huge folio there before the
    pages are freed. Looking for huge folios first is not enough."""
    flush_before_free: bool = True
    """TLBs are flushed before the pages of a file are freed (kvm_gmem_invalidate_begin, then truncate)."""
    wait_for_readers: bool = True
    """A slot's mappings go only after every fault that may have seen the old slot is over (synchronize_srcu)."""
    contained: bool = True
    """A huge leaf must lie inside the bound range of the file, whatever the folio's size (levels.LIMITS)."""
    unbind_dying: bool = True
    """A deleted slot is unbound also from a file whose last reference is gone but which is not yet released
    ("KVM: guest_memfd: Remove bindings on memslot deletion when gmem is dying")."""
    unbind_dying_locked: bool = True
    """... and then with the file's invalidate lock held, as for a living file. 6.12 does without."""
    poison_locks_file_first: bool = True
    """Memory failure takes the file's invalidate lock before the folio's lock, as truncation does. 6.12 enters
    kvm_gmem_error_folio with the folio locked already."""
    pre_fault_gives_up: bool = True
    """A pre-fault that meets a slot being deleted or moved ends with EAGAIN; 6.12 tries again inside the call."""
    pre_fault_renews_root: bool = True
    """A pre-fault that meets an outdated page-table root loads a new one; 6.12 tries again with the old one."""


NEXT = Protocol()
V6_12 = replace(
    NEXT,
    huge_folios=False,
    widen_punch=False,
    widen_punch_holes=False,
    unbind_dying_locked=False,
    poison_locks_file_first=False,
    pre_fault_gives_up=False,
    pre_fault_renews_root=False,
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule taken away: the protocol without it, the scenario that needs the rule, and what goes wrong there."""

    name: str
    protocol: Protocol
    scenario: str
    explanation: str


def _mutations() -> dict[str, Mutation]:
    rows = (
        Mutation(
            "recheck",
            replace(NEXT, recheck=False),
            "fresh/touch+punch",
            "The fault takes a page from the file, the hole frees it, and the fault maps what is no longer the file's.",
        ),
        Mutation(
            "sample-first",
            replace(NEXT, sample_first=False),
            "shared/touch+to-private",
            "The fault compares the attribute while the page is still shared, the conversion runs from begin to end, "
            "and the count that the fault then samples already includes it.",
        ),
        Mutation(
            "widen-attributes",
            replace(NEXT, widen_attributes=False),
            "shared/touch+tail-to-private",
            "Only the neighbour is invalidated, so nothing stops the fault from mapping the whole huge range while "
            "half of it is becoming private.",
        ),
        Mutation(
            "widen-punch",
            replace(NEXT, widen_punch=False),
            "fresh/touch+punch-tail",
            "Only the neighbour is invalidated, so nothing stops the fault from mapping the whole huge folio while "
            "half of it is being freed.",
        ),
        Mutation(
            "widen-punch-holes",
            replace(NEXT, widen_punch_holes=False),
            "fresh/touch+punch-tail",
            "The file is empty when the invalidation begins, so there seems to be nothing to widen it for; then the "
            "fault puts a huge folio there and maps it whole, and the hole frees half of it.",
        ),
        Mutation(
            "flush-before-free",
            replace(NEXT, flush_before_free=False),
            "mapped/touch+punch",
            "Stage 2 no longer has the page, but the vCPU's TLB does, and the page is already free.",
        ),
        Mutation(
            "wait-for-readers",
            replace(NEXT, wait_for_readers=False),
            "fresh/touch+delete",
            "The fault saw the slot while it was there; deleting a slot moves no invalidation count, so only waiting "
            "for such faults keeps them from using it after it is gone.",
        ),
        Mutation(
            "contained",
            replace(NEXT, contained=False),
            "offset/touch+punch-tail",
            "The folio begins before the bound range, and so does a leaf of its size.",
        ),
        Mutation(
            "unbind-dying",
            replace(NEXT, unbind_dying=False),
            "fresh/close+delete",
            "The file has no reference left, so the deletion cannot take one and leaves the binding behind; the slot "
            "is freed while the file still points at it.",
        ),
        Mutation(
            "unbind-dying-locked",
            replace(NEXT, unbind_dying_locked=False),
            "mapped/poison-tail+close+delete",
            "Memory failure begins an invalidation for the binding it found; the binding goes; the end finds none and "
            "does not count down, so faults on the range retry for ever.",
        ),
        Mutation(
            "poison-locks-file-first",
            replace(NEXT, poison_locks_file_first=False),
            "mapped/punch+poison-tail",
            "Memory failure holds the folio and wants the file's invalidate lock; the hole holds that lock and wants "
            "the folio.",
        ),
        Mutation(
            "pre-fault-gives-up",
            replace(NEXT, pre_fault_gives_up=False),
            "fresh/pre-fault+delete",
            "The deletion waits for the pre-fault to leave its read-side section; the pre-fault waits, inside it, for "
            "the slot to be gone.",
        ),
        Mutation(
            "pre-fault-renews-root",
            replace(NEXT, pre_fault_renews_root=False),
            "plain/pre-fault-there+move",
            "Moving a slot of a default VM outdates every root; the pre-fault finds its root outdated and tries "
            "again with the same one.",
        ),
    )
    return {row.name: row for row in rows}


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(_mutations())
