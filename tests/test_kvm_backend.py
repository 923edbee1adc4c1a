"""The backend over /dev/kvm: what it promises in addition to the kernel's own answers.

Needs /dev/kvm and skips where there is none. What every backend must answer is tested elsewhere, on all of them.
"""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guestmem
from guestmem.backend import AuxKind, Boot, Exit, Touch
from guestmem.errors import BackendUnavailable, HostSignal, KvmError, UnexpectedExit
from guestmem.kvm import KvmBackend, files
from guestmem.recordings.compare import compare
from guestmem.recordings.reader import Sequence, read_sequences
from guestmem.recordings.runner import Runner
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_CAP_GUEST_MEMFD_FLAGS,
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_VM_TYPES,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_READONLY,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from guestmem.units import MIB

P = 4096
RW = PROT_READ | PROT_WRITE
GPA = 2 * MIB
NOWHERE = 64 * MIB  # no slot is ever set there
SHARED_FILE = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
RECORDINGS = Path(__file__).parent.parent / "examples" / "recordings"


@pytest.fixture
def backend() -> Iterator[KvmBackend]:
    """A backend, ended after the test."""
    with KvmBackend(run_limit_s=1) as backend:
        try:
            backend.close(backend.open_kvm())
        except BackendUnavailable as reason:
            pytest.skip(str(reason))
        yield backend


@pytest.fixture
def vm(backend: KvmBackend) -> int:
    """A default VM."""
    return backend.create_vm(backend.open_kvm(), 0)


@pytest.fixture
def vcpu_fd(backend: KvmBackend, vm: int) -> int:
    """The VM's vCPU 0."""
    return backend.create_vcpu(vm, 0)


@pytest.fixture
def memory(backend: KvmBackend, vm: int) -> int:
    """The address of 2 MiB of anonymous memory, slot 0 at GPA 2 MiB."""
    hva = backend.anonymous(2 * MIB, RW, 2 * MIB)
    backend.set_user_memory_region(vm, 0, 0, GPA, 2 * MIB, hva)
    return hva


def one(backend: KvmBackend, vcpu_fd: int, touch: Touch) -> list[Exit]:
    """The exits of one guest access."""
    (exits,) = backend.run_touch(vcpu_fd, None, [touch])
    return exits


