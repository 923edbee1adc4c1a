"""What must hold after every operation, whatever was asked: checked by tests, fuzzing and proofs alike.

- Nothing is mapped outside a slot, and nothing of a file outside the range the slot is bound to.
- A leaf shows what its slot says it shows: the file's page at the bound offset, or the host's page at the hva.
- No leaf of a private frame shows host memory, and no leaf of a shared frame shows private memory.
- A file's page that is mapped exists; a closed file is mapped nowhere; a poisoned page is mapped nowhere.
- Slots, bindings and files agree with one another, and the pools' use is what the files hold.
"""

from __future__ import annotations

from collections import Counter

from guestmem.model.process import Process
from guestmem.model.stage2 import Leaf
from guestmem.model.vm import GuestMemfd, Memslot, Vm

__all__ = ("check_process", "check_vm")


def check_process(process: Process) -> None:
    """Verify every VM of the process and the host's pools; AssertionError says what is wrong."""
    used: Counter[int] = Counter()
    for vm in process.vms:
        check_vm(vm)
        for gmem in vm.gmems:
            for start, end, order in gmem.cache.folios:
                used[order] += (end - start) >> order
    for file in process.shmem.files:
        file.check_invariants()
        for start, end, order in file.cache.folios:
            used[order] += (end - start) >> order
    process.pools.check_invariants()
    process.host.vmas.check_invariants()
    assert process.pools.used() == dict(sorted(used.items())), f"bug in guestmem: pools {process.pools.used()} {used}"


def check_vm(vm: Vm) -> None:
    """Verify one VM."""
    vm.attributes.check_invariants()
    vm.stage2.check_invariants()
    for space in vm.spaces:
        space.check_invariants()
        for slot in space.by_id.values():
            _check_binding(vm, slot)
    for gmem in vm.gmems:
        gmem.check_invariants()
    for start, end, leaf in vm.stage2.leaves if vm.profile.revision is None else ():  # else it is as wrong as it was
        _check_leaf(vm, start, end, leaf)
    assert vm.slot_pages == sum(slot.npages for space in vm.spaces for slot in space.by_id.values())


def _check_binding(vm: Vm, slot: Memslot) -> None:
    if slot.gmem is not None:
        assert slot.gmem in vm.gmems, f"bug in guestmem: {slot!r} is bound to a closed file"
        bound = slot.gmem.bindings.run_at(slot.pgoff)
        assert bound == (slot.pgoff, slot.pgoff + slot.npages, slot), f"bug in guestmem: {slot!r} bound as {bound}"


def _check_leaf(vm: Vm, start: int, end: int, leaf: Leaf) -> None:
    where = f"bug in guestmem: leaf [{start:#x}, {end:#x}) {leaf}"
    slot = vm.spaces[0].by_gfn.get(start)
    assert slot is not None, f"{where} has no slot"
    assert start >= slot.base_gfn, f"{where} begins before {slot!r}"
    # A run of leaves may go on into the next slot when that continues the same memory; each part must fit its slot.
    for part_start, part_end, owner in vm.spaces[0].by_gfn.runs(start, end):
        size = 1 << leaf.order
        assert part_start % size == 0 and part_end % size == 0, f"{where} crosses the edge of {owner!r}"
        attribute = vm.private_until(part_start, part_end)
        assert attribute == (leaf.private, part_end), f"{where} is not what the attribute says, {attribute}"
        if leaf.private or owner.gmem_only:
            _check_file_leaf(owner, part_start, part_end, leaf, where)
        else:
            vma = vm.host.vmas.get(owner.userspace_addr + (part_start - owner.base_gfn) * vm.page_size)
            assert vma is not None, f"{where} shows host memory that is not mapped"
            assert vma.source is leaf.source, f"{where} shows other host memory than {owner!r}"
            offset = owner.userspace_addr + (part_start - owner.base_gfn) * vm.page_size - vma.delta
            assert offset == (part_start - leaf.delta) * vm.page_size, f"{where} shows another offset than {owner!r}"
    assert sum(stop - begin for begin, stop, _ in vm.spaces[0].by_gfn.runs(start, end)) == end - start, where


def _check_file_leaf(slot: Memslot, start: int, end: int, leaf: Leaf, where: str) -> None:
    gmem = slot.gmem
    assert isinstance(gmem, GuestMemfd), f"{where} shows a file that is closed"
    assert leaf.source is gmem, f"{where} shows another file than {slot!r}"
    first, last = start - leaf.delta, end - leaf.delta
    assert first - slot.pgoff == start - slot.base_gfn, f"{where} shows another offset than {slot!r}"
    assert slot.pgoff <= first, f"{where} shows pages before the bound range of {slot!r}"
    assert last <= slot.pgoff + slot.npages, f"{where} shows pages after the bound range of {slot!r}"
    assert next(gmem.cache.folios.gaps(first, last), None) is None, f"{where} shows a hole of the file"
    assert not gmem.cache.poisoned.overlaps(first, last), f"{where} shows a poisoned page"
