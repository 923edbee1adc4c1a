"""Cached MMIO: what KVM remembers of guest accesses to frames without a slot (MMIO SPTEs, arch/x86/kvm/mmu).

The first access to a frame that no slot has leaves an entry with the memslot generation of the moment. While the
generation is that one, every further access is MMIO again without any look at slots or attributes. Later the entry
makes the access a *reserved* fault, which always counts as shared: if the frame has become private by then, KVM_RUN
fails with flags 0. Setting attributes does not drop entries, and neither does deleting a slot of a software-protected
VM; mapping the frame, or throwing away all roots, does (kvm_mmu_page_fault, handle_mmio_page_fault).
"""

from __future__ import annotations

__all__ = ("MmioCache",)


class MmioCache:
    """Entries of one VM: frame -> memslot generation."""

    __slots__ = ("_entries", "generation")

    def __init__(self) -> None:
        self.generation = 0  # of the memslots; grows with every change of a slot
        self._entries: dict[int, int] = {}

    def remember(self, gfn: int) -> None:
        """The frame was accessed and has no slot (make_mmio_spte)."""
        self._entries[gfn] = self.generation

    def is_current(self, gfn: int) -> bool:
        """Whether an entry still says, on its own, that the frame is MMIO (check_mmio_spte)."""
        return self._entries.get(gfn) == self.generation

    def is_stale(self, gfn: int) -> bool:
        """Whether there is an entry that slots have changed under: the access is a reserved fault."""
        return self._entries.get(gfn, self.generation) != self.generation

    def forget(self, start_gfn: int, end_gfn: int) -> None:
        """A leaf takes the place of the entries of these frames."""
        if not self._entries:
            return
        if end_gfn - start_gfn == 1:
            self._entries.pop(start_gfn, None)
        else:
            for gfn in [gfn for gfn in self._entries if start_gfn <= gfn < end_gfn]:
                del self._entries[gfn]

    def clear(self) -> None:
        """Every root is thrown away."""
        self._entries.clear()
