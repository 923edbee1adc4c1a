"""What a call can carry, on every backend alike; and that the model makes one call at a time, each to its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import PRIVATE, P
from program import Guestmem

import guestmem
from guestmem.backend import Backend, Touch
from guestmem.errors import CallUnfinished, InputError
from guestmem.lab.backend import LabBackend
from guestmem.model.invariants import check_process
from guestmem.model.process import Process
from guestmem.objects import Kvm, Vm

REGION = {"slot": 0, "flags": 0, "gpa": 0, "size": P, "userspace_addr": 0}
ATTRIBUTES = {"address": 0, "size": P, "attributes": 0, "flags": 0}
CONVERSION = {"offset": 0, "size": P, "attributes": 8, "flags": 0}
MMAP = {"length": P, "prot": 3, "flags": 1, "offset": 0}
RANGE = {"addr": 0, "length": P}
U32, S32, U64, S64, LENGTH = "2**32 - 1", "-2**31", "2**64 - 1", "2**63 - 1", "2**30"

# Each number of each call, just outside of what it can be.
OUTSIDE: list[tuple[str, dict[str, Any], str, int, str]] = [
    *(
        (call, REGION, name, value, limit)
        for call in ("set_user_memory_region", "set_user_memory_region2")
        for name, limit, end in (
            ("slot", U32, 1 << 32),
            ("flags", U32, 1 << 32),
            ("gpa", U64, 1 << 64),
            ("size", U64, 1 << 64),
            ("userspace_addr", U64, 1 << 64),
        )
        for value in (-1, -P, end)
    ),
    *(("set_user_memory_region2", REGION, "guest_memfd_offset", value, U64) for value in (-P, 1 << 64)),
    *(("set_user_memory_region2", REGION, "pad1", value, U32) for value in (-1, 1 << 32)),
    *(("set_memory_attributes", ATTRIBUTES, name, value, U64) for name in ATTRIBUTES for value in (-P, 1 << 64)),
    *(("gmem_set_memory_attributes", CONVERSION, name, value, U64) for name in CONVERSION for value in (-P, 1 << 64)),
    *(("create_guest_memfd", {"size": P, "flags": 0}, name, -1, U64) for name in ("size", "flags")),
    *(("pre_fault_memory", {"gpa": 0, "size": P, "flags": 0}, name, -P, U64) for name in ("gpa", "size", "flags")),
    *((call, {argument: 0}, argument, value, U64) for call, argument in (("create_vm", "type"), ("create_vcpu", "id"))
      for value in (-1, 1 << 70)),
    *(("check_extension", {"cap": 0}, "cap", value, U64) for value in (-1, 1 << 64)),
    *(("fallocate", {"mode": 1, "offset": 0, "len": P}, name, 1 << 64, S64) for name in ("offset", "len")),
    ("fallocate", {"mode": 1, "offset": 0, "len": P}, "mode", 1 << 32, S32),
    ("ftruncate", {"length": 0}, "length", 1 << 63, S64),
    ("lseek", {"offset": 0, "whence": 0}, "offset", -(1 << 63) - 1, S64),
    ("lseek", {"offset": 0, "whence": 0}, "whence", -(1 << 31) - 1, S32),
    ("reopen", {"oflags": 0}, "oflags", 1 << 32, S32),
    *((call, {"len": 8}, "len", value, LENGTH) for call in ("read", "write") for value in (-1, (1 << 30) + 1)),
    *((call, {"len": 8, "offset": 0}, "len", -1, LENGTH) for call in ("pread", "pwrite")),
    ("pwrite", {"len": 8, "offset": 0}, "offset", 1 << 63, S64),
    *(("anonymous", {"size": P, "prot": 3, "align": P}, "size", value, U64) for value in (-1, 1 << 64)),
    *(("anonymous", {"size": P, "prot": 3, "align": P}, "align", value, "a power of two") for value in (-P, 0, 3)),
    ("mmap", MMAP, "length", -1, U64),
    ("mmap", MMAP, "prot", 1 << 32, S32),
    ("mmap", MMAP, "offset", 1 << 64, S64),
    *(("munmap", RANGE, name, value, U64) for name in RANGE for value in (-P, 1 << 64)),
    ("mprotect", {**RANGE, "prot": 3}, "prot", 1 << 32, S32),
    ("madvise", {**RANGE, "advice": 4}, "advice", 1 << 32, S32),
    *(("host_read", {"addr": 0, "size": 8}, "addr", value, U64) for value in (-1, 1 << 64)),
    *(("host_read", {"addr": 0, "size": 8}, "size", value, "1, 2, 4 or 8") for value in (-8, 0, 3)),
    *(("host_write", {"addr": 0, "size": 8, "value": 0}, "value", value, U64) for value in (-1, 1 << 64)),
]  # fmt: skip


@pytest.mark.parametrize("profile", ["v6.12", "v6.18", "v7.2"])
@pytest.mark.parametrize(("call", "arguments", "name", "value", "limit"), OUTSIDE)
def test_a_number_that_the_call_cannot_carry_is_refused_by_name_and_range(
    kvm: Kvm, call: str, arguments: dict[str, Any], name: str, value: int, limit: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name} of {call} must be ") as refused:
        _made(kvm.backend, call, {**arguments, name: value})

    assert limit in str(refused.value)
    assert f"{value:#x}" in str(refused.value)
    assert not isinstance(refused.value, InputError)  # it is no file of the user's that has it


@pytest.mark.parametrize("value", [1.5, None, "4K"])
def test_what_is_no_integer_is_a_type_error_that_names_it(vm: Vm, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^gpa of set_user_memory_region2 must be an integer"):
        vm.set_user_memory_region2(0, gpa=value, size=P)


@pytest.mark.parametrize("words", [[-1], [0, 1 << 64]])
def test_each_of_the_reserved_words_is_one_of_64_bits(vm: Vm, words: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^reserved of create_guest_memfd must be from 0 to 2\*\*64 - 1 each"):
        vm.backend.create_guest_memfd(vm.fd, P, 0, words)


@pytest.mark.parametrize(
    ("gpa", "size", "value"), [(-8, 8, 0), (1 << 64, 8, 0), (0, 3, 0), (0, 8, 1 << 64), (0, 8, -1)]
)
def test_a_touch_is_one_that_an_instruction_can_make(gpa: int, size: int, value: int) -> None:
    with pytest.raises(ValueError, match="touch"):
        Touch(gpa, "w", size, value)
    with pytest.raises(InputError, match="crosses a page"):
        Touch(P - 4, "r", 8)


def test_every_number_at_its_limit_reaches_the_kernel(kvm: Kvm, vm: Vm) -> None:
    for slot, gpa in ((1 << 32) - 1, 0), (0, (1 << 64) - P), (0, (1 << 64) - 1):
        with pytest.raises(guestmem.KvmError, match="EINVAL"):
            vm.set_user_memory_region2(slot, gpa=gpa, size=P)
    assert kvm.check_extension((1 << 64) - 1) == 0


def test_the_lab_refuses_before_anything_travels() -> None:
    lab: LabBackend = object.__new__(LabBackend)  # type: ignore[type-abstract]

    with pytest.raises(ValueError, match=r"^type of create_vm must be "):
        lab.create_vm(3, -1)


def _made(backend: Backend, call: str, arguments: dict[str, Any]) -> None:
    values = list(arguments.values())
    if call == "set_user_memory_region2":
        values[5:] = [-1, arguments.get("guest_memfd_offset", 0), arguments.get("pad1", 0)]
    on_memory = call in ("anonymous", "munmap", "mprotect", "madvise", "host_read", "host_write")
    getattr(backend, call)(*([] if on_memory else [-1]), *values)


# -- one call at a time ------------------------------------------------------------------------------------------------


def _setting_attributes(vm: Vm) -> None:
    vm.set_memory_attributes(0, 4 * P, PRIVATE)


def _binding(vm: Vm) -> None:
    vm.set_user_memory_region2(1, gpa=16 * P, size=P, guest_memfd=vm.create_guest_memfd(P))


def _deleting(vm: Vm) -> None:
    vm.delete_region(0)


@contextmanager
def _interrupted_at(line: int) -> Iterator[None]:
    """A KeyboardInterrupt at the line-th line of the model or of the map of runs that is executed."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if "guestmem/model" not in frame.f_code.co_filename and "guestmem/runmap" not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("operation", [_setting_attributes, _binding, _deleting])
