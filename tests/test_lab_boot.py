"""The lab itself: a real kernel, booted. Run by `make test-lab`; a lab that is not built is a failure there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fake_lab import children, descriptors, eventually, is_running
from test_lab_programs import Streams, Terminal, typed

import guestmem
from guestmem import lab
from guestmem.lab import channel
from guestmem.lab.kernel import find_kernel
from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Bootable
from guestmem.objects import Kvm
from guestmem.recordings.compare import compare
from guestmem.recordings.reader import read_sequences
from guestmem.recordings.runner import Runner
from guestmem.targets import target_named
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_SW_PROTECTED_VM
from guestmem.units import MIB

pytestmark = pytest.mark.lab

RECORDINGS = sorted((Path(__file__).parent.parent / "examples" / "recordings").glob("v6.12-*.jsonl.gz"))
# Capability: its value on /dev/kvm, on a default VM, on a software-protected VM, as 6.12.117 was seen to answer.
CAPABILITIES = {
    10: (32764, 32764, 32764),
    16: (1, 1, 1),
    81: (1, 1, 1),
    118: (2, 2, 1),
    231: (1, 1, 1),
    232: (1, 1, 1),
    233: (8, 0, 8),
    234: (1, 0, 1),
    235: (3, 3, 3),
    236: (1, 1, 1),
    244: (0, 0, 0),
}


@pytest.fixture(scope="module")
def machine() -> Iterator[LabMachine]:
    with lab.boot() as machine:
        yield machine


@pytest.fixture
def backend(machine: LabMachine) -> Iterator[lab.LabBackend]:
    with lab.LabBackend.on(machine) as backend:
        yield backend


# -- what it is ------------------------------------------------------------------------------------------------------


def test_its_kernel_is_the_one_that_was_built(machine: LabMachine) -> None:
    assert machine.release.startswith("6.12.")
    assert machine.release.endswith("-guestmem")


def test_it_offers_software_protected_vms_with_attributes_and_nested_paging(backend: lab.LabBackend) -> None:
    device = backend.open_kvm()
    files = (device, backend.create_vm(device, 0), backend.create_vm(device, KVM_X86_SW_PROTECTED_VM))
    seen = {cap: tuple(backend.check_extension(fd, cap) for fd in files) for cap in CAPABILITIES}
    assert seen == CAPABILITIES


def test_guest_physical_addresses_have_40_bits(backend: lab.LabBackend) -> None:
    kvm = Kvm(backend)
    vm = kvm.create_vm(0)
    hva = kvm.anonymous(4096)
    vm.set_user_memory_region(0, gpa=(1 << 40) - 4096, size=4096, userspace_addr=hva)
    with pytest.raises(guestmem.KvmError) as refused:
        vm.set_user_memory_region(1, gpa=1 << 40, size=4096, userspace_addr=hva)
    assert refused.value.name == "EINVAL"


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_every_recorded_outcome_of_6_12_comes_out_again(machine: LabMachine, recording: Path) -> None:
    different = []
    for sequence in read_sequences(recording):
        with lab.LabBackend.on(machine) as backend:
            runner = Runner(backend)
            for operation in sequence.operations:
                verdicts = compare(operation, runner.run(operation))
                different += [verdict for verdict in verdicts if not verdict.agreed]
    assert different == []


def test_it_opens_by_name_and_ends_with_its_block() -> None:
    with guestmem.open("lab") as kvm:
        assert isinstance(kvm.backend, lab.LabBackend)
        assert kvm.check_extension(235) == 3
        machine = kvm.backend.machine
    assert not is_running(machine.pid)


def test_private_memory_of_a_guest_is_not_what_the_host_sees(backend: lab.LabBackend) -> None:
    kvm = Kvm(backend)
    vm = kvm.create_vm(KVM_X86_SW_PROTECTED_VM)
    hva = kvm.anonymous(0x200000)
    gmem = vm.create_guest_memfd(0x200000)
    vm.set_user_memory_region2(0, gpa=0, size=0x200000, userspace_addr=hva, guest_memfd=gmem)
    vcpu = vm.create_vcpu()
    vcpu.write(0x1000, 0x11)
    vm.set_memory_attributes(0x1000, 0x1000, KVM_MEMORY_ATTRIBUTE_PRIVATE)
    vcpu.write(0x1000, 0x22)
    assert (vcpu.read(0x1000), kvm.read(hva + 0x1000)) == (0x22, 0x11)


# -- programs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[Streams]:
    streams = Streams(tmp_path, b"typed\n")
    yield streams
    for file in streams.files:
        file.close()


def test_a_command_runs_on_its_kernel_with_the_hosts_files_and_input(streams: Streams) -> None:
    script = f"uname -r; test -c /dev/kvm && cat {Path(__file__).name}; cat; exit 5"
    assert streams.run("sh", "-c", f"cd {Path(__file__).parent}; {script}") == 5
    out, err = streams.written()
    release, _, rest = out.partition(b"\n")
    assert release.startswith(b"6.12.")
    assert rest == Path(__file__).read_bytes() + b"typed\n"
    assert err == b""


def test_this_interpreter_runs_in_it_too(streams: Streams) -> None:
    assert streams.run(sys.executable, "-c", "import os, msgspec; print(os.uname().release)") == 0
    assert streams.written()[0].startswith(b"6.12.")


def test_a_command_cannot_write_to_the_host(streams: Streams, tmp_path: Path) -> None:
    assert streams.run("sh", "-c", f"> {tmp_path}/new || > {Path.home()}/new || > /tmp/new") == 0
    assert b"ead-only" in streams.written()[1]
    assert not (tmp_path / "new").exists()


def test_a_command_that_eats_all_memory_is_killed_and_nothing_else(streams: Streams) -> None:
    hardware = lab.Hardware(memory=512 * MIB)
    hoard = "hoard = []\nwhile True: hoard.append(bytearray(1 << 26))"
    code = streams.run(sys.executable, "-c", hoard, hardware=hardware)
    assert code in (1, 128 + signal.SIGKILL), "MemoryError or the kernel's killer"


def test_a_command_that_loops_is_ended_at_its_time(streams: Streams) -> None:
    with pytest.raises(lab.SessionFailed, match=r"did not end within 1 s"):
        streams.run("sh", "-c", "while :; do :; done", limit_s=1)


def test_a_shell_in_it_has_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    terminal = Terminal()
    try:
        code, shown = typed(terminal, b"stty size; uname -r; exit 6\n")
    finally:
        terminal.close()
    assert code == 6
    assert b"31 97" in shown
    assert b"-guestmem" in shown


def test_kernel_arguments_make_hugepages(streams: Streams) -> None:
    hardware = lab.Hardware(kernel_arguments=("hugepagesz=2M", "hugepages=3"))
    assert streams.run("grep", "HugePages_Total", "/proc/meminfo", hardware=hardware) == 0
    assert streams.written()[0].split() == [b"HugePages_Total:", b"3"]


# -- how it ends -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = children(), descriptors()
    yield
    if "machine" not in request.fixturenames:
        assert (children(), descriptors()) == before


def test_two_labs_at_once_do_not_know_of_each_other() -> None:
    with lab.open_backend() as first, lab.open_backend() as second:
        assert first.open_kvm() == second.open_kvm()
        os.kill(first.machine.pid, signal.SIGKILL)
        with pytest.raises(lab.LabFailed, match="killed by signal 9"):
            first.create_vm(3, 0)
        assert second.check_extension(second.create_vm(3, 1), 233) == 8


def test_a_killed_lab_is_noticed_in_the_middle_of_a_call() -> None:
    with lab.open_backend() as backend:
        kvm = backend.open_kvm()
        threading.Timer(0.5, os.kill, (backend.machine.pid, signal.SIGKILL)).start()
        with pytest.raises(lab.LabFailed, match="killed by signal 9"):
            backend.batch([channel.Call("check_extension", (kvm, 10))] * 1_000_000)


def test_a_hung_lab_is_noticed_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestmem.lab.machine._END_LIMIT_S", 1.0)
    with lab.boot() as machine, lab.LabBackend.on(machine, answer_limit_s=1.0) as backend:
        kvm = backend.open_kvm()
        os.kill(machine.pid, signal.SIGSTOP)
        with pytest.raises(lab.LabFailed, match=r"no answer to Batch within 1 s, and no process could be ended"):
            backend.check_extension(kvm, 10)
        assert not is_running(machine.pid)


def test_a_kernel_that_is_none_is_told_with_qemus_words(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"not a kernel")
    image = os.memfd_create("empty")
    try:
        with pytest.raises(lab.LabFailed, match=r"QEMU ended with 1: (.|\n)*kernel"):
            LabMachine.boot(Bootable(tmp_path / "vmlinux"), image, lab.Hardware())
    finally:
        os.close(image)


def test_a_panic_of_its_kernel_is_told_with_the_console() -> None:
    image = os.memfd_create("empty")  # without a first process
    try:
        with pytest.raises(lab.LabFailed, match=r"QEMU ended with 0(.|\n)*Kernel panic"):
            LabMachine.boot(find_kernel().bootable, image, lab.Hardware())
    finally:
        os.close(image)


OWNER = """
import sys
sys.path[:0] = [{tests!r}]
from fake_lab import children
from guestmem import lab
from guestmem.lab.channel import Call
backend = lab.open_backend()
kvm = backend.open_kvm()
print(backend.machine.pid, *children(), flush=True)
backend.batch([Call("check_extension", (kvm, 10))] * 1_000_000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_is_left_of_a_lab_whose_owner_is_killed_in_the_middle_of_a_call(how: signal.Signals) -> None:
    started = killed_owner(how)
    assert len(started) >= 2
    assert eventually(lambda: not any(is_running(pid) for pid in started))


def test_the_lab_ends_by_itself_when_nobody_is_left_to_end_it() -> None:
    started = killed_owner(signal.SIGKILL, with_keeper=True)
    assert eventually(lambda: not any(is_running(pid) for pid in started))


def killed_owner(how: signal.Signals, *, with_keeper: bool = False) -> list[int]:
    """Start a process with a busy lab, kill it; the processes it had started, the lab's first."""
    code = OWNER.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as owner:
        assert owner.stdout
        machine, *others = (int(word) for word in owner.stdout.readline().split())
        if with_keeper:
            for pid in set(others) - {machine}:
                os.kill(pid, signal.SIGKILL)
        assert is_running(machine)
        owner.send_signal(how)
        owner.communicate()
    return [machine, *others]


def test_a_command_started_below_tmp_finds_itself_there(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("of the host")
    monkeypatch.chdir(tmp_path)

    assert streams.run("sh", "-c", "pwd; cat file; ! touch file") == 0
    assert streams.written()[0] == f"{tmp_path}\nof the host".encode()


def test_a_whole_sequence_in_the_guest_is_answered_as_each_call_is() -> None:
    sequences = list(read_sequences(RECORDINGS[0]))[:40]
    with closing(target_named("lab")) as whole:
        one_by_one = replace(whole, far=None)
        for sequence in sequences:
            found = [list(each.run(sequence.begin, sequence.operations)) for each in (whole, one_by_one)]
            assert found[0] == found[1], sequence.begin.seq
