"""A slot that the source shows KVM to have refused is the finding: with the check, the values and what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.layout.check import check
from guestmem.layout.coverage import HostLimits
from guestmem.layout.findings import Finding
from guestmem.layout.recognise import read
from guestmem.layout.value import Layout
from guestmem.model.profiles import PROFILES

REPORTS = Path(__file__).parent / "data" / "reports"
CREATED = "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x200000 ua=0x7f0000000000 ret=0\n"


def layouts(text: str | Path) -> list[Layout]:
    data = text.read_bytes() if isinstance(text, Path) else text.encode()
    return read("source", data)


def refused(text: str | Path, profile: str = "v7.3") -> list[Finding]:
    host = HostLimits(profile=PROFILES[profile])
    found = [finding for layout in layouts(text) for finding in check(layout, host).findings]
    return [finding for finding in found if finding.id == "refused"]


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        (
            "qemu-trace-refused-alias.txt",
            ("slot 2", "0xfeda0000", "EINVAL", "binding-free", "[0xa0000, 0xc0000) belongs to the slot at gpa [0x0"),
            "no SMM",
        ),
        ("qemu-trace-snp-pflash.txt", ("slot 2", "0xffc84000", "EINVAL", "READONLY", "SNP, TDX"), "-bios"),
        (
            "strace-refused-size.txt",
            ("slot 1", "0x80000000", "EINVAL", "size-page-aligned", "memory_size=0x700200"),
            "make memory_size 7344128",
        ),
    ],
)
def test_a_refused_call_of_a_log_is_an_error_that_names_cause_and_remedy(
    name: str, words: tuple[str, ...], remedy: str
) -> None:
    [finding] = refused(REPORTS / name)

    assert finding.severity == "error"
    assert all(word in finding.message for word in words), finding.message
    assert remedy in finding.remedy


def test_the_errno_of_the_kernel_asked_about_is_said_where_it_is_another() -> None:
    alias = REPORTS / "qemu-trace-refused-alias.txt"

    assert "EEXIST" in refused(alias, "v7.2")[0].message
    assert "EEXIST" not in refused(alias, "v6.18")[0].message


@pytest.mark.parametrize("errno", ["Invalid argument", "Bad file descriptor"])
def test_the_message_of_qemu_itself_is_enough(errno: str) -> None:
    text = (
        "qemu-system-x86_64: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=1, "
        f"start=0x100000000, size=0x1000, flags=0x4, guest_memfd=12, guest_memfd_offset=0x800: {errno}\n"
    )

    [finding] = refused(text)

    assert "slot 1, 4K at GPA 0x100000000" in finding.message
    assert ("EINVAL" if errno == "Invalid argument" else "EBADF") in finding.message
    assert "[offset-page-aligned]" in finding.message


def test_the_event_and_the_message_of_one_call_are_one_finding() -> None:
    text = (
        f"{CREATED}kvm_set_user_memory Slot#1 flags=0x0 gpa=0x100000 size=0x1000 ua=0x7f0000400000 ret=-17\n"
        "qemu: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=1, start=0x100000, size=0x1000, "
        "flags=0x0, guest_memfd=-1, guest_memfd_offset=0x0: File exists\n"
    )

    [finding] = refused(text)

    assert "EEXIST [gpa-free]" in finding.message


def test_a_call_that_the_model_takes_is_not_explained_by_guessing() -> None:
    text = f"{CREATED}kvm_set_user_memory Slot#1 flags=0x0 gpa=0x200000 size=0x1000 ua=0x7f0000400000 ret=-12\n"

    [finding] = refused(text)

    assert "ENOMEM" in finding.message
    assert "the model takes this call" in finding.message


def test_calls_before_the_refused_one_are_what_it_met_and_later_ones_are_not() -> None:
    later = "kvm_set_user_memory Slot#2 flags=0x0 gpa=0x400000 size=0x1000 ua=0x7f0000600000 ret=0\n"
    failed = "kvm_set_user_memory Slot#1 flags=0x0 gpa=0x400000 size=0x1000 ua=0x7f0000400000 ret=-17\n"

    assert "gpa-free" in refused(CREATED + later + failed)[0].message
    assert "gpa-free" not in refused(CREATED + failed + later)[0].message


def test_at_most_sixteen_refused_calls_of_a_vm_are_kept() -> None:
    calls = "".join(
        f"kvm_set_user_memory Slot#{n} flags=0x0 gpa={n << 21:#x} size=0x1 ua=0x7f0000400000 ret=-22\n"
        for n in range(1, 40)
    )

    assert len(refused(CREATED + calls)) == 16


def test_the_upper_half_of_an_old_qemus_slot_number_is_the_address_space() -> None:
    [layout] = layouts(REPORTS / "qemu8-trace-smm.txt")

    assert {(slot.address_space, slot.number) for slot in layout.slots} >= {(0, 0), (1, 0)}
    assert not refused(REPORTS / "qemu8-trace-smm.txt")
