"""The backend of the lab is the guest's backend: the same calls, the same values, the same refusals.

The guest here is a process with the model behind its agent, so that the model itself says what must come back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from fake_lab import AGENT, fake_machine, is_running

import guestmem
from guestmem.backend import METHODS, Backend
from guestmem.errors import BackendUnavailable, HostSignal, KvmError, NotVisible
from guestmem.lab import channel
from guestmem.lab.backend import LabBackend
from guestmem.lab.errors import LabFailed, SessionFailed
from guestmem.lab.machine import LabMachine
from guestmem.model.process import Process
from guestmem.model.profiles import profile_named
from guestmem.objects import Kvm
from guestmem.recordings.outcome import Outcome
from guestmem.recordings.reader import Sequence, read_sequences
from guestmem.recordings.runner import Runner

RECORDINGS = sorted((Path(__file__).parent.parent / "examples" / "recordings").glob("v6.12-*.jsonl.gz"))


class Travelled(Exception):
    """A call got as far as the channel."""


@pytest.fixture(scope="module")
def machine() -> Iterator[LabMachine]:
    with fake_machine() as machine:
        yield machine


@pytest.fixture
def lab(machine: LabMachine) -> Iterator[LabBackend]:
    with LabBackend.on(machine) as backend:
        yield backend


def outcomes(backend: Backend, sequence: Sequence) -> list[Outcome]:
    runner = Runner(backend)
    return [runner.run(operation) for operation in sequence.operations]


def test_every_call_of_the_protocol_travels_with_its_arguments_in_order(lab: LabBackend) -> None:
    for name, function in METHODS.items():
        if name == "shutdown":
            continue
        names = [each for each in inspect.signature(function).parameters if each != "self"]
        with mock.patch.object(lab, "_call", side_effect=Travelled) as travelled, pytest.raises(Travelled):
            getattr(lab, name)(**{each: position for position, each in enumerate(names)})

        travelled.assert_called_once_with(name, *range(len(names)))


def test_the_calls_of_the_protocol_are_those_that_may_be_asked_for() -> None:
    assert {
        "open_kvm",
        "close",
        "create_vm",
        "set_memory_attributes",
        "run_touch",
        "mapped_pages",
    } <= METHODS.keys()
    assert not [name for name in METHODS if name.startswith("_")]


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_recording_gives_on_the_lab_what_it_gives_on_what_is_in_it(machine: LabMachine, recording: Path) -> None:
    for sequence in read_sequences(recording):
        with LabBackend.on(machine) as lab, Process(profile_named("v6.12")) as model:
            assert outcomes(lab, sequence) == outcomes(model, sequence), sequence.begin.seq


def test_the_objects_work_over_it(lab: LabBackend) -> None:
    kvm = Kvm(lab)
    vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    gmem = vm.create_guest_memfd(0x200000)
    hva = kvm.anonymous(0x200000)
    vm.set_user_memory_region2(0, gpa=0, size=0x200000, userspace_addr=hva, guest_memfd=gmem)
    vm.set_memory_attributes(0, 0x1000, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    vcpu = vm.create_vcpu()
    vcpu.write(0, 0x1234)
    assert (vcpu.read(0), kvm.read(hva)) == (0x1234, 0)


def test_the_count_of_what_is_mapped_comes_with_its_sizes(lab: LabBackend) -> None:
    vm = lab.create_vm(lab.open_kvm(), 0)
    lab.set_user_memory_region(vm, 0, 0, 0, 4096, lab.anonymous(4096, 3, 4096))
    lab.run_touch(lab.create_vcpu(vm, 0), None, [guestmem.backend.Touch(0, "w", 8, 1)])
    assert lab.mapped_pages(vm) == {4096: 1}


def test_a_refusal_says_all_that_it_said_in_the_guest(lab: LabBackend) -> None:
    with Process(profile_named("v6.12")) as model:
        refusals = []
        for backend in (lab, model):
            with pytest.raises(KvmError) as refused:
                backend.create_guest_memfd(backend.create_vm(backend.open_kvm(), 1), 4097, 0)
            refusals.append(refused.value)
    assert str(refusals[0]) == str(refusals[1])
    assert refusals[0].check
    assert refusals[0].errno == 22


def test_a_signal_is_raised_here_as_there(lab: LabBackend) -> None:
    with pytest.raises(HostSignal) as raised:
        lab.host_read(0x1000, 8)
    assert raised.value.signal == "SIGSEGV"


@pytest.mark.parametrize(
    ("there", "here"),
    [("NotVisible('not shown')", NotVisible), ("BackendUnavailable('no kvm')", BackendUnavailable)],
)
def test_what_a_backend_cannot_do_is_raised_here_as_there(there: str, here: type[Exception]) -> None:
    broken = f"type('B', (), {{'open_kvm': lambda self: (_ for _ in ()).throw({there})}})()"
    guest = "from guestmem.errors import *\n" + AGENT.replace('Process(profile_named("v6.12"))', broken)
    with fake_machine(guest) as machine, LabBackend.on(machine) as lab, pytest.raises(here):
        lab.open_kvm()


def test_an_answer_of_the_wrong_type_is_not_passed_on() -> None:
    wrong = "type('B', (), {'open_kvm': lambda self: 'three'})()"
    guest = AGENT.replace('Process(profile_named("v6.12"))', wrong)
    with fake_machine(guest) as machine, LabBackend.on(machine) as lab, pytest.raises(channel.ProtocolError):
        lab.open_kvm()


def test_a_batch_of_calls_is_one_round_trip_in_order(lab: LabBackend) -> None:
    done = lab.batch(
        [
            channel.Call("open_kvm"),
            channel.Call("create_vm", (None, 0), ((0, 0),)),
            channel.Call("create_guest_memfd", (None, 4096, 0), ((0, 1),)),
            channel.Call("fstat", (None,), ((0, 2),)),
        ]
    )
    assert all(isinstance(outcome, channel.Returned) for outcome in done)
    assert lab.batch([]) == ()


def test_backends_on_one_machine_are_processes_of_their_own(machine: LabMachine) -> None:
    with LabBackend.on(machine) as first, LabBackend.on(machine) as second:
        kvm = first.open_kvm()
        with pytest.raises(KvmError) as refused:
            second.check_extension(kvm, 10)
        assert refused.value.name == "EBADF"
        first.shutdown()
        assert second.open_kvm() == kvm


def test_after_its_end_a_backend_says_so(machine: LabMachine) -> None:
    backend = LabBackend.on(machine)
    backend.shutdown()
    backend.shutdown()
    with pytest.raises(SessionFailed, match="shut down"):
        backend.open_kvm()


def test_a_machine_of_its_own_ends_with_it() -> None:
    machine = fake_machine()
    with LabBackend.on(machine, owns_machine=True) as backend:
        backend.open_kvm()
    assert not is_running(machine.pid)
    backend.shutdown()


def test_the_end_of_a_backend_whose_machine_is_gone_is_quiet() -> None:
    machine = fake_machine()
    with LabBackend.on(machine) as backend:
        machine.close()
        with pytest.raises(LabFailed):
            backend.open_kvm()
