"""KVM_ENABLE_CAP: which quirks a VM may disable, and what the one about memslots changes."""

from __future__ import annotations

from functools import partial

import pytest
from helpers import RELEASED, WITH_PRIVATE_MEMORY, P, check_of, errno_of

from guestmem.backend import Touch
from guestmem.objects import Kvm, Vm
from guestmem.uapi import KVM_CAP_DISABLE_QUIRKS, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL

# The mask of quirks: 6.12 in the lab; 6.18 with shadow paging (no IGNORE_GUEST_PAT); 7.2 and 7.3 from source.
QUIRKS = {"v6.12": 0x7FF, "v6.18": 0x5FF, "v7.2": 0xFFF, "v7.3": 0xFFF}


@pytest.mark.parametrize("profile", RELEASED)
def test_the_capability_is_the_mask_of_quirks_that_can_be_disabled(kvm: Kvm, profile: str) -> None:
    vm = kvm.create_vm()
    known = vm.check_extension(KVM_CAP_DISABLE_QUIRKS2)

    assert known == kvm.check_extension(KVM_CAP_DISABLE_QUIRKS2) == QUIRKS[profile]
    assert vm.check_extension(KVM_CAP_DISABLE_QUIRKS) == 1
    for bit in (1 << index for index in range(64)):
        refused = errno_of(partial(vm.enable_cap, KVM_CAP_DISABLE_QUIRKS2, bit))
        assert refused == (None if known & bit else "EINVAL"), hex(bit)


@pytest.mark.parametrize("profile", RELEASED)
def test_the_older_one_takes_any_bit(kvm: Kvm) -> None:
    kvm.create_vm().enable_cap(KVM_CAP_DISABLE_QUIRKS, (1 << 64) - 1)


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("cap", "flags"),
    [(KVM_CAP_DISABLE_QUIRKS2, 1), (KVM_CAP_DISABLE_QUIRKS, 1), (9999, 0), (0, 0), ((1 << 32) - 1, 0)],
)
def test_flags_and_what_is_no_capability_are_refused(kvm: Kvm, cap: int, flags: int) -> None:
    assert errno_of(partial(kvm.create_vm().enable_cap, cap, flags=flags)) == "EINVAL"


@pytest.mark.parametrize("profile", RELEASED)
def test_the_other_words_are_not_looked_at(kvm: Kvm) -> None:
    kvm.create_vm().enable_cap(KVM_CAP_DISABLE_QUIRKS2, 0, 5, 6, 7)


@pytest.mark.parametrize("profile", RELEASED)
def test_only_a_vm_can_be_asked(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    fds = (kvm.fd, vm.create_vcpu().fd, kvm.backend.open_aux("memfd"), 0, -1)

    ends = [errno_of(partial(kvm.backend.enable_cap, fd, KVM_CAP_DISABLE_QUIRKS2, ())) for fd in fds]

    assert ends == ["EINVAL", "EINVAL", "ENOTTY", "ENOTTY", "EBADF"]


@pytest.mark.parametrize("backend", ["model"])
@pytest.mark.parametrize(
    ("cap", "first", "flags", "check"),
    [(213, 0, 1, "flags-zero"), (9999, 0, 0, "capability-can-be-enabled"), (213, 1 << 63, 0, "quirks-known")],
)
def test_a_refusal_names_its_check(kvm: Kvm, cap: int, first: int, flags: int, check: str) -> None:
    assert check_of(partial(kvm.create_vm().enable_cap, cap, first, flags=flags)) == check


def lost_by_deleting(kvm: Kvm, vm: Vm) -> int:
    """How many base pages are unmapped when one of two slots goes that have two pages mapped each."""
    hva = kvm.anonymous(2 << 20)
    for slot in (0, 1):
        vm.set_user_memory_region(slot, gpa=slot << 20, size=4 * P, userspace_addr=hva + slot * 4 * P)
    vcpu = vm.create_vcpu()
    for gpa in (0, P, 1 << 20, (1 << 20) + P):
        vcpu.write(gpa, 1)
    before = vm.mapped_pages()[P]
    vm.set_user_memory_region(1, gpa=1 << 20, size=0, userspace_addr=hva)
    return before - vm.mapped_pages().get(P, 0)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("cap", [KVM_CAP_DISABLE_QUIRKS, KVM_CAP_DISABLE_QUIRKS2])
def test_without_the_quirk_a_default_vm_loses_only_the_mappings_of_the_slot_that_goes(kvm: Kvm, cap: int) -> None:
    with_quirk, without = kvm.create_vm(), kvm.create_vm()
    without.enable_cap(cap, KVM_X86_QUIRK_SLOT_ZAP_ALL)

    assert lost_by_deleting(kvm, without) == 2
    assert lost_by_deleting(kvm, with_quirk) >= 4  # on a real kernel also those of the guest's code


@pytest.mark.parametrize("profile", RELEASED)
def test_what_the_guest_sees_after_a_deletion_is_the_same_with_and_without(kvm: Kvm) -> None:
    for disabled in (0, KVM_X86_QUIRK_SLOT_ZAP_ALL):
        vm = kvm.create_vm()
        vm.enable_cap(KVM_CAP_DISABLE_QUIRKS2, disabled)
        hva = kvm.anonymous(2 << 20)
        for slot in (0, 1):
            vm.set_user_memory_region(slot, gpa=slot << 20, size=4 * P, userspace_addr=hva + slot * 4 * P)
        vcpu = vm.create_vcpu()
        vcpu.write(0, 5)
        vcpu.write(1 << 20, 6)
        vm.set_user_memory_region(1, gpa=1 << 20, size=0, userspace_addr=hva)

        assert vcpu.read(0) == 5
        assert vcpu.touch(Touch(1 << 20, "r", 8))[0].kind == "mmio"
