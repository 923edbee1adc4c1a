"""The example of the alignment discussion, under every rule that was proposed in it.

A file has 1G pages. A slot of 1G is bound at offset 0x4000, and the guest touches page 8 of the file. Rounding down
gives the page at offset 0, outside the range that the slot owns. Which rule refuses the slot, and what happens under
the others?
"""

from __future__ import annotations

import guestmem
from guestmem.rules import RULES
from guestmem.units import GIB

OFFSET, PAGE_8 = 0x4000, 0x8000


def try_rule(name: str) -> str:
    """Bind and touch under one rule; one line that says what happened."""
    with guestmem.open("model", profile="next", rule=name) as kvm:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        gmem = vm.create_guest_memfd(2 * GIB, page_size=1 * GIB)
        try:
            vm.set_user_memory_region2(0, gpa=0, size=1 * GIB, guest_memfd=gmem, guest_memfd_offset=OFFSET)
        except guestmem.KvmError as refused:
            return f"refused by {refused.check} ({refused.name})"
        vm.set_memory_attributes(0, 1 * GIB, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        vm.create_vcpu().write(PAGE_8 - OFFSET, 1)
        kvm.check_invariants()
        geometry = vm.model.geometry
        [(first, last, order)] = gmem.model.cache.folios
        [(gfn, end, leaf)] = vm.model.stage2.leaves
        return (
            f"accepted; {geometry.name_of(order)} folio at file pages [{first:#x}, {last:#x}), "
            f"gfn [{gfn:#x}, {end:#x}) mapped by {geometry.name_of(leaf.order)}"
        )


if __name__ == "__main__":
    for rule in RULES:
        print(f"{rule.name:<24} {try_rule(rule.name)}")
