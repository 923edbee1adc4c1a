"""Readers of kernel memory: recorded reads, /proc/kcore, and the BPF program, which answer alike."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestmem.host.bpf import BpfMemory, assemble
from guestmem.host.kcore import KcoreMemory
from guestmem.host.memory import PAGE, RecordedMemory, Unreadable, walk_list
from guestmem.host.symbols import read_symbols

RAM, IMAGE = 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8100_0000


def core(path: Path) -> Path:
    """An ELF core file of two segments: two pages of RAM at physical 0x1000, and one of the kernel's image."""
    data = bytes([1]) * PAGE + bytes([2]) * PAGE + bytes([3]) * PAGE
    first = 64 + 2 * 56
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 2)
    image = struct.pack("<IIQQQQQQ", 1, 4, first + 2 * PAGE, IMAGE, 0x100_0000, PAGE, PAGE, PAGE)
    ram = struct.pack("<IIQQQQQQ", 1, 4, first, RAM + 0x1000, 0x1000, 2 * PAGE, 2 * PAGE, PAGE)
    path.write_bytes(bytes(header) + image + ram + data)
    return path


def test_recorded_bytes_are_found_inside_of_a_longer_read() -> None:
    memory = RecordedMemory({0x1000: bytes(range(64)), 0x1004: b"\xff"})

    assert memory.read(0x1008, 4) == bytes([8, 9, 10, 11])
    assert memory.read(0x1000, 64) == bytes(range(64))


@pytest.mark.parametrize(("address", "length"), [(0xFFF, 1), (0x1000, 65), (0x103F, 2), (0, 8)])
def test_what_was_not_recorded_cannot_be_read(address: int, length: int) -> None:
    with pytest.raises(Unreadable):
        RecordedMemory({0x1000: bytes(64)}).read(address, length)


def test_pages_that_cannot_be_read_are_named_and_read_as_zeros() -> None:
    data, failed = RecordedMemory({PAGE: bytes([7]) * PAGE}).read_pages([2 * PAGE, PAGE])

    assert failed == [0]
    assert data == bytes(PAGE) + bytes([7]) * PAGE


def test_a_list_ends_at_its_head_and_a_head_of_zeros_is_empty() -> None:
    words = {0x100: 0x208, 0x208: 0x308, 0x308: 0x100, 0x400: 0}
    memory = RecordedMemory({address: value.to_bytes(8, "little") for address, value in words.items()})

    assert list(walk_list(memory, 0x100, 8, 10)) == [0x200, 0x300]
    assert list(walk_list(memory, 0x400, 8, 10)) == []


def test_a_list_without_end_is_left_after_its_limit() -> None:
    memory = RecordedMemory({0x100: (0x200).to_bytes(8, "little"), 0x200: (0x200).to_bytes(8, "little")})

    assert len(list(walk_list(memory, 0x100, 0, 5))) == 5


def test_kcore_reads_by_virtual_address(tmp_path: Path) -> None:
    memory = KcoreMemory(core(tmp_path / "kcore"))

    assert memory.read(RAM + 0x1FFF, 2) == b"\1\2"
    assert memory.read(IMAGE, 4) == b"\3\3\3\3"
    memory.close()


@pytest.mark.parametrize(
    ("address", "length"), [(RAM, 1), (RAM + 0x3000, 1), (RAM + 0x2FFF, 2), (0, 8), (IMAGE - 1, 1)]
)
def test_kcore_refuses_what_no_segment_holds(tmp_path: Path, address: int, length: int) -> None:
    memory = KcoreMemory(core(tmp_path / "kcore"))

    with pytest.raises(Unreadable):
        memory.read(address, length)
    memory.close()


def test_kcore_tells_where_physical_memory_is_mapped(tmp_path: Path) -> None:
    memory = KcoreMemory(core(tmp_path / "kcore"))

    assert memory.direct_map == RAM
    memory.close()


def test_a_file_that_is_no_core_is_refused_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "kcore"
    path.write_bytes(b"short")
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(OSError, match="no ELF core"):
        KcoreMemory(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_reader_program_has_25_instructions_and_jumps_inside_of_itself() -> None:
    code = assemble(7)
    count = len(code) // 8

    assert count == 25
    for place in range(count):
        opcode, _, offset, _ = struct.unpack_from("<BBhi", code, 8 * place)
        if opcode & 7 == 5 and opcode not in (0x85, 0x95):  # a jump, no call and no return
            assert 0 <= place + 1 + offset < count


def test_the_reader_program_names_the_map_by_its_descriptor() -> None:
    opcode, registers, _, descriptor = struct.unpack_from("<BBhi", assemble(7))

    assert (opcode, registers >> 4, descriptor) == (0x18, 2, 7)  # a 64-bit load, of a map's value


def test_symbols_are_read_and_those_of_zero_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(
        "ffffffff81000000 T _text\n"
        "ffffffff81000010 d vm_list\n"
        "ffffffffc0609bb0 d vm_list\t[kvm]\n"
        "ffffffff81000020 d vm_list\t[other]\n"
        "0000000000000000 D page_offset_base\n"
    )

    assert read_symbols(path) == {"vm_list": 0xFFFF_FFFF_C060_9BB0}
    assert read_symbols(tmp_path / "missing") == {}


@pytest.fixture
def bpf() -> Iterator[BpfMemory]:
    """The program in this machine's kernel."""
    try:
        memory = BpfMemory()
    except OSError as error:
        pytest.skip(f"BPF: {error}")
    yield memory
    memory.close()


def test_the_reader_program_finds_the_task_that_runs_it(bpf: BpfMemory) -> None:
    name = Path("/proc/thread-self/comm").read_bytes().strip()

    assert name in bpf.read(bpf.current_task(), 1 << 13)


def test_the_reader_program_reads_more_than_a_run_can_bring(bpf: BpfMemory) -> None:
    task = bpf.current_task() & -PAGE
    whole, failed = bpf.read_pages([task] * 1200)

    assert failed == []
    assert len(whole) == 1200 * PAGE


def test_a_bad_address_fails_its_own_request_only(bpf: BpfMemory) -> None:
    task = bpf.current_task() & -PAGE
    _, failed = bpf.read_pages([task, 0, task, 1 << 63])

    assert failed == [1, 3]
    with pytest.raises(Unreadable):
        bpf.read(0, 8)


def test_the_reader_leaves_no_descriptor_behind(bpf: BpfMemory) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208

    BpfMemory().close()

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
