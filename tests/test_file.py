"""The guest_memfd file: what its descriptor answers, who pins whom, and closing in every order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from helpers import (
    INIT_SHARED,
    KEEP_SIZE,
    MMAP,
    PRIVATE,
    PUNCH,
    RELEASED,
    WITH_MMAP,
    WITH_PRIVATE_MEMORY,
    P,
    bindings,
    bound,
    errno_of,
    load,
    memory_fault,
    slots,
    store,
    try_fallocate,
)

import guestmem
from guestmem.backend import Backend, Exit, FileStat
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm

O_RDONLY, O_WRONLY, O_RDWR, O_PATH = 0, 1, 2, 0o10000000
GPA = 1 << 30
Call = Callable[[Backend, int], object]


@pytest.fixture
def gmem(vm: Vm) -> GuestMemfd:
    return vm.create_guest_memfd(4 * P)


@pytest.mark.parametrize("profile", RELEASED)
def test_fstat_shows_a_regular_file_of_mode_0600_whose_blocks_stay_0(gmem: GuestMemfd) -> None:
    before = gmem.stat()
    gmem.allocate(0, 4 * P)

    assert before == gmem.stat() == FileStat(4 * P, 0, P, 0o100600, 1)


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("call", "errno"),
    [
        (lambda b, fd: b.read(fd, 0), "EINVAL"),
        (lambda b, fd: b.read(fd, 1), "EINVAL"),
        (lambda b, fd: b.read(fd, P), "EINVAL"),
        (lambda b, fd: b.write(fd, 0), "EINVAL"),
        (lambda b, fd: b.write(fd, P), "EINVAL"),
        (lambda b, fd: b.pread(fd, 0, 0), "ESPIPE"),
        (lambda b, fd: b.pread(fd, P, 0), "ESPIPE"),
        (lambda b, fd: b.pread(fd, P, 1 << 40), "ESPIPE"),
        (lambda b, fd: b.pread(fd, P, -1), "EINVAL"),  # the generic layer looks at the offset first
        (lambda b, fd: b.pwrite(fd, P, 0), "ESPIPE"),
        (lambda b, fd: b.pwrite(fd, P, -1), "EINVAL"),
        (lambda b, fd: b.lseek(fd, 0, 0), "ESPIPE"),
        (lambda b, fd: b.lseek(fd, 0, 1), "ESPIPE"),
        (lambda b, fd: b.lseek(fd, 0, 2), "ESPIPE"),
        (lambda b, fd: b.lseek(fd, 0, 3), "ESPIPE"),  # SEEK_DATA
        (lambda b, fd: b.lseek(fd, 0, 4), "ESPIPE"),  # SEEK_HOLE
        (lambda b, fd: b.lseek(fd, 0, 5), "EINVAL"),  # no whence at all
        (lambda b, fd: b.lseek(fd, 0, -1), "EINVAL"),
        (lambda b, fd: b.ftruncate(fd, 0), "EINVAL"),
        (lambda b, fd: b.ftruncate(fd, 4 * P), "EINVAL"),  # the same size
        (lambda b, fd: b.ftruncate(fd, 8 * P), "EINVAL"),
        (lambda b, fd: b.ftruncate(fd, -1), "EINVAL"),
        (lambda b, fd: b.fsync(fd), "EINVAL"),
        (lambda b, fd: b.reopen(fd, O_RDONLY), "ENXIO"),
        (lambda b, fd: b.reopen(fd, O_WRONLY), "ENXIO"),
        (lambda b, fd: b.reopen(fd, O_RDWR), "ENXIO"),
    ],
)
def test_the_file_answers_a_call_that_is_not_for_it(gmem: GuestMemfd, call: Call, errno: str) -> None:
    assert errno_of(lambda: call(gmem.backend, gmem.fd)) == errno


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("call", "errno"),
    [
        (lambda b, fd: b.read(fd, 1), "EBADF"),
        (lambda b, fd: b.write(fd, 1), "EBADF"),
        (lambda b, fd: b.pread(fd, 1, 0), "EBADF"),
        (lambda b, fd: b.pread(fd, 1, -1), "EINVAL"),  # before the descriptor is looked up
        (lambda b, fd: b.lseek(fd, 0, 0), "EBADF"),
        (lambda b, fd: b.lseek(fd, 0, 99), "EBADF"),  # the descriptor first
        (lambda b, fd: b.ftruncate(fd, 0), "EBADF"),
        (lambda b, fd: b.ftruncate(fd, -1), "EINVAL"),  # before the descriptor is looked up
        (lambda b, fd: b.fsync(fd), "EBADF"),
        (lambda b, fd: b.fstat(fd), "EBADF"),
        (lambda b, fd: b.dup(fd), "EBADF"),
        (lambda b, fd: b.close(fd), "EBADF"),
        (lambda b, fd: b.fallocate(fd, KEEP_SIZE, 0, P), "EBADF"),
        (lambda b, fd: b.fallocate(fd, 0x100, -1, 0), "EBADF"),  # the descriptor before the arguments
        (lambda b, fd: b.mmap(fd, P, 3, 1, 0), "EBADF"),
        (lambda b, fd: b.mmap(fd, 0, 3, 1, 0), "EBADF"),
        (lambda b, fd: b.mmap(fd, P, 3, 1, 1), "EINVAL"),  # an unaligned offset before the descriptor
        (lambda b, fd: b.reopen(fd, O_RDWR), "ENOENT"),  # there is no such link
    ],
)
@pytest.mark.parametrize("which", ["closed", "minus one", "never opened"])
def test_a_descriptor_that_is_not_open_is_ebadf_unless_an_argument_is_looked_at_first(
    gmem: GuestMemfd, which: str, call: Call, errno: str
) -> None:
    fd = {"closed": gmem.fd, "minus one": -1, "never opened": 9999}[which]
    if which == "closed":
        gmem.close()

    assert errno_of(lambda: call(gmem.backend, fd)) == errno


@pytest.mark.parametrize("profile", RELEASED)
def test_an_o_path_descriptor_names_the_file_but_is_no_guest_memfd(vm: Vm, gmem: GuestMemfd) -> None:
    backend = gmem.backend
    path = GuestMemfd(backend, backend.reopen(gmem.fd, O_PATH))

    assert path.stat() == gmem.stat()
    assert errno_of(lambda: path.dup().close()) is None
    assert try_fallocate(path, KEEP_SIZE, 0, P) == "EBADF"
    assert errno_of(lambda: backend.read(path.fd, 1)) == "EBADF"
    assert errno_of(lambda: backend.mmap(path.fd, P, 3, 1, 0)) == "EBADF"
    assert errno_of(lambda: backend.ftruncate(path.fd, 0)) == "EBADF"
    assert errno_of(lambda: backend.reopen(path.fd, O_RDWR)) == "ENXIO"
    assert GuestMemfd(backend, backend.reopen(path.fd, O_PATH)).stat() == gmem.stat()


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_an_o_path_descriptor_cannot_be_bound_and_does_not_keep_the_file_open(vm: Vm, gmem: GuestMemfd) -> None:
    path = GuestMemfd(gmem.backend, gmem.backend.reopen(gmem.fd, O_PATH))
    vcpu = vm.create_vcpu()
    bound(gmem, gpa=GPA).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)

    assert bound(path, slot=1).try_set(vm) == "EBADF"
    gmem.close()
    assert load(vcpu, GPA) == memory_fault(GPA)


@pytest.mark.parametrize("profile", RELEASED)
def test_a_dup_is_a_full_alias_and_only_the_last_close_counts(gmem: GuestMemfd) -> None:
    alias = gmem.dup()
    gmem.allocate(0, P)
    gmem.close()

    assert alias.stat().st_size == 4 * P
    assert try_fallocate(alias, PUNCH, 0, P) is None
    alias.close()
    assert try_fallocate(alias, PUNCH, 0, P) == "EBADF"


# -- who pins whom -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", RELEASED)
def test_the_file_outlives_the_vms_descriptor(vm: Vm, gmem: GuestMemfd) -> None:
    vm.close()

    assert gmem.stat().st_size == 4 * P
    assert try_fallocate(gmem, KEEP_SIZE, 0, 4 * P) is None
    assert try_fallocate(gmem, PUNCH, 0, 4 * P) is None


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_a_mapping_outlives_the_descriptors_of_file_and_vm(kvm: Kvm, default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(P, MMAP | INIT_SHARED)
    mapping = gmem.mmap(P)
    gmem.close()
    default_vm.close()

    mapping.write(0, 0x77)
    assert mapping.read(0) == 0x77


@pytest.mark.parametrize("profile", ["v7.2"])
def test_a_mapping_keeps_the_file_of_a_slot_open_until_it_goes(default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(P, MMAP | INIT_SHARED)
    vcpu = default_vm.create_vcpu()
    bound(gmem, gpa=GPA, size=P).set(default_vm)
    mapping = gmem.mmap(P)
    mapping.write(0, 5)

    gmem.close()
    assert vcpu.read(GPA) == 5
    mapping.unmap()
    assert load(vcpu, GPA) == memory_fault(GPA, flags=0)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_slot_does_not_pin_the_file_but_stays_when_it_goes(vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    hva = Kvm(vm.backend).anonymous(4 * P)
    request = bound(gmem, gpa=GPA, userspace_addr=hva)
    request.set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    store(vcpu, GPA, 7)
    store(vcpu, GPA + P, 8)
    before = slots(vm)

    gmem.close()

    assert slots(vm) == before
    assert vm.model.stage2.count() == {}, "what the file had mapped is gone at once"
    assert load(vcpu, GPA) == memory_fault(GPA)
    assert load(vcpu, GPA + P) == [Exit("done", value=8)], "a shared access uses the hva as before"
    assert request.but(slot=1, flags=0).try_set(vm) == "EEXIST", "its frames are still taken"
    assert errno_of(lambda: vm.delete_region(0)) is None


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_slot_whose_file_is_closed_gets_no_other_file_until_it_is_deleted(vm: Vm, gmem: GuestMemfd) -> None:
    bound(gmem, gpa=GPA).set(vm)
    gmem.close()
    other = vm.create_guest_memfd(4 * P)

    assert bound(other, gpa=GPA).try_set(vm) == "EINVAL"
    vm.delete_region(0)
    assert bound(other, gpa=GPA).try_set(vm) is None


@pytest.mark.parametrize("profile", RELEASED)
def test_a_file_belongs_for_ever_to_the_vm_that_made_it(kvm: Kvm, profile: str) -> None:
    vm_type = 0 if profile == "v6.18" else 1
    vm, other = kvm.create_vm(vm_type), kvm.create_vm(vm_type)
    gmem = vm.create_guest_memfd(4 * P)

    assert bound(gmem).try_set(other) == "EINVAL"
    vm.close()
    assert bound(gmem).try_set(other) == "EINVAL", "also when its VM has no descriptor any more"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_deleting_a_slot_keeps_the_contents_and_binding_again_shows_them_elsewhere(vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    vm.set_memory_attributes(GPA, 16 * P, PRIVATE)
    bound(gmem, gpa=GPA).set(vm)
    for page in range(4):
        store(vcpu, GPA + page * P, page + 1)

    vm.delete_region(0)
    bound(gmem, gpa=GPA + 8 * P, size=3 * P, offset=P).set(vm)

    assert [vcpu.read(GPA + (8 + page) * P) for page in range(3)] == [2, 3, 4]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_closed_files_range_is_free_in_the_next_file_of_the_vm(vm: Vm, gmem: GuestMemfd) -> None:
    bound(gmem, gpa=GPA).set(vm)
    gmem.close()
    other = vm.create_guest_memfd(4 * P)

    bound(other, slot=1, gpa=2 * GPA).set(vm)

    assert bindings(other) == [(0, 4, 1)]


def open_everything(kvm: Kvm) -> dict[str, Callable[[], None]]:
    """One of each, in use; how to get rid of each."""
    vm = kvm.create_vm(guestmem.KVM_X86_DEFAULT_VM)
    gmem = vm.create_guest_memfd(4 * P, MMAP | INIT_SHARED)
    alias = gmem.dup()
    vcpu = vm.create_vcpu()
    bound(gmem, gpa=GPA).set(vm)
    mapping = gmem.mmap(2 * P)
    mapping.write(P, 3)
    assert vcpu.read(GPA + P) == 3
    return {
        "vm": vm.close,
        "vcpu": vcpu.close,
        "file": gmem.close,
        "dup": alias.close,
        "mapping": mapping.unmap,
    }


@pytest.mark.parametrize("order", list(itertools.permutations(("vm", "vcpu", "file", "dup", "mapping"))))
def test_descriptors_and_mappings_close_in_any_order_and_free_the_pages_with_the_last(
    kvm: Kvm, order: tuple[str, ...]
) -> None:
    close = open_everything(kvm)
    holding = {"file", "dup", "mapping"}

    for name in order:
        assert kvm.model.pools.used() == ({0: 1} if holding else {})
        close[name]()
        holding.discard(name)
        kvm.check_invariants()

    assert kvm.model.pools.used() == {}


@pytest.mark.parametrize("profile", RELEASED)
def test_a_vcpus_descriptor_keeps_its_vm_alive(kvm: Kvm, vm: Vm) -> None:
    hva = kvm.anonymous(P)
    vm.set_user_memory_region(0, gpa=GPA, size=P, userspace_addr=hva)
    vcpu: Vcpu = vm.create_vcpu()
    vm.close()

    assert vcpu.write(GPA, 9) == [Exit("done")]
    assert kvm.read(hva) == 9


def test_ending_the_process_frees_every_page() -> None:
    kvm = guestmem.open("model")
    with kvm:
        open_everything(kvm)
        pools = kvm.model.pools
        assert pools.used() == {0: 1}

    assert pools.used() == {}