def open_descriptors() -> set[str]:
    """The numbers of this process's descriptors."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# -- descriptors -----------------------------------------------------------------------------------------------------

Call = Callable[[KvmBackend, int], object]
CALLS: dict[str, Call] = {
    "close": lambda b, fd: b.close(fd),
    "dup": lambda b, fd: b.dup(fd),
    "fstat": lambda b, fd: b.fstat(fd),
    "fallocate": lambda b, fd: b.fallocate(fd, 0, 0, P),
    "ftruncate": lambda b, fd: b.ftruncate(fd, 0),
    "lseek": lambda b, fd: b.lseek(fd, 0, 0),
    "read": lambda b, fd: b.read(fd, 1),
    "write": lambda b, fd: b.write(fd, 1),
    "pread": lambda b, fd: b.pread(fd, 1, 0),
    "pwrite": lambda b, fd: b.pwrite(fd, 1, 0),
    "fsync": lambda b, fd: b.fsync(fd),
    "mmap": lambda b, fd: b.mmap(fd, P, RW, MAP_SHARED, 0),
    "check_extension": lambda b, fd: b.check_extension(fd, 0),
    "create_vm": lambda b, fd: b.create_vm(fd, 0),
    "create_vcpu": lambda b, fd: b.create_vcpu(fd, 0),
    "create_guest_memfd": lambda b, fd: b.create_guest_memfd(fd, P, 0),
    "set_user_memory_region": lambda b, fd: b.set_user_memory_region(fd, 0, 0, 0, P, 0),
    "set_user_memory_region2": lambda b, fd: b.set_user_memory_region2(fd, 0, 0, 0, P, 0, -1, 0),
    "set_memory_attributes": lambda b, fd: b.set_memory_attributes(fd, 0, P, 0, 0),
    "run_touch": lambda b, fd: b.run_touch(fd, None, [Touch(0, "r", 8)]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", ["closed vCPU", "closed VM", "never open", "negative"])
def test_every_call_on_a_descriptor_that_is_not_open_is_ebadf(
    backend: KvmBackend, vm: int, vcpu_fd: int, kind: str, call: Call
) -> None:
    """The number goes to the kernel as it is, whatever it once was."""
    fd = {"closed vCPU": vcpu_fd, "closed VM": vm, "never open": 9999, "negative": -1}[kind]
    if kind.startswith("closed"):
        backend.close(fd)

    with pytest.raises(KvmError) as refused:
        call(backend, fd)

    assert refused.value.errno == errno.EBADF


def test_pre_fault_on_a_descriptor_that_is_not_open_is_ebadf(backend: KvmBackend) -> None:
    """Its refusal comes in the result, with the range as it was."""
    done = backend.pre_fault_memory(9999, GPA, P, 0)

    assert done.refused is not None and done.refused.errno == errno.EBADF
    assert (done.gpa, done.size) == (GPA, P)


def test_nothing_can_be_reopened_that_is_not_open(backend: KvmBackend) -> None:
    """The path does not exist: ENOENT, not EBADF."""
    with pytest.raises(KvmError) as refused:
        backend.reopen(9999, os.O_RDWR)

    assert refused.value.errno == errno.ENOENT


def test_a_refusal_carries_the_values_of_the_call(backend: KvmBackend, vm: int) -> None:
    """The kernel says EINVAL only; which call it was is ours to say."""
    with pytest.raises(KvmError, match=re.escape(f"KVM_SET_USER_MEMORY_REGION(fd={vm}, slot=0x0, flags=0x0, gpa=0x1")):
        backend.set_user_memory_region(vm, 0, 0, 1, P, 0)


def test_fstat_answers_for_a_guest_memfd_only(backend: KvmBackend, vm: int) -> None:
    """Other files, regular ones too, are None."""
    stat = backend.fstat(backend.create_guest_memfd(vm, 3 * P, 0))

    assert stat is not None and (stat.st_size, stat.st_blksize, oct(stat.st_mode)) == (3 * P, P, "0o100600")
    assert [backend.fstat(fd) for fd in (vm, backend.open_aux("memfd"), backend.open_aux("devnull"))] == [None] * 3


def test_an_o_path_descriptor_is_no_guest_memfd_for_binding(backend: KvmBackend, vm: int) -> None:
    """EBADF: it names the file without having it open."""
    named = backend.reopen(backend.create_guest_memfd(vm, P, 0), os.O_PATH)

    with pytest.raises(KvmError) as refused:
        backend.set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD, 0, P, 0, named, 0)

    assert refused.value.errno == errno.EBADF


@pytest.mark.parametrize("kind", ["pipe", "eventfd"])
def test_reading_what_is_empty_does_not_wait(backend: KvmBackend, kind: AuxKind) -> None:
    with pytest.raises(KvmError, match="EAGAIN"):
        backend.read(backend.open_aux(kind), 8)


# -- the end ---------------------------------------------------------------------------------------------------------


def test_nothing_stays_open_or_mapped_after_shutdown(backend: KvmBackend) -> None:
    """Descriptors, buffers, mappings with a hole, the guest's own memory and the VM it holds open for it."""
    descriptors, mappings = open_descriptors(), Path("/proc/self/maps").read_text().count("\n")
    with KvmBackend() as other:
        vm = other.create_vm(other.open_kvm(), 0)
        vcpu_fd = other.create_vcpu(vm, 0)
        other.dup(vcpu_fd)
        memfd = other.open_aux("memfd")
        other.ftruncate(memfd, 3 * P)
        hole = other.mmap(memfd, 3 * P, RW, MAP_SHARED, 0)
        other.munmap(hole + P, P)
        hva = other.anonymous(P, RW, 2 * MIB)
        other.set_user_memory_region(vm, 0, 0, GPA, P, hva)
        assert one(other, vcpu_fd, Touch(GPA, "r", 8)) == [Exit("done", value=0)]
        addresses = [hole, hole + 2 * P, hva]

    assert open_descriptors() == descriptors
    assert "kvm-vcpu" not in Path("/proc/self/maps").read_text()
    assert abs(Path("/proc/self/maps").read_text().count("\n") - mappings) <= 2  # the allocator may take a mapping
    for addr in addresses:
        with pytest.raises(HostSignal, match="SIGSEGV"):
            backend.host_read(addr, 1)


def test_a_vcpu_runs_after_its_vm_descriptor_is_closed(backend: KvmBackend, vm: int, vcpu_fd: int, memory: int) -> None:
    """The vCPU keeps the VM alive, and the backend can still set the guest's own slot."""
    backend.close(vm)

    assert one(backend, vcpu_fd, Touch(GPA, "r", 8)) == [Exit("done", value=0)]


