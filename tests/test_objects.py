"""The objects over a backend: what they add to the calls."""

from __future__ import annotations

import pytest
from helpers import PRIVATE, P, Region, bound, errno_of

import guestmem
from guestmem.backend import Boot, Exit, Host, PreFaultResult, Touch
from guestmem.model.process import Process
from guestmem.objects import GuestAccessFailed, GuestMemfd, Kvm, Vcpu, Vm


def test_open_takes_names_and_refuses_unknown_ones() -> None:
    with guestmem.open("model", profile="v6.12", rule="contained") as kvm:
        assert kvm.backend.name == "model"
        assert kvm.model.profile.name == "v6.12"
        assert kvm.model.rule.name == "contained"
    with pytest.raises(ValueError, match="no profile 'v5'"):
        guestmem.open("model", profile="v5")
    with pytest.raises(ValueError, match="no rule 'whatever'"):
        guestmem.open("model", rule="whatever")


def test_leaving_the_block_ends_the_process() -> None:
    with guestmem.open("model") as kvm:
        vm = kvm.create_vm()

    assert errno_of(vm.create_vcpu) == "EBADF"
    assert errno_of(kvm.close) == "EBADF"


def test_a_second_close_is_ebadf_as_in_the_kernel(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.close()

    assert errno_of(vm.close) == "EBADF"


def test_a_load_that_memory_does_not_answer_raises_with_its_exits(vm: Vm, vcpu: Vcpu) -> None:
    with pytest.raises(GuestAccessFailed) as mmio:
        vcpu.read(P)
    assert [exit.kind for exit in mmio.value.exits] == ["mmio", "done"]

    vm.set_memory_attributes(0, P, PRIVATE)
    with pytest.raises(GuestAccessFailed, match="memory_fault") as fault:
        vcpu.read(0)
    assert fault.value.exits == [Exit("memory_fault", errno="EFAULT", flags=8, gpa=0, size=P)]


def test_pre_fault_returns_what_is_left_and_raises_what_the_kernel_refused(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    Region(gpa=0, size=P, userspace_addr=kvm.anonymous(P)).set(vm)

    assert vcpu.pre_fault_memory(0, 3 * P) == (P, 2 * P)
    assert errno_of(lambda: vcpu.pre_fault_memory(P, P)) == "ENOENT"


def test_a_guest_memfd_sets_its_flag_and_deleting_needs_nothing_but_the_slot(vm: Vm) -> None:
    gmem = vm.create_guest_memfd(P)
    vm.set_user_memory_region2(3, gpa=0, size=P, guest_memfd=gmem)
    assert [slot.flags for slot in vm.model.spaces[0].by_id.values()] == [guestmem.KVM_MEM_GUEST_MEMFD]

    vm.delete_region(3)

    assert bound(gmem, slot=4, size=P).try_set(vm) is None


def test_a_fetch_completes_without_a_value(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    Region(gpa=0, size=P, userspace_addr=kvm.anonymous(P)).set(vm)

    assert vcpu.fetch(0) == [Exit("done")]


def test_objects_show_what_they_were_made_with(kvm: Kvm, backend: str) -> None:
    end = f"backend={backend!r})"
    vm = kvm.create_vm()

    assert repr(kvm) == f"Kvm(fd={kvm.fd}, {end}"
    assert repr(vm) == f"Vm(type=KVM_X86_DEFAULT_VM, slots=0, fd={vm.fd}, {end}"
    vcpu = vm.create_vcpu(3)
    assert repr(vcpu) == f"Vcpu(id=3, fd={vcpu.fd}, {end}"


def test_a_vm_counts_the_slots_that_it_has(kvm: Kvm, vm: Vm) -> None:
    hva = kvm.anonymous(2 * P)
    vm.set_user_memory_region(0, gpa=0, size=P, userspace_addr=hva)
    vm.set_user_memory_region(7, gpa=P, size=P, userspace_addr=hva + P)
    assert errno_of(lambda: vm.set_user_memory_region(8, gpa=0, size=P, userspace_addr=hva)) == "EEXIST"
    assert ", slots=2, " in repr(vm)

    vm.set_user_memory_region(0, gpa=0, size=P, userspace_addr=hva, flags=guestmem.KVM_MEM_LOG_DIRTY_PAGES)
    vm.delete_region(7)

    assert ", slots=1, " in repr(vm)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, "0"),
        (guestmem.GUEST_MEMFD_FLAG_MMAP | guestmem.GUEST_MEMFD_FLAG_INIT_SHARED, "MMAP|INIT_SHARED"),
        (1 << 0 | 1 << 9, "MMAP|0x200"),
        (30 << 26, "0x78000000"),
    ],
)
def test_a_file_shows_its_size_and_flags(flags: int, text: str, kvm: Kvm) -> None:
    gmem = GuestMemfd(kvm.backend, kvm.create_vm().fd, 2 << 20, flags)

    assert repr(gmem).startswith(f"GuestMemfd(size=2M, flags={text}, fd=")
    assert repr(gmem.dup()).startswith(f"GuestMemfd(size=2M, flags={text}, fd=")


def test_what_was_made_elsewhere_shows_its_descriptor_only(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    end = f"backend={kvm.backend.name!r})"

    assert repr(Vm(kvm.backend, vm.fd)) == f"Vm(fd={vm.fd}, {end}"
    assert repr(Vcpu(kvm.backend, vcpu.fd)) == f"Vcpu(fd={vcpu.fd}, {end}"
    assert repr(GuestMemfd(kvm.backend, vm.fd)) == f"GuestMemfd(fd={vm.fd}, {end}"


def test_an_exit_shows_only_what_is_set_and_addresses_in_hex() -> None:
    assert repr(Exit("memory_fault", errno="EFAULT", flags=8, gpa=0x1000, size=P)) == (
        "Exit(kind='memory_fault', gpa=0x1000, errno='EFAULT', flags=8, size=0x1000)"
    )
    assert repr(Exit("done")) == "Exit(kind='done')"


def test_the_model_is_a_host_that_a_test_may_break() -> None:
    assert isinstance(Process(), Host)


def test_a_real_kernel_does_not_show_its_state() -> None:
    class Real:
        """Just enough of a backend to be asked."""

        name = "kvm"

        def open_kvm(self) -> int:
            return 3

    kvm = Kvm(Real())  # type: ignore[arg-type]  # the rest of the protocol is not called
    for look in (lambda: kvm.model, lambda: Vm(kvm.backend, 4).model):
        with pytest.raises(guestmem.NotVisible, match="real kernel"):
            look()


def test_where_the_guests_own_code_lies_is_for_real_kernels_only(kvm: Kvm, vcpu: Vcpu) -> None:
    touched = kvm.backend.run_touch(vcpu.fd, Boot(0xD0000000, 0), [Touch(0, "r", 8)])

    assert touched[0][0].kind == "mmio"
    assert PreFaultResult(0, 0).refused is None
