"""The parts of the virtual CPU that need no engine: page tables, exceptions, registers, statistics."""

from __future__ import annotations

import struct

import pytest

from guestmem.errors import BackendUnavailable
from guestmem.exec import statistics
from guestmem.exec.vcpu import cpuid, engine
from guestmem.exec.vcpu.deliver import Frame, deliver
from guestmem.exec.vcpu.state import CPUID_ENTRY, CpuState
from guestmem.exec.vcpu.stops import Access, GuestException, Internal, NoMemory, Shutdown
from guestmem.exec.vcpu.walk import Control, walk

PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 1, 2, 4, 0x80, 1 << 63
LONG_MODE = Control(cr0=0x80010001, cr3=0x1000, cr4=0x20, efer=0xD00)  # WP, NXE
ADDRESS = 0x0000_1234_5678_9ABC
INDEXES = [ADDRESS >> shift & 511 for shift in (39, 30, 21, 12)]


def tables(*flags: int, leaf: int = 0x77000) -> dict[int, int]:
    """Page tables at 0x1000, 0x2000, ... for ADDRESS; one entry per flag, the last one the leaf."""
    memory = {}
    for level, flag in enumerate(flags):
        target = leaf if level == len(flags) - 1 else 0x1000 * (level + 2)
        memory[0x1000 * (level + 1) + 8 * INDEXES[level]] = target | flag
    return memory


def walked(memory: dict[int, int], access: Access = "r", control: Control = LONG_MODE) -> tuple[int, bool, bool]:
    return walk(lambda gpa: memory.get(gpa, 0), control, ADDRESS, access)


def fault(memory: dict[int, int], access: Access, control: Control = LONG_MODE) -> int | None:
    with pytest.raises(GuestException) as caught:
        walked(memory, access, control)
    assert caught.value.vector == 14
    assert caught.value.address == ADDRESS
    return caught.value.code


def test_four_levels_lead_to_the_page() -> None:
    assert walked(tables(3, 3, 3, 3)) == (0x77000, True, True)


def test_a_large_page_keeps_the_address_within_it() -> None:
    assert walked(tables(3, 3, 3 | LARGE, leaf=0x4000_0000)) == (0x4000_0000 + (ADDRESS & 0x1FF000), True, True)


def test_an_entry_that_is_not_present_is_a_page_fault_with_its_access() -> None:
    memory = tables(3, 3, 3, 0)

    assert fault(memory, "r") == 0
    assert fault(memory, "w") == 2
    assert fault(memory, "x") == 16


def test_every_level_must_allow_a_store() -> None:
    memory = tables(3, PRESENT, 3, 3)

    assert walked(memory) == (0x77000, False, True)
    assert fault(memory, "w") == 3


def test_the_supervisor_may_store_to_read_only_pages_without_write_protect() -> None:
    without = Control(cr0=0x80000001, cr3=0x1000, cr4=0x20, efer=0xD00)

    assert walked(tables(3, 3, 3, PRESENT), "w", without)[1]


def test_no_execute_counts_at_every_level() -> None:
    assert fault(tables(3 | NO_EXECUTE, 3, 3, 3), "x") == 17


def test_user_code_needs_the_user_bit() -> None:
    user = Control(LONG_MODE.cr0, LONG_MODE.cr3, LONG_MODE.cr4, LONG_MODE.efer, user=True)

    assert walked(tables(7, 7, 7, 7), "r", user) == (0x77000, True, True)
    assert fault(tables(7, 7, 7, 3), "r", user) == 5


def test_an_address_that_is_not_canonical_is_a_general_protection_fault() -> None:
    with pytest.raises(GuestException) as caught:
        walk(lambda gpa: 0, LONG_MODE, 0x8000_0000_0000, "r")

    assert (caught.value.vector, caught.value.code) == (13, 0)