def test_a_copy_of_a_vcpu_descriptor_runs_the_same_vcpu(
    backend: KvmBackend, vm: int, vcpu_fd: int, memory: int
) -> None:
    """Also when the first is closed."""
    copy = backend.dup(vcpu_fd)
    backend.close(vcpu_fd)

    assert one(backend, copy, Touch(GPA, "r", 8)) == [Exit("done", value=0)]


# -- host memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_host_store_writes_its_width_and_no_more(backend: KvmBackend, size: int) -> None:
    """Little-endian, the low bytes of the value."""
    hva = backend.anonymous(P, RW, P)
    backend.host_write(hva, 8, 0xFFFF_FFFF_FFFF_FFFF)

    backend.host_write(hva, size, 0x1122_3344_5566_7788)

    kept = {1: 0xFFFF_FFFF_FFFF_FF88, 2: 0xFFFF_FFFF_FFFF_7788, 4: 0xFFFF_FFFF_5566_7788, 8: 0x1122_3344_5566_7788}
    assert backend.host_read(hva, 8) == kept[size]
    assert backend.host_read(hva, size) == 0x1122_3344_5566_7788 % 2 ** (8 * size)


@pytest.mark.parametrize("write", [False, True], ids=["load", "store"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_host_access_that_has_no_memory_reports_its_signal(backend: KvmBackend, size: int, write: bool) -> None:
    """SIGSEGV where nothing or something forbidden is mapped, SIGBUS where a file has no page."""

    def access(addr: int) -> str:
        with pytest.raises(HostSignal) as caught:
            backend.host_write(addr, size, 0) if write else backend.host_read(addr, size)
        return caught.value.signal

    memfd = backend.open_aux("memfd")
    backend.ftruncate(memfd, P)
    mapping = backend.mmap(memfd, 2 * P, RW, MAP_SHARED, 0)
    forbidden = backend.anonymous(P, 0, P)

    assert [access(addr) for addr in (0, forbidden, 1 << 63, (1 << 64) - P)] == ["SIGSEGV"] * 4
    assert access(mapping + P) == "SIGBUS"


def test_a_read_only_page_can_be_loaded_and_not_stored_to(backend: KvmBackend) -> None:
    """The same page, two answers."""
    hva = backend.anonymous(P, PROT_READ, P)

    assert backend.host_read(hva, 8) == 0
    with pytest.raises(HostSignal, match="SIGSEGV"):
        backend.host_write(hva, 8, 1)


def test_a_hole_in_a_mapping_stays_a_hole(backend: KvmBackend) -> None:
    """Nothing that is mapped later lands in it."""
    hva = backend.anonymous(3 * P, RW, P)
    backend.munmap(hva + P, P)
    later = [backend.anonymous(P, RW, P) for _ in range(8)]

    assert hva + P not in later
    with pytest.raises(HostSignal, match="SIGSEGV"):
        backend.host_read(hva + P, 1)


@pytest.mark.parametrize("align", [P, 2 * MIB, 1 << 30])
def test_anonymous_memory_lies_at_a_multiple_of_its_alignment(backend: KvmBackend, align: int) -> None:
    """Zeroed, and usable to its last byte."""
    hva = backend.anonymous(2 * P, RW, align)

    assert hva % align == 0
    assert backend.host_read(hva + 2 * P - 8, 8) == 0


# -- the guest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_guest_store_is_seen_by_the_host(backend: KvmBackend, vm: int, vcpu_fd: int, memory: int, size: int) -> None:
    """In its width, at its place."""
    exits = one(backend, vcpu_fd, Touch(GPA + 3 * P + 16, "w", size, 0x1122_3344_5566_7788))

    assert exits == [Exit("done")]
    assert backend.host_read(memory + 3 * P + 16, 8) == 0x1122_3344_5566_7788 % 2 ** (8 * size)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_host_store_is_seen_by_the_guest(backend: KvmBackend, vm: int, vcpu_fd: int, memory: int, size: int) -> None:
    """Loads give their width, zero-extended."""
    backend.host_write(memory + 2 * MIB - 8, 8, 0x8877_6655_4433_22F1)

    exits = one(backend, vcpu_fd, Touch(GPA + 2 * MIB - 8, "r", size))

    assert exits == [Exit("done", value=0x8877_6655_4433_22F1 % 2 ** (8 * size))]


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_guest_access_without_a_slot_is_mmio(backend: KvmBackend, vm: int, vcpu_fd: int, size: int) -> None:
    """Loads are answered with bytes 0x5a, stores carry their bytes."""
    load, store = backend.run_touch(
        vcpu_fd, None, [Touch(NOWHERE, "r", size), Touch(NOWHERE, "w", size, 0x1122_3344_5566_7788)]
    )

    assert load == [
        Exit("mmio", gpa=NOWHERE, len=size, is_write=0),
        Exit("done", value=int.from_bytes(b"\x5a" * size, "little")),
    ]
    data = "8877665544332211"[: 2 * size]
    assert store == [Exit("mmio", gpa=NOWHERE, len=size, is_write=1, data=data), Exit("done")]


def test_a_guest_store_to_a_read_only_slot_is_mmio(backend: KvmBackend, vm: int, vcpu_fd: int) -> None:
    """Its loads are ordinary."""
    hva = backend.anonymous(P, RW, P)
    backend.set_user_memory_region(vm, 0, KVM_MEM_READONLY, GPA, P, hva)

    load, store = backend.run_touch(vcpu_fd, None, [Touch(GPA, "r", 1), Touch(GPA, "w", 1, 7)])

    assert load == [Exit("done", value=0)]
    assert store == [Exit("mmio", gpa=GPA, len=1, is_write=1, data="07"), Exit("done")]


def test_a_guest_access_whose_host_address_is_unmapped_is_efault_without_a_reason(
    backend: KvmBackend, vm: int, vcpu_fd: int, memory: int
) -> None:
    """The touch is abandoned, and the next one works."""
    backend.munmap(memory, P)

    gone, there = backend.run_touch(vcpu_fd, None, [Touch(GPA, "w", 8, 1), Touch(GPA + P, "r", 8)])

    assert gone == [Exit("unknown", errno="EFAULT")]
    assert there == [Exit("done", value=0)]


def test_a_fetch_runs_one_instruction_and_ends(backend: KvmBackend, vm: int, vcpu_fd: int, memory: int) -> None:
    """Whatever is there: zeros, a return, a jump to itself, an instruction that traps; and loads go on working."""
    for page, code in enumerate((0, 0xC3, 0xFEEB, 0xCC)):
        backend.host_write(memory + page * P, 8, code)
        assert one(backend, vcpu_fd, Touch(GPA + page * P, "x", 1)) == [Exit("done")]
        assert one(backend, vcpu_fd, Touch(GPA + page * P, "r", 8)) == [Exit("done", value=code)]


def test_a_closed_file_under_an_mmap_slot_gives_a_memory_fault_with_flags_0(
    backend: KvmBackend, vm: int, vcpu_fd: int
) -> None:
    """The slot stays, its file is gone, and a default VM has no private accesses."""
    if backend.check_extension(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & SHARED_FILE != SHARED_FILE:
        pytest.skip("this kernel's guest_memfd cannot be mapped by the host (KVM_CAP_GUEST_MEMFD_FLAGS)")
    gmem = backend.create_guest_memfd(vm, 4 * P, SHARED_FILE)
    backend.set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD, GPA, 4 * P, 0, gmem, 0)
    assert one(backend, vcpu_fd, Touch(GPA + P, "w", 8, 7)) == [Exit("done")]
    mapping = backend.mmap(gmem, 4 * P, RW, MAP_SHARED, 0)
    assert backend.host_read(mapping + P, 8) == 7

    backend.close(gmem)
    assert one(backend, vcpu_fd, Touch(GPA + P, "r", 8)) == [Exit("done", value=7)]  # the mapping holds the file
    backend.munmap(mapping, 4 * P)

    faulted = [Exit("memory_fault", errno="EFAULT", flags=0, gpa=GPA + P, size=P)]
    assert one(backend, vcpu_fd, Touch(GPA + P + 8, "r", 8)) == faulted


def test_a_run_on_what_is_no_vcpu_is_the_kernels_own_answer(backend: KvmBackend, vm: int) -> None:
    """A bare KVM_RUN."""
    names = {}
    for name, fd in {"VM": vm, "memfd": backend.open_aux("memfd"), "devnull": backend.open_aux("devnull")}.items():
        with pytest.raises(KvmError) as refused:
            backend.run_touch(fd, None, [Touch(0, "r", 8)])
        names[name] = refused.value.name

    assert names == {"VM": "ENOTTY", "memfd": "ENOTTY", "devnull": "ENOTTY"}


def test_a_guest_that_never_ends_is_interrupted(backend: KvmBackend, vm: int, vcpu_fd: int, memory: int) -> None:
    """EINTR; and the vCPU can be run again."""
    boot = Boot(0x1000_0000, backend.anonymous(64 * 1024, RW, P))
    backend.set_user_memory_region(vm, 9, 0, boot.gpa, 64 * 1024, boot.hva)
    load = [Touch(GPA, "r", 8)]
    assert backend.run_touch(vcpu_fd, boot, load) == [[Exit("done", value=0)]]
    code = next(page for page in range(16) if backend.host_read(boot.hva + page * P, 2) == 0xB60F)  # movzx: the guest
    kept = [backend.host_read(boot.hva + code * P + offset, 2) for offset in range(0, 128, 2)]
    for offset in range(0, 128, 2):
        backend.host_write(boot.hva + code * P + offset, 2, 0xFEEB)  # jmp to itself

    with pytest.raises(KvmError, match="EINTR"):
        backend.run_touch(vcpu_fd, boot, load)

    for index, word in enumerate(kept):
        backend.host_write(boot.hva + code * P + 2 * index, 2, word)
    assert backend.run_touch(vcpu_fd, boot, load) == [[Exit("done", value=0)]]


def test_a_boot_memory_that_no_slot_maps_is_reported_as_misuse(backend: KvmBackend, vm: int, vcpu_fd: int) -> None:
    """Not as an answer of the guest."""
    hva = backend.anonymous(P, RW, P)
    backend.set_user_memory_region(vm, 0, 0, GPA, P, hva)
    boot = Boot(0x1000_0000, backend.anonymous(64 * 1024, RW, P))

    with pytest.raises(UnexpectedExit):
        backend.run_touch(vcpu_fd, boot, [Touch(GPA, "r", 8)])


# -- the machine -----------------------------------------------------------------------------------------------------


def test_a_machine_without_the_device_gets_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The device, the errno, the remedy."""
    monkeypatch.setattr(files, "DEV_KVM", str(tmp_path / "kvm"))
    with KvmBackend() as backend, pytest.raises(BackendUnavailable, match=r"kvm cannot be opened \(ENOENT\): load the"):
        backend.open_kvm()


def test_a_machine_of_another_architecture_gets_that_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is x86-64 machine code."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(BackendUnavailable, match="not Linux on aarch64"):
        KvmBackend()


def _recorded() -> list[Sequence]:
    return [sequence for path in sorted(RECORDINGS.glob("v6.18-*")) for sequence in read_sequences(path)]


@pytest.mark.parametrize("sequence", _recorded(), ids=lambda sequence: sequence.begin.seq)
def test_a_kernel_of_the_recorded_kind_answers_as_recorded(backend: KvmBackend, sequence: Sequence) -> None:
    """Linux 6.18 with only default VMs, shadow paging and no memory attributes: every outcome, one by one."""
    kvm = backend.open_kvm()
    caps = (KVM_CAP_VM_TYPES, KVM_CAP_GUEST_MEMFD_FLAGS, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_PRE_FAULT_MEMORY)
    if [backend.check_extension(kvm, cap) for cap in caps] != [1, SHARED_FILE, 0, 0]:
        pytest.skip("the recordings are of a machine with VM type 0 only and shadow paging; this one is another")
    runner = Runner(backend)

    verdicts = [verdict for operation in sequence.operations for verdict in compare(operation, runner.run(operation))]

    assert [verdict for verdict in verdicts if not verdict.agreed] == []
    assert verdicts


def test_the_objects_work_on_the_real_kernel_as_they_do_on_the_model(backend: KvmBackend) -> None:
    with guestmem.open("kvm") as kvm:
        vm = kvm.create_vm()
        hva = kvm.anonymous(2 * MIB)
        vm.set_user_memory_region2(0, gpa=GPA, size=2 * MIB, userspace_addr=hva)
        vcpu = vm.create_vcpu()

        vcpu.write(GPA + P, 0x1234)

        assert kvm.read(hva + P) == 0x1234
        with pytest.raises(guestmem.NotVisible):
            _ = vm.model


def test_a_real_kernel_takes_no_profile() -> None:
    with pytest.raises(ValueError, match="are the model's"):
        guestmem.open("kvm", profile="v6.12")