def test_after_an_interrupt_the_model_is_as_it_was_or_says_that_it_must_be_opened_anew(
    operation: Callable[[Vm], None],
) -> None:
    refused = 0
    for line in range(1, 2000):
        kvm = guestmem.open("model")
        vm = kvm.create_vm(1)
        gmem = vm.create_guest_memfd(4 * P)
        vm.set_user_memory_region2(0, gpa=0, size=4 * P, userspace_addr=kvm.anonymous(4 * P), guest_memfd=gmem)
        vm.create_vcpu().write(0, 1)
        try:
            with _interrupted_at(line):
                operation(vm)
        except KeyboardInterrupt:
            try:
                kvm.anonymous(P)
                check_process(kvm.model)
            except CallUnfinished:
                refused += 1
                kvm.backend.shutdown()  # no error that would hide the interrupt
        else:
            check_process(kvm.model)
            assert refused > 20
            return
    pytest.fail("the operation has no end")


def test_a_refusal_is_the_end_of_a_call(vm: Vm) -> None:
    for _ in range(2):
        with pytest.raises(guestmem.KvmError, match="EINVAL"):
            vm.delete_region(7)


def test_a_second_thread_is_refused_while_a_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    device = process.open_kvm()
    vm = process.create_vm(device, 0)
    in_the_call, answered = threading.Event(), threading.Event()

    def slowly(*arguments: object) -> None:
        in_the_call.set()
        answered.wait(10)

    monkeypatch.setattr("guestmem.model.process.set_memory_region", slowly)
    other = threading.Thread(target=lambda: process.set_user_memory_region(vm, 0, 0, 0, P, 0))
    other.start()
    in_the_call.wait(10)
    with pytest.raises(CallUnfinished, match="another thread"):
        process.create_vm(device, 0)
    answered.set()
    other.join()

    assert process.create_vm(device, 0) > vm


# -- recordings --------------------------------------------------------------------------------------------------------


def test_a_vcpu_is_not_run_as_one_of_another_vm(guestmem_command: Guestmem, tmp_path: Path) -> None:
    begin = '{"op":"begin","seq":"s","i":-1,"profile":"v6.18"}\n'
    lines = (
        '{"op":"create_vm","seq":"s","i":0,"type":0,"out":"vm0"}',
        '{"op":"create_vcpu","seq":"s","i":1,"vm":"vm0","id":1,"out":"vcpu1"}',
        '{"op":"create_vm","seq":"s","i":2,"type":0,"out":"vm1"}',
        '{"op":"dup","seq":"s","i":3,"fd":"vcpu1","out":"dup0"}',
        '{"op":"run_touch","seq":"s","i":4,"vm":"vm1","vcpu":"dup0","boot_gpa":3489660928,"touches":[]}',
    )
    recording = tmp_path / "r.jsonl"
    recording.write_text(begin + "\n".join(lines) + "\n")

    ended = guestmem_command("run", recording)

    assert ended.code == 2
    assert f"{recording}:6: vCPU 'dup0' is one of 'vm0' and cannot be run as one of 'vm1'" in ended.err
