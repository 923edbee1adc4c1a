"""docs/kernel-behaviour.md says in words what the code has as data: capabilities, ioctls, the order of checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guestmem
from guestmem import harness, uapi
from guestmem.kvm.structs import IOCTLS
from guestmem.model.checks import observing
from guestmem.objects import GuestMemfd, Vm

PAGE = (Path(__file__).parent.parent / "docs" / "kernel-behaviour.md").read_text()
SIZE = 0x4000


def section(heading: str) -> str:
    """The text under a heading, up to the next."""
    _, _, rest = PAGE.partition(f"# {heading}\n")
    assert rest, f"the page has no section {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of the tables in a text, heads included."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| --"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def answers(profile: str, capability: int) -> str:
    """What the model answers on the device and on a VM of each type, as the page writes it."""
    with guestmem.open("model", profile=profile) as kvm:
        types = [type for type in (0, 1) if kvm.check_extension(uapi.KVM_CAP_VM_TYPES) >> type & 1]
        on_vms = [kvm.create_vm(type).check_extension(capability) for type in types]
        return " / ".join(map(str, [kvm.check_extension(capability), *on_vms]))


CAPABILITIES = [row for row in rows(section("check_extension")) if row[1].isdigit()]


@pytest.mark.parametrize("row", CAPABILITIES, ids=lambda row: row[0])
def test_capabilities_of_the_page_are_the_models(row: list[str]) -> None:
    name, number, *stated = row

    assert getattr(uapi, f"KVM_CAP_{name}") == int(number)
    assert [answers(profile, int(number)) for profile in ("v6.12", "v6.18", "v7.2")] == stated


def test_the_page_has_the_numbers_of_the_ioctls() -> None:
    stated = {row[0]: int(row[5], 16) for row in rows(section("ioctl numbers")) if row[0] != "ioctl"}
    unused = stated.pop("KVM_GET_DIRTY_LOG")  # no backend needs it

    assert {name: IOCTLS[name].number for name in stated} == stated
    assert unused == 0x4010AE42


def walked(vm: Vm, gpa: int, size: int, file: GuestMemfd | None = None) -> list[str]:
    """The names of the checks that one request for slot 0 meets, after those of the descriptor."""
    with observing() as seen:
        vm.set_user_memory_region2(0, gpa=gpa, size=size, guest_memfd=file)
    names = [each.name for each in seen if each.passed is not None]
    return names[names.index("v1-flags") :]


def test_checks_of_the_region_ioctl_come_in_the_order_of_the_page() -> None:
    order = [row[0] for row in rows(section("Order of checks")) if re.fullmatch(r"[a-z0-9-]+-[a-z0-9-]+", row[0])]
    with guestmem.open("model", profile="v7.2") as kvm:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        file = vm.create_guest_memfd(SIZE)
        requests = {
            "create": walked(vm, 0, SIZE, file),
            "delete": walked(vm, 0, 0),
            "create without a file": walked(vm, 0, SIZE),
            "move": walked(vm, SIZE, SIZE),
        }

    assert {check for checks in requests.values() for check in checks} == set(order)
    for request, checks in requests.items():
        assert checks == [check for check in order if check in checks], request


def test_checks_of_a_conversion_come_in_the_order_of_the_page() -> None:
    stated = [row[0] for row in rows(section("Order of checks of a conversion"))][1:]
    with guestmem.open("model", profile="v7.4") as kvm, observing() as seen:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        vm.create_guest_memfd(SIZE, guestmem.GUEST_MEMFD_FLAG_INIT_SHARED).make_private(0, SIZE)
    walked = [each.name for each in seen if each.passed is not None]

    assert walked[walked.index("reserved-zero") - 1 :] == stated


def errno_of(call: Callable[[], None]) -> str:
    """How a call ends: the errno's name, or 0."""
    try:
        call()
    except guestmem.KvmError as refused:
        return refused.name
    return "0"


def differences(profile: str) -> dict[str, str]:
    """What the model answers to the requests that kernels answer differently."""
    with guestmem.open("model", profile=profile) as kvm:
        default = kvm.create_vm(guestmem.KVM_X86_DEFAULT_VM)
        on_default = default.create_guest_memfd(SIZE)
        bind_on_default = errno_of(lambda: default.set_user_memory_region2(0, gpa=0, size=SIZE, guest_memfd=on_default))
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM) if profile != "v6.18" else default
        file = vm.create_guest_memfd(SIZE)
        vm.set_user_memory_region2(1, gpa=2 * SIZE, size=SIZE, guest_memfd=file)

        def bind(offset: int, gpa: int) -> str:
            return errno_of(
                lambda: vm.set_user_memory_region2(2, gpa=gpa, size=SIZE, guest_memfd=file, guest_memfd_offset=offset)
            )

        return {
            "flags-valid: GUEST_MEMFD on type 0": bind_on_default,
            "binding-free: errno": bind(0, 4 * SIZE),
            "binding-free: place": bind(0, 1 << 60),
            "binding-in-file: sums at 2^63": bind((1 << 63) - 0x1000, 4 * SIZE),
        }


@pytest.mark.parametrize(("column", "profile"), [(1, "v6.12"), (2, "v6.18"), (3, "v7.2"), (4, "v7.3")])
def test_the_model_differs_between_versions_as_the_page_says(column: int, profile: str) -> None:
    stated = {row[0]: row[column].replace("*", "") for row in rows(section("Order of checks")) if ": " in row[0]}
    found = differences(profile)

    assert (
        found["flags-valid: GUEST_MEMFD on type 0"]
        == {"EINVAL, on delete too": "EINVAL", "valid": "0"}[stated["flags-valid: GUEST_MEMFD on type 0"]]
    )
    assert found["binding-free: errno"] == stated["binding-free: errno"]
    place = stated["binding-free: place"].partition(" ")[0]
    assert found["binding-free: place"] == {"before": found["binding-free: errno"], "after": "EINVAL"}[place]
    assert (
        found["binding-in-file: sums at 2^63"]
        == {"unsigned: EINVAL": "EINVAL", "signed: accepted": "0"}[stated["binding-in-file: sums at 2^63"]]
    )


def test_the_harness_of_the_page_is_the_one_in_use() -> None:
    text = section("Harness")

    where = f"slot {harness.BOOT_SLOT} at GPA {harness.BOOT_GPA:#x} ({harness.BOOT_SIZE >> 10} KiB)"
    assert where in text
    assert f"answered with bytes {harness.mmio_answer(1):#x}" in text
