"""What KVM refuses of a layout: the model's own checks, so that ``check`` and the ioctl cannot differ."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from program import Guestmem

from guestmem.errors import KvmError
from guestmem.geometry import ARM64_4K
from guestmem.layout import HostLimits, Layout, Slot, cover
from guestmem.layout.binding import FileLimits
from guestmem.layout.reasons import Reason
from guestmem.layout.refusal import refusals
from guestmem.layout.value import File
from guestmem.model.checks import observing
from guestmem.model.process import Process
from guestmem.model.profiles import PROFILES, Machine, Profile
from guestmem.rules import DEFAULT, RULES, CreationFlags, Rule
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGETLB,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
)
from guestmem.units import GIB, KIB, MIB, TIB

P = 4 * KIB
USER_LIMIT = (1 << 56) - P
ROUNDS = 400  # layouts of each profile

Refused = tuple[str, str] | None  # errno and check

# Values that fail each check, alone and together, and values close to them that pass.
GPAS = (*(2 * n * P for n in range(12)), 2 * MIB, GIB, 1, P + 1, 1 << 40, (1 << 64) - P, (1 << 64) - 2 * P)
SIZES = (*(P, 2 * P, 3 * P) * 4, 2 * MIB, GIB, 0, 1, P + 1, 8 * TIB - P, 8 * TIB, 1 << 57, (1 << 64) - P)
OFFSETS = (*(n * P for n in range(6)), 0, 2 * MIB, GIB, 1, (1 << 63) - P, (1 << 63) - 2 * P, 1 << 63, (1 << 64) - P)
HVAS = (*(None, 0, P) * 4, 1, USER_LIMIT - 2 * P, USER_LIMIT, (1 << 64) - P)
FLAGS = (0, 0, 0, 0, 0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, 8, 1 << 16)
BOUND_FLAGS = (*(0,) * 15, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, 8)
FILE_SIZES = {"small": 4 * P, "large": 2 * GIB, "unknown": 0}


def random_slot(chance: random.Random, number: int, spaces: int) -> Slot:
    bound = chance.random() < 0.6
    return Slot(
        chance.choice(GPAS),
        chance.choice(SIZES),
        hva=chance.choice(HVAS),
        flags=chance.choice(BOUND_FLAGS) | KVM_MEM_GUEST_MEMFD if bound else chance.choice(FLAGS),
        offset=chance.choice(OFFSETS) if bound else None,
        file=chance.choice(list(FILE_SIZES)) if bound else None,
        number=chance.choice((*(number,) * 12, 32763 - number, 32764 + number)),
        address_space=chance.choice((0, 0, 0, *range(spaces))),
    )


def random_layout(chance: random.Random, spaces: int, page_size: int) -> Layout:
    slots = tuple(random_slot(chance, number, spaces) for number in range(chance.randint(1, 8)))
    files = tuple(File(name, -(-size // page_size) * page_size) for name, size in FILE_SIZES.items())
    return Layout("t", "t", slots, files)


def asked(layout: Layout, profile: Profile, vm_type: int, page_size: int, rule: Rule) -> list[Refused]:
    """What the model's ioctl says to each slot, in the layout's order; explain shows the same check last."""
    machine = Machine(vm_types=(0, 1), gpa_bits=52, user_limit=USER_LIMIT)
    answers: list[Refused] = []
    with Process(profile, machine, rule) as process:
        vm = process.create_vm(process.open_kvm(), vm_type)
        order = machine.geometry.order_of(page_size) if profile.huge else 0
        flags = GUEST_MEMFD_FLAG_HUGETLB if order else 0
        fds = {
            file.name: process.create_guest_memfd(vm, file.size or (1 << 63) - page_size, flags, [order])
            for file in layout.files
        }
        for slot in layout.slots:
            assert slot.number is not None
            with observing() as walked:
                refused: Refused = None
                try:
                    process.set_user_memory_region2(
                        vm,
                        slot.address_space << 16 | slot.number,
                        slot.flags,
                        slot.gpa,
                        slot.size,
                        slot.hva or 0,
                        fds[slot.file] if slot.file else -1,
                        slot.offset or 0,
                    )
                except KvmError as error:
                    refused = error.name, error.check
            last = [seen for seen in walked if seen.passed is not None][-1]
            assert refused is None or (last.name, last.passed) == (refused[1], False)
            answers.append(refused)
    return answers


def checked(layout: Layout, host: HostLimits) -> list[Refused]:
    found = refusals(layout, host)
    return [(found[index].name, found[index].check) if index in found else None for index, _ in enumerate(layout.slots)]


@pytest.mark.parametrize("name", PROFILES)
def test_check_and_the_models_ioctl_agree_about_errno_and_check_for_thousands_of_random_requests(name: str) -> None:
    profile, chance = PROFILES[name], random.Random(f"refusals {name}")
    seen: set[Refused] = set()
    for _ in range(ROUNDS):
        vm_type = chance.choice((0, 1)) if profile.gmem_on_any_vm else 1
        page_size = chance.choice((P, 2 * MIB, GIB)) if profile.huge else P
        rule = chance.choice(RULES) if profile.huge else DEFAULT
        layout = random_layout(chance, 1 if vm_type else 2, page_size)
        host = HostLimits(files=FileLimits(page_size if profile.huge else 0, rule), profile=profile)
        answers = asked(layout, profile, vm_type, page_size, rule)
        assert checked(layout, host) == answers, layout
        seen |= set(answers)

    overlap = "EINVAL" if name in ("v6.12", "v6.18") else "EEXIST"
    assert {
        None,
        ("EINVAL", "slot-id"),
        ("EINVAL", "flags-valid"),
        ("EINVAL", "size-page-aligned"),
        ("EINVAL", "gpa-page-aligned"),
        ("EINVAL", "hva-in-user-space"),
        ("EINVAL", "offset-page-aligned"),
        ("EINVAL", "gpa-no-wrap"),
        ("EINVAL", "slot-page-count"),
        ("EINVAL", "slot-exists"),
        ("EEXIST", "gpa-free"),
        ("EINVAL", "binding-in-file"),
        (overlap, "binding-free"),
        ("EINVAL", "gpa-mappable"),
    } <= seen, "the random requests reach every check"
    assert any(answer and answer[1].startswith("rule:") for answer in seen) == profile.huge


@pytest.mark.parametrize("space", [-1, 2, 1 << 20])
def test_an_address_space_that_no_vm_has_is_refused(space: int) -> None:
    [why] = refusals(Layout("t", "t", (Slot(0, P, address_space=space),)), HostLimits()).values()

    assert (why.name, why.check) == ("EINVAL", "address-space")


@pytest.mark.parametrize("number", [-1, 32764, 0x10000, 1 << 40])
def test_a_slot_number_that_the_ioctl_cannot_hold_is_refused(number: int) -> None:
    [why] = refusals(Layout("t", "t", (Slot(0, P, number=number),)), HostLimits()).values()

    assert (why.name, why.check) == ("EINVAL", "slot-id")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_what_a_layout_does_not_say_refuses_nothing(profile: Profile) -> None:
    slots = (
        Slot((1 << 51), 8 * TIB - P, flags=KVM_MEM_GUEST_MEMFD),
        Slot((1 << 51), 8 * TIB - P, flags=KVM_MEM_READONLY, address_space=1),
        Slot(0, GIB, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=(1 << 62)),
    )

    assert refusals(Layout("t", "t", slots), HostLimits(profile=profile)) == {}


def test_a_slot_above_what_any_x86_machine_maps_is_refused() -> None:
    inside, above = Slot((1 << 52) - P, P), Slot(1 << 52, P)
    layout = Layout("t", "t", (inside, above))

    [(index, why)] = refusals(layout, HostLimits()).items()

    assert (index, why.name, why.check) == (1, "EINVAL", "gpa-mappable")
    assert refusals(layout, HostLimits(geometry=ARM64_4K)) == {}


def test_of_two_slots_that_collide_the_lower_is_there_and_what_is_refused_collides_with_nothing() -> None:
    first, second, third = Slot(0, 2 * P), Slot(P, 2 * P), Slot(2 * P, 2 * P)

    assert list(refusals(Layout("t", "t", (third, second, first)), HostLimits())) == [1]


def test_a_slot_that_the_rule_refuses_is_lost_to_the_rule_and_its_file_range_is_free() -> None:
    flags, host = KVM_MEM_GUEST_MEMFD, HostLimits(files=FileLimits(2 * MIB, CreationFlags()))
    odd = Slot(0, 2 * MIB, flags=flags, file="f", offset=P)
    aligned = Slot(4 * MIB, 2 * MIB, flags=flags, file="f", offset=0)
    coverage = cover(Layout("t", "t", (odd, aligned)), host)

    assert [why.check for why in coverage.refused.values()] == ["rule:creation-flags"]
    assert {lost.reason for lost in coverage.slots[0].lost} == {Reason.RULE}
    assert coverage.slots[1].mapped[0] == 2 * MIB


@pytest.mark.parametrize(("profile", "errno"), [("v6.12", "EINVAL"), ("v6.18", "EINVAL"), ("v7.2", "EEXIST")])
def test_check_gives_the_errno_of_the_profile_that_was_asked_for(
    guestmem_command: Guestmem, tmp_path: Path, profile: str, errno: str
) -> None:
    table = tmp_path / "layout.toml"
    slots = "".join(
        f'[[slots]]\ngpa = {gpa}\nsize = {2 * P}\nfile = "f"\noffset = {offset}\n' for gpa, offset in ((0, 0), (MIB, P))
    )
    table.write_text(f'format = "guestmem-layout/1"\nname = "t"\n[[files]]\nname = "f"\n{slots}')

    ended = guestmem_command("check", "--json", "--profile", profile, table)

    findings = json.loads(ended.out)["sources"][0]["findings"]
    [message] = [finding["message"] for finding in findings if finding["id"] == "refused"]
    assert f"{errno} [binding-free]" in message


def test_only_the_refusals_know_the_profile() -> None:
    slot = Slot(0, 4 * MIB, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=0)
    layout = Layout("t", "t", (slot, replace(slot, gpa=GIB, offset=MIB)))
    old, new = (cover(layout, HostLimits(profile=PROFILES[name])) for name in ("v6.12", "v7.2"))

    assert (old.refused[1].name, new.refused[1].name) == ("EINVAL", "EEXIST")
    assert old.slots == new.slots
