"""A process's mappings: what backs them, in which pages, whether they may become huge, and what they are windows on."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.host.mappings import HostMapping, ThpSettings, parse_smaps, read_thp_settings
from guestmem.host.regions import region_of

K, MIB = 1024, 1 << 20
ALWAYS, MADVISE, NEVER = True, None, False
EVERYWHERE = ThpSettings(ALWAYS, ALWAYS)


def smaps(path: str = "", flags: str = "rd wr mr mw me ac sd", offset: int = 0, **fields: str) -> str:
    lines = [f"7f0000000000-7f0000400000 rw-p {offset:08x} 00:01 77 {path}".rstrip()]
    lines += [f"{name}:   {value}" for name, value in fields.items()]
    return "\n".join([*lines, f"VmFlags: {flags}", ""])


def only(text: str, thp: ThpSettings = EVERYWHERE) -> HostMapping:
    (found,) = parse_smaps(text, thp)
    return found


@pytest.mark.parametrize(
    ("path", "flags", "kind"),
    [
        ("", "rd wr", "anonymous"),
        ("[heap]", "rd wr", "anonymous"),
        ("/memfd:memory-backend-memfd (deleted)", "rd wr sh", "shmem"),
        ("/dev/shm/guest", "rd wr sh", "shmem"),
        ("/anon_hugepage (deleted)", "rd wr ht", "hugetlb"),
        ("/dev/hugepages/qemu/ram", "rd wr sh ht", "hugetlb"),
        ("/[kvm-gmem] (deleted)", "rd wr sh", "guest_memfd"),
        ("/dev/vfio/12", "rd wr sh pf io", "device"),
        ("anon_inode:[vfio-device]", "rd wr sh pf io", "device"),
        ("/var/lib/images/disk.img", "rd wr sh", "file"),
    ],
)
def test_what_backs_a_mapping_is_known_by_its_path_and_flags(path: str, flags: str, kind: str) -> None:
    assert only(smaps(path, flags)).kind == kind


@pytest.mark.parametrize(
    ("setting", "flags", "granted"),
    [
        (ALWAYS, "rd wr", True),
        (ALWAYS, "rd wr nh", False),
        (MADVISE, "rd wr", False),
        (MADVISE, "rd wr hg", True),
        (MADVISE, "rd wr nh", False),
        (NEVER, "rd wr hg", False),
    ],
)
@pytest.mark.parametrize("path", ["", "/memfd:ram (deleted)"])
def test_huge_pages_are_granted_by_setting_and_advice(
    path: str, setting: bool | None, flags: str, granted: bool
) -> None:
    other = NEVER if setting else ALWAYS
    settings = ThpSettings(setting, other) if not path else ThpSettings(other, setting)

    assert only(smaps(path, flags), settings).thp is granted


def test_the_kernels_own_word_against_huge_pages_counts() -> None:
    assert only(smaps(THPeligible="0")).thp is False
    assert only(smaps(THPeligible="1")).thp is True


def test_pages_and_what_is_huge_are_bytes() -> None:
    found = only(smaps(KernelPageSize="4 kB", AnonHugePages="2048 kB", ShmemPmdMapped="0 kB", FilePmdMapped="0 kB"))

    assert (found.start, found.end, found.page_size, found.huge) == (0x7F00_0000_0000, 0x7F00_0040_0000, 4 * K, 2 * MIB)


def test_hugetlb_memory_has_its_page_size_for_certain() -> None:
    found = only(smaps("/anon_hugepage (deleted)", "rd wr ht", KernelPageSize="1048576 kB"))

    assert (found.kind, found.page_size, found.thp) == ("hugetlb", 1 << 30, False)


@pytest.mark.parametrize(
    ("enabled", "own", "answer"),
    [
        ("always [madvise] never", None, MADVISE),
        ("[always] madvise never", None, ALWAYS),
        ("always madvise [never]", None, NEVER),
        ("always madvise [never]", "always [inherit] madvise never", NEVER),
        ("always madvise [never]", "[always] inherit madvise never", ALWAYS),
        ("[always] madvise never", "always inherit madvise [never]", NEVER),
    ],
)
def test_the_setting_for_2m_pages_comes_before_that_for_all(
    enabled: str, own: str | None, answer: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "enabled").write_text(enabled)
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never deny force")
    if own is not None:
        (tmp_path / "hugepages-2048kB").mkdir()
        (tmp_path / "hugepages-2048kB" / "enabled").write_text(own)

    assert read_thp_settings(tmp_path) == ThpSettings(answer, MADVISE)


def test_a_kernel_without_huge_pages_grants_none(tmp_path: Path) -> None:
    assert read_thp_settings(tmp_path) == ThpSettings(NEVER, NEVER)


def test_neighbours_of_one_object_are_one_region() -> None:
    low = HostMapping(0x1000, 0x3000, "shmem", path="/memfd:ram (deleted)", offset=0)
    high = HostMapping(0x3000, 0x9000, "shmem", path="/memfd:ram (deleted)", offset=0x2000)
    other = HostMapping(0x9000, 0xA000, "shmem", path="/memfd:ram (deleted)", offset=0)

    assert region_of(0x4000, [low, high, other]) == region_of(0x1000, [low, high, other])
    assert region_of(0x4000, [low, high, other]).start == 0x1000
    assert region_of(0x4000, [low, high, other]).name == "ram@1000"
    assert region_of(0x9000, [low, high, other]).start == 0x9000


def test_an_address_outside_of_every_mapping_is_a_region_of_its_own() -> None:
    assert region_of(0x5000, []).start == 0x5000
