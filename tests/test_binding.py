"""kvm_gmem_bind: which ranges of a file a slot may have, in each kernel's arithmetic."""

from __future__ import annotations

import pytest
from helpers import (
    GUEST_MEMFD,
    INIT_SHARED,
    M2,
    MMAP,
    PRIVATE,
    RELEASED,
    WITH_PRIVATE_MEMORY,
    P,
    Region,
    bindings,
    bound,
    store,
)

import guestmem
from guestmem.errors import KvmError
from guestmem.geometry import X86_64
from guestmem.objects import GuestMemfd, Kvm, Vm
from guestmem.rules import RULES, Binding

SIZE = 16 * P
S63 = 1 << 63
U64 = 1 << 64
GPA = 1 << 30
OVERLAP = {"v6.12": "EINVAL", "v6.18": "EINVAL", "v7.2": "EEXIST", "v7.3": "EEXIST", "next": "EEXIST"}


@pytest.fixture
def gmem(vm: Vm) -> GuestMemfd:
    return vm.create_guest_memfd(SIZE)


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("offset", "size", "ends"),
    [
        (0, P, None),
        (0, SIZE, None),
        (SIZE - P, P, None),
        (0, SIZE + P, "EINVAL"),
        (SIZE - P, 2 * P, "EINVAL"),
        (SIZE, P, "EINVAL"),
        (1 << 40, P, "EINVAL"),
        (1, P, "EINVAL"),
        (P - 1, P, "EINVAL"),
        (S63, P, "EINVAL"),
        (S63 + P, P, "EINVAL"),
        (U64 - 2 * P, P, "EINVAL"),
        (U64 - P, P, "EINVAL"),
        (U64 - SIZE, SIZE, "EINVAL"),
    ],
)
def test_the_range_must_lie_in_the_file(vm: Vm, gmem: GuestMemfd, offset: int, size: int, ends: str | None) -> None:
    assert bound(gmem, offset=offset, size=size).try_set(vm) == ends
    assert bindings(gmem) == ([] if ends else [(offset // P, (offset + size) // P, 0)])


# 6.18 adds as loff_t: a sum that reaches 2**63 is negative, hence not past the end of the file.
SIGNED = [
    (S63 - P, 4 * P, None),
    (S63 - P, P, None),
    (S63 - M2, M2, None),
    (S63 - 4 * P, 4 * P, None),
    (S63 - 5 * P, 4 * P, "EINVAL"),  # the sum stays positive, and is past the end
    (S63 - 2 * P, P, "EINVAL"),
    (S63, P, "EINVAL"),  # a negative offset
    (U64 - 8 * P, 4 * P, "EINVAL"),
]


@pytest.mark.parametrize(("offset", "size", "ends"), SIGNED)
@pytest.mark.parametrize("profile", ["v6.18"])
def test_6_18_accepts_an_offset_whose_sum_with_the_size_passes_2_63(
    vm: Vm, gmem: GuestMemfd, offset: int, size: int, ends: str | None
) -> None:
    assert bound(gmem, offset=offset, size=size).try_set(vm) == ends


@pytest.mark.parametrize(("offset", "size"), [case[:2] for case in SIGNED])
@pytest.mark.parametrize("profile", ["v6.12", "v7.2", "v7.3", "next"])
def test_the_other_kernels_compare_unsigned(vm: Vm, gmem: GuestMemfd, offset: int, size: int) -> None:
    assert bound(gmem, offset=offset, size=size).try_set(vm) == "EINVAL"


@pytest.mark.parametrize("profile", ["v6.18"])
def test_a_range_past_2_63_is_a_binding_like_any_other(kvm: Kvm, default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(SIZE, MMAP | INIT_SHARED)
    vcpu = default_vm.create_vcpu()
    request = bound(gmem, gpa=GPA, offset=S63 - P)
    request.set(default_vm)

    assert request.but(slot=1, gpa=2 * GPA).try_set(default_vm) == "EINVAL", "it is taken"
    assert vcpu.write(GPA + P, 5)[0].kind == "done"
    assert vcpu.read(GPA + P) == 5
    kvm.check_invariants()
    default_vm.delete_region(0)
    assert request.try_set(default_vm) is None, "and free again"
    assert vcpu.read(GPA + P) == 5


@pytest.mark.parametrize("profile", [*RELEASED, "next"])
@pytest.mark.parametrize(
    ("offset", "size", "overlaps"),
    [
        (4 * P, 4 * P, True),
        (P, 4 * P, True),
        (7 * P, 4 * P, True),
        (5 * P, P, True),
        (0, 16 * P, True),
        (0, 4 * P, False),  # ranges that touch are apart
        (8 * P, 8 * P, False),
    ],
)
@pytest.mark.parametrize("through_dup", [False, True])
def test_a_page_of_the_file_belongs_to_one_slot(
    vm: Vm, gmem: GuestMemfd, profile: str, offset: int, size: int, overlaps: bool, through_dup: bool
) -> None:
    bound(gmem, slot=0, gpa=GPA, offset=4 * P, size=4 * P).set(vm)
    second = gmem.dup() if through_dup else gmem

    ends = bound(second, slot=1, gpa=2 * GPA, offset=offset, size=size).try_set(vm)

    assert ends == (OVERLAP[profile] if overlaps else None)


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(("gpa", "offset"), [(P, 3 * P), (0, P), (GPA, 5 * P), (5 * P, 0), (GPA + 7 * P, 0)])
def test_released_kernels_do_not_look_at_the_alignment_of_gpa_and_offset(
    vm: Vm, gmem: GuestMemfd, gpa: int, offset: int
) -> None:
    assert bound(gmem, gpa=gpa, offset=offset).try_set(vm) is None


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_many_slots_share_a_file_in_any_order_and_each_shows_its_own_pages(vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    vm.set_memory_attributes(0, 64 * GPA, PRIVATE)
    for slot in range(16):
        bound(gmem, slot=slot, gpa=(16 - slot) * GPA, offset=slot * P, size=P).set(vm)
        store(vcpu, (16 - slot) * GPA, 100 + slot)

    assert [gmem.model.contents.read(slot * P, 8) for slot in range(16)] == list(range(100, 116))
    assert bindings(gmem) == [(slot, slot + 1, slot) for slot in range(16)]


@pytest.mark.parametrize("profile", RELEASED)
def test_a_deleted_slots_range_is_free_again_and_its_neighbours_is_not(vm: Vm, gmem: GuestMemfd, profile: str) -> None:
    bound(gmem, slot=0, gpa=0, offset=0, size=4 * P).set(vm)
    bound(gmem, slot=1, gpa=GPA, offset=4 * P, size=4 * P).set(vm)

    vm.delete_region(0)

    assert bound(gmem, slot=2, gpa=2 * GPA, offset=P, size=4 * P).try_set(vm) == OVERLAP[profile]
    assert bound(gmem, slot=2, gpa=2 * GPA, offset=P, size=3 * P).try_set(vm) is None


@pytest.mark.parametrize("profile", RELEASED)
def test_what_is_no_guest_memfd_cannot_be_bound(kvm: Kvm, vm: Vm, gmem: GuestMemfd) -> None:
    backend = kvm.backend
    vcpu, others = vm.create_vcpu(), [backend.open_aux(kind) for kind in ("memfd", "eventfd", "pipe")]
    closed = gmem.dup()
    closed.close()
    fds = {
        "EINVAL": [kvm.fd, vm.fd, vcpu.fd, 0, *others],
        "EBADF": [-1, 9999, 12345, closed.fd, 0xFFFFFFFF],
    }

    for errno, wrong in fds.items():
        for fd in wrong:
            assert Region(flags=GUEST_MEMFD, fd=fd).try_set(vm) == errno


# -- the alignment rule ------------------------------------------------------------------------------------------------


def binding_of(request: Region, gmem: GuestMemfd) -> Binding:
    """What a rule may know of the request."""
    page = gmem.model.page_size
    return Binding(request.gpa, request.size, request.offset, page, page, X86_64)


def test_a_refusal_by_the_rule_names_the_rule_its_statement_and_an_offset_that_works() -> None:
    for rule in RULES:
        with guestmem.open("model", profile="next", rule=rule) as kvm:
            vm = kvm.create_vm(1)
            gmem = vm.create_guest_memfd(8 * GPA, page_size=GPA)
            request = bound(gmem, gpa=0, size=GPA, offset=0x4000)
            if rule.refuses(binding_of(request, gmem)) is None:
                assert request.try_set(vm) is None
                continue
            with pytest.raises(KvmError) as refused:
                request.set(vm)
            error = refused.value
            assert (error.name, error.check) == ("EINVAL", f"rule:{rule.name}")
            assert error.reason.startswith(rule.statement)
            advised = int(error.hint.partition("guest_memfd_offset=")[2].partition(":")[0], 16)
            assert request.but(offset=advised).try_set(vm) is None
            assert "holes in the file cost nothing" in error.hint


def test_the_rule_is_the_last_word_before_the_range_is_given() -> None:
    vm = guestmem.open("model", profile="next", rule="creation-flags").create_vm(1)
    gmem = vm.create_guest_memfd(2 * GPA, page_size=GPA)
    bound(gmem, slot=9, gpa=4 * GPA, size=GPA, offset=GPA).set(vm)
    misaligned = bound(gmem, gpa=0, size=M2, offset=P)

    def check(request: Region) -> str:
        with pytest.raises(KvmError) as refused:
            request.set(vm)
        return refused.value.check

    assert check(misaligned) == "rule:creation-flags"
    assert check(misaligned.but(offset=2 * GPA + P)) == "binding-in-file"
    assert check(misaligned.but(offset=GPA + P)) == "binding-free"
    assert check(misaligned.but(gpa=4 * GPA)) == "gpa-free"
    assert check(misaligned.but(gpa=1 << 52)) == "gpa-mappable", "with the range, as kvm_gmem_commit_memory_region"


@pytest.mark.parametrize("profile", RELEASED)
def test_released_kernels_have_no_rule(profile: str) -> None:
    vm_type = 0 if profile == "v6.18" else 1
    with guestmem.open("model", profile=profile, rule="both-multiples-of-2M") as kvm:
        vm = kvm.create_vm(vm_type)

        assert bound(vm.create_guest_memfd(SIZE), offset=3 * P, size=P).try_set(vm) is None
