"""The example of the alignment discussion, on the system that it was about, under every rule.

A file has 1G pages. A slot of 1G is bound at offset 0x4000, and the guest touches page 8 of the file. Rounding down
gives the page at offset 0, outside the range that the slot owns: there, another VM has a slot and a secret. Which rule
refuses the slot, and what happens under the others?
"""

from __future__ import annotations

import guestmem
from guestmem.rules import RULES, NoRule
from guestmem.units import GIB

OFFSET, PAGE_8, SECRET = 0x4000, 0x8000, 0x5EC4E7


def try_rule(name: str) -> str:
    """Bind and touch under one rule; one line that says what happened."""
    with guestmem.open("model", profile="restrictedmem", rule=name) as kvm:
        file = kvm.memfd_restricted(page_size=1 * GIB)
        file.truncate(2 * GIB)
        other, vm = (kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM) for _ in range(2))
        other.set_user_memory_region2(0, gpa=0, size=OFFSET, guest_memfd=file)
        other.set_memory_attributes(0, OFFSET, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        other.create_vcpu().write(0, SECRET)
        try:
            vm.set_user_memory_region2(0, gpa=0, size=1 * GIB, guest_memfd=file, guest_memfd_offset=OFFSET)
        except guestmem.KvmError as refused:
            return f"refused ({refused.name})"
        vm.set_memory_attributes(0, 1 * GIB, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        vcpu = vm.create_vcpu()
        vcpu.write(PAGE_8 - OFFSET, 1)
        geometry = vm.model.geometry
        [(gfn, end, leaf)] = vm.model.stage2.leaves
        shows = f"{geometry.name_of(leaf.order)} leaf shows file pages [{gfn - leaf.delta:#x}, {end - leaf.delta:#x})"
        stolen = vcpu.read(0) == SECRET
        return f"accepted; {shows}{': the guest reads the secret' if stolen else ''}"


if __name__ == "__main__":
    # The rules since then are guest_memfd's: profile next has those.
    for rule in (NoRule(), *(rule for rule in RULES if rule.date < "2023-05")):
        print(f"{rule.name:<24} {try_rule(rule.name)}")
