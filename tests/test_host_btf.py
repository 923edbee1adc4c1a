"""BTF: where members lie, in structures in structures, bit fields, arrays, and a module's split section."""

from __future__ import annotations

from pathlib import Path

import pytest
from btf_writer import ARRAY, CONST, FUNC_PROTO, TYPEDEF, UNION, BtfWriter

from guestmem.errors import BackendUnavailable
from guestmem.host.btf import Btf, BtfError
from guestmem.host.structs import load_structs, structs_of


def written() -> BtfWriter:
    writer = BtfWriter()
    u32, u64 = writer.integer("u32", 4), writer.integer("u64", 8)  # types 1 and 2
    writer.add(FUNC_PROTO, "", u32, bytes(16), vlen=2)  # a type with a tail between them
    inner = writer.struct("", 16, ("pages_4k", u64, 0), ("pages_2m", u64, 64))
    hidden = writer.struct("", 16, ("", inner, 0), ("pages", writer.array(u64, 2), 0), kind=UNION)
    stat = writer.struct("stat", 24, ("generic", u64, 0), ("", hidden, 64))
    alias = writer.add(TYPEDEF, "stat_t", writer.add(CONST, "", stat))
    writer.struct("kvm", 40, ("lock", u32, 0), ("stat", alias, 64))
    return writer


def offset(btf: Btf, path: str) -> int | None:
    member = btf.member("kvm", path)
    return None if member is None else member.start // 8


def test_a_member_lies_where_its_offset_says() -> None:
    assert offset(Btf(written().section()), "stat") == 8


def test_a_path_goes_through_aliases_into_structures() -> None:
    assert offset(Btf(written().section()), "stat.generic") == 8


def test_members_of_anonymous_structures_and_unions_are_the_outers() -> None:
    btf = Btf(written().section())

    assert offset(btf, "stat.pages_2m") == 8 + 8 + 8
    assert offset(btf, "stat.pages") == 8 + 8


def test_an_array_has_a_length_and_the_size_of_all_elements() -> None:
    btf = Btf(written().section())
    member = btf.member("kvm", "stat.pages")
    assert member is not None

    assert (btf.length(member.type), btf.size(member.type)) == (2, 16)


def test_what_is_no_array_has_no_length() -> None:
    btf = Btf(written().section())
    member = btf.member("kvm", "stat")
    assert member is not None

    with pytest.raises(BtfError, match="no array"):
        btf.length(member.type)


@pytest.mark.parametrize("path", ["nothing", "stat.nothing", "lock.deeper"])
def test_a_member_that_is_not_there_is_none(path: str) -> None:
    assert offset(Btf(written().section()), path) is None


def test_a_structure_that_is_not_there_is_none() -> None:
    assert Btf(written().section()).struct("inode") is None


def test_a_bit_field_has_its_first_bit_and_its_width() -> None:
    writer = BtfWriter()
    u32 = writer.integer("u32", 4)
    bits = writer.struct("", 4, ("level", u32, 4 << 24), ("invalid", u32, 1 << 24 | 12), widths=True)
    writer.struct("kvm_mmu_page_role", 4, ("word", u32, 0), ("", bits, 0), kind=UNION)

    member = Btf(writer.section()).member("kvm_mmu_page_role", "invalid")

    assert member is not None
    assert (member.start, member.width) == (12, 1)


def test_a_modules_types_go_on_where_the_kernels_end() -> None:
    kernel = written()
    module = BtfWriter(kernel.count, len(kernel.strings))
    module.struct("kvm_memslots", 16, ("generation", 2, 64), ("slots", module.array(8, 3), 0))
    btf = Btf(module.section(), Btf(kernel.section()))

    generation, slots = (btf.member("kvm_memslots", name) for name in ("generation", "slots"))
    assert generation is not None
    assert slots is not None
    assert (generation.start, btf.size(generation.type)) == (64, 8)
    assert btf.size(slots.type) == 3 * 24
    assert btf.member("kvm", "stat") is not None  # the kernel's own are still there


def test_a_modules_structure_may_be_named_by_a_string_of_the_kernel() -> None:
    kernel = written()
    at = kernel.strings.index(b"\0stat_t\0") + 1
    module = BtfWriter(kernel.count, len(kernel.strings))
    module.struct(at, 8, ("here", 2, 0))

    assert Btf(module.section(), Btf(kernel.section())).member("stat_t", "here") is not None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF" + bytes(60), written().section()[:40], written().section()[:-4]],
    ids=["empty", "ELF", "types cut", "strings cut"],
)
def test_what_is_no_btf_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(BtfError, match="needed BTF"):
        Btf(data)


def test_a_type_of_an_unknown_kind_is_refused() -> None:
    writer = written()
    writer.add(25, "", 0)

    with pytest.raises(BtfError, match="kind that is not known"):
        Btf(writer.section())


def test_aliases_without_end_are_refused() -> None:
    writer = BtfWriter()
    writer.struct("kvm", 8, ("loop", 2, 0))
    writer.add(TYPEDEF, "loop_t", 2)

    btf = Btf(writer.section())
    member = btf.member("kvm", "loop")
    assert member is not None
    with pytest.raises(BtfError, match="without end"):
        btf.size(member.type)


def test_an_array_of_a_type_that_is_not_there_is_refused() -> None:
    writer = BtfWriter()
    writer.add(ARRAY, "", 0, (99).to_bytes(4, "little") + bytes(4) + (1).to_bytes(4, "little"))

    with pytest.raises(BtfError, match="no type 99"):
        Btf(writer.section()).size(1)


def test_a_kernel_without_a_needed_member_is_said_to_be_unknown() -> None:
    with pytest.raises(BackendUnavailable, match=r"no kvm\.vm_list"):
        structs_of(Btf(written().section()))


def test_a_kernel_without_btf_names_the_option_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="CONFIG_DEBUG_INFO_BTF"):
        load_structs(tmp_path)


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF")
def test_the_running_kernels_own_types_can_be_read() -> None:
    btf = Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    number = btf.struct("list_head")
    assert number is not None

    assert btf.size(number) == 16
    previous = btf.member("list_head", "prev")
    assert previous is not None
    assert previous.start == 64
