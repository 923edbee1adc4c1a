"""docs/kernel-behaviour.md says in words what the code has as data: capabilities, ioctls, the order of checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import guestmem
from guestmem import uapi
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
    """The names of the checks that one request for slot 0 meets."""
    with observing() as seen:
        vm.set_user_memory_region2(0, gpa=gpa, size=size, guest_memfd=file)
    return [each.name for each in seen if each.passed is not None]


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