class Memory:
    """Guest-virtual memory of a few pages; everything else is as ``missing`` says."""

    def __init__(self, missing: Exception) -> None:
        self.bytes = bytearray(0x10000)
        self.missing = missing

    def read(self, address: int, size: int) -> bytes:
        if address + size > len(self.bytes):
            raise self.missing
        return bytes(self.bytes[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        if address < 0 or address + len(data) > len(self.bytes):
            raise self.missing
        self.bytes[address : address + len(data)] = data


def frame(idt: int = 0x1000, rsp: int = 0x5008) -> Frame:
    return Frame(rip=0x400, rsp=rsp, rflags=0x302, cs=8, ss=16, idt=(idt, 0xFFF), tss=0x3000)


def gate(memory: Memory, vector: int, handler: int, *, ist: int = 0, type: int = 0x8E) -> None:
    parts = handler & 0xFFFF, 8, ist, type, handler >> 16 & 0xFFFF, handler >> 32
    struct.pack_into("<HHBBHI4x", memory.bytes, 0x1000 + 16 * vector, *parts)


def test_an_exception_pushes_its_frame_on_an_aligned_stack_and_enters_the_handler() -> None:
    memory, at = Memory(Shutdown()), frame()
    gate(memory, 14, 0x1_2345_6789)

    deliver(memory, at, 14, 2)

    assert (at.rip, at.rsp) == (0x1_2345_6789, 0x5000 - 48)
    assert struct.unpack("<6Q", memory.read(at.rsp, 48)) == (2, 0x400, 8, 0x302, 0x5008, 16)
    assert at.rflags == 0x2  # neither trap nor interrupt flag


def test_a_gate_can_name_a_stack() -> None:
    memory, at = Memory(Shutdown()), frame()
    gate(memory, 6, 0x7000, ist=2)
    struct.pack_into("<Q", memory.bytes, 0x3000 + 36 + 8, 0x9000)

    deliver(memory, at, 6, None)

    assert at.rsp == 0x9000 - 40


@pytest.mark.parametrize("why", ["limit", "gate", "stack"])
def test_what_cannot_be_delivered_shuts_the_guest_down(why: str) -> None:
    memory, at = Memory(GuestException(14, 0, 0)), frame(rsp=0x100000 if why == "stack" else 0x5000)
    if why == "stack":
        gate(memory, 3, 0x7000)
    if why == "limit":
        at.idt = 0x1000, 15

    with pytest.raises(Shutdown):
        deliver(memory, at, 3, None)


def test_an_idt_that_is_mmio_is_an_internal_error_which_names_the_address() -> None:
    memory = Memory(NoMemory(0xFEED0030, "r", "mmio"))

    with pytest.raises(Internal) as caught:
        deliver(memory, frame(idt=0x20000), 3, None)

    assert caught.value.suberror == 3  # KVM_INTERNAL_ERROR_DELIVERY_EV
    assert caught.value.data[3] == 0xFEED0030


def test_a_vcpu_starts_at_the_reset_vector_outside_long_mode() -> None:
    state = CpuState(0)

    assert state.base(0) + state.general[16] == 0xFFFFFFF0
    assert not state.is_long_mode


def test_every_supported_leaf_can_be_set_and_is_what_cpuid_answers() -> None:
    state = CpuState(0)
    state.set_cpuid(cpuid.supported(40))

    assert len(state.cpuid) % CPUID_ENTRY.size == 0
    assert state.cpuid_of(0x80000008, 0)[0] & 0xFF == 40  # MAXPHYADDR
    assert state.cpuid_of(0x12345678, 0) == (0, 0, 0, 0)


def test_the_statistics_file_describes_itself() -> None:
    data = statistics.encode({4096: 7, 1 << 21: 3})
    _, name_size, count, _, descriptions, values = struct.unpack_from("<6I", data)
    found = {}
    for index in range(count):
        start = descriptions + index * (16 + name_size)
        (offset,) = struct.unpack_from("<I", data, start + 8)
        name = data[start + 16 : start + 16 + name_size].rstrip(b"\0").decode()
        (found[name],) = struct.unpack_from("<Q", data, values + offset)

    assert found == {"pages_4k": 7, "pages_2m": 3, "pages_1g": 0}


def test_without_unicorn_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(BackendUnavailable, match=r"pip install 'guestmem\[exec\]'"):
        engine.require()
