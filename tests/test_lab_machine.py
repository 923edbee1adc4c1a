"""A lab answers, or says clearly why not, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_lab import AGENT, HANG, HELLO, children, descriptors, eventually, fake_machine, fake_qemu, is_running, labs

from guestmem.errors import BackendUnavailable
from guestmem.lab import channel
from guestmem.lab.errors import LabFailed, SessionFailed
from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Bootable, Hardware, Qemu


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = children(), descriptors()
    yield
    assert (children(), descriptors()) == before
    assert eventually(lambda: not labs())


def batch(*calls: channel.Call) -> channel.Batch:
    return channel.Batch(calls)


KVM = channel.Call("open_kvm")


def test_a_session_answers_in_order_and_a_reference_is_the_value_of_an_earlier_call() -> None:
    with fake_machine() as machine:
        session = machine.start(channel.Open())
        calls = (
            KVM,
            channel.Call("create_vm", (None, 1), ((0, 0),)),
            channel.Call("check_extension", (None, 233), ((0, 1),)),
        )
        done = machine.ask(session, batch(*calls))
        assert isinstance(done, channel.Done)
        kvm, vm, attributes = done.outcomes
        assert isinstance(kvm, channel.Returned)
        assert isinstance(vm, channel.Returned)
        assert kvm.value != vm.value
        assert attributes == channel.Returned(8)


def test_a_call_that_refers_to_a_refusal_is_not_made_and_has_its_outcome() -> None:
    with fake_machine() as machine:
        session = machine.start(channel.Open())
        calls = (
            KVM,
            channel.Call("create_vm", (None, 7), ((0, 0),)),
            channel.Call("create_vcpu", (None, 0), ((0, 1),)),
            KVM,
        )
        done = machine.ask(session, batch(*calls))
        assert isinstance(done, channel.Done)
        refused = done.outcomes[1]
        assert isinstance(refused, channel.Refused)
        assert refused.errno == 22
        assert done.outcomes[2] == refused
        assert isinstance(done.outcomes[3], channel.Returned)


@pytest.mark.parametrize(
    "call",
    [
        channel.Call("no_such_call"),
        channel.Call("__init__"),
        channel.Call("create_vm", ("text", 0)),
        channel.Call("create_vm", (1, 2, 3)),
        channel.Call("create_vm", (1,)),
        channel.Call("close", (None,), ((0, 5),)),
        channel.Call("close", (), ((3, 0),)),
    ],
)
def test_a_call_that_cannot_be_made_is_told_and_the_session_goes_on(call: channel.Call) -> None:
    with fake_machine() as machine:
        session = machine.start(channel.Open())
        done = machine.ask(session, batch(KVM, call, KVM))
        assert isinstance(done, channel.Done)
        assert isinstance(done.outcomes[1], channel.Bug)
        assert isinstance(done.outcomes[2], channel.Returned)


def test_a_large_batch_and_its_answer_pass_whole() -> None:
    with fake_machine() as machine:
        session = machine.start(channel.Open())
        calls = tuple(channel.Call("check_extension", (99, number)) for number in range(20_000))
        done = machine.ask(session, batch(*calls))
        assert isinstance(done, channel.Done)
        assert [getattr(outcome, "errno", None) for outcome in done.outcomes] == [9] * len(calls)


def test_sessions_are_processes_of_their_own() -> None:
    with fake_machine() as machine:
        first, second = machine.start(channel.Open()), machine.start(channel.Open())
        asked = [machine.ask(session, batch(KVM)) for session in (first, second, first)]
        values = [done.outcomes[0] for done in asked if isinstance(done, channel.Done)]
        assert values[0] == values[1] != values[2]
        machine.end(first)
        assert isinstance(machine.ask(second, batch(KVM)), channel.Done)
        with pytest.raises(SessionFailed):
            machine.ask(first, batch(KVM))


def test_a_request_that_cannot_be_sent_leaves_the_session_as_it_was() -> None:
    with fake_machine() as machine:
        session = machine.start(channel.Open())
        with pytest.raises(ValueError, match="64"):
            machine.ask(session, batch(channel.Call("close", (2**64,))))
        assert isinstance(machine.ask(session, batch(KVM)), channel.Done)


def test_requests_of_several_threads_take_turns() -> None:
    with fake_machine() as machine:
        sessions = [machine.start(channel.Open()) for _ in range(4)]
        answers: list[object] = []

        def work(session: int) -> None:
            for number in range(50):
                done = machine.ask(session, batch(channel.Call("check_extension", (99, number))))
                answers.append(done)

        threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 200
        assert all(isinstance(answer, channel.Done) for answer in answers)


HANGING = AGENT.replace('Process(profile_named("v6.12"))', HANG)
DYING = AGENT.replace('Process(profile_named("v6.12"))', "os.kill(os.getpid(), 11)")
FAILING = AGENT.replace('Process(profile_named("v6.12"))', "1 // 0")


def test_a_hung_session_is_killed_at_its_time_and_the_machine_goes_on() -> None:
    with fake_machine(HANGING) as machine:
        session = machine.start(channel.Open())
        with pytest.raises(SessionFailed, match=r"no answer to Batch within 0\.2 s"):
            machine.ask(session, batch(KVM), 0.2)
        machine.end(machine.start(channel.Open()))


@pytest.mark.parametrize(("guest", "how"), [(DYING, "killed by signal 11"), (FAILING, "ended with 1")])
def test_a_session_that_dies_says_how(guest: str, how: str) -> None:
    with fake_machine(guest) as machine:
        session = machine.start(channel.Open())
        with pytest.raises(SessionFailed, match=how):
            machine.ask(session, batch(KVM))
        machine.start(channel.Open())


def test_the_trace_of_a_session_that_failed_is_in_its_error() -> None:
    with fake_machine(FAILING) as machine:
        session = machine.start(channel.Open())
        with pytest.raises(SessionFailed, match="ZeroDivisionError"):
            machine.ask(session, batch(KVM))


# -- the end of the machine ------------------------------------------------------------------------------------------


def test_a_closed_machine_leaves_no_process_and_says_that_it_is_closed() -> None:
    machine = fake_machine()
    session = machine.start(channel.Open())
    machine.close()
    machine.close()
    assert not is_running(machine.pid)
    with pytest.raises(LabFailed, match="closed"):
        machine.ask(session, batch(KVM))


def test_a_machine_that_does_not_come_up_is_ended_at_its_time() -> None:
    qemu = fake_qemu("time.sleep(1000)")
    with pytest.raises(LabFailed, match=r"did not come up within 0\.3 s"):
        LabMachine.on(qemu, 0.3)
    assert not is_running(qemu.pid)


def test_a_machine_that_ends_at_once_says_how_and_what_it_printed() -> None:
    with pytest.raises(LabFailed, match=r"ended with 3: no such device(.|\n)*panic: no init"):
        fake_machine("os.write(console, b'panic: no init'); print('no such device'); sys.stdout.flush(); os._exit(3)")


def test_a_missing_qemu_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendUnavailable, match="apt install"):
        Qemu.start(Bootable(Path("/vmlinux")), Hardware(), 0)


def test_a_killed_machine_is_noticed_in_the_middle_of_a_request() -> None:
    machine = fake_machine(HANGING)
    session = machine.start(channel.Open())
    threading.Timer(0.2, os.kill, (machine.pid, signal.SIGKILL)).start()
    with pytest.raises(LabFailed, match="killed by signal 9"):
        machine.ask(session, batch(KVM))
    assert not machine.is_open


def test_a_killed_machine_is_noticed_by_the_next_request() -> None:
    machine = fake_machine()
    session = machine.start(channel.Open())
    os.kill(machine.pid, signal.SIGKILL)
    assert eventually(lambda: not is_running(machine.pid))
    with pytest.raises(LabFailed, match="killed by signal 9"):
        machine.ask(session, batch(KVM))


def test_a_hung_machine_is_ended_once_it_does_not_even_kill_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestmem.lab.machine._END_LIMIT_S", 0.3)
    machine = fake_machine()
    session = machine.start(channel.Open())
    os.kill(machine.pid, signal.SIGSTOP)
    with pytest.raises(LabFailed, match=r"no answer to Batch within 0\.2 s, and no process could be ended"):
        machine.ask(session, batch(KVM), 0.2)
    assert not is_running(machine.pid)


def test_a_machine_that_reads_nothing_is_ended_when_the_request_does_not_go_out() -> None:
    machine = fake_machine(HELLO + "time.sleep(1000)")
    with pytest.raises(LabFailed, match="took no request"):
        machine.ask(1, channel.Input(bytes(1 << 22)), 0.3)
    assert not is_running(machine.pid)


@pytest.mark.parametrize("garbage", ["b'\\xff' * 8", "channel.frame(1, b'\\xc1')"])
def test_garbage_on_the_line_ends_the_machine(garbage: str) -> None:
    qemu = fake_qemu(HELLO + f"os.write(port, {garbage}); time.sleep(1000)")
    with pytest.raises(channel.ProtocolError):
        LabMachine.on(qemu, 30).ask(1, channel.Open())
    assert not is_running(qemu.pid)


def test_a_flood_on_the_console_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestmem.lab.machine._END_LIMIT_S", 0.3)
    with fake_machine(HELLO + "while True: os.write(console, b'x' * 65536)") as machine:
        with pytest.raises(LabFailed):
            machine.ask(1, channel.Open(), 0.5)
        assert 0 < len(machine.console()) <= 1 << 14


def test_ctrl_c_in_the_middle_of_a_request_ends_the_machine() -> None:
    machine = fake_machine(HANGING)
    session = machine.start(channel.Open())
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        machine.ask(session, batch(KVM))
    assert not is_running(machine.pid)
    with pytest.raises(LabFailed, match="closed"):
        machine.ask(session, batch(KVM))


def test_two_labs_at_once_do_not_know_of_each_other() -> None:
    with fake_machine() as first, fake_machine() as second:
        sessions = [(lab, lab.start(channel.Open())) for lab in (first, second)]
        first.close()
        with pytest.raises(LabFailed):
            first.ask(sessions[0][1], batch(KVM))
        assert isinstance(second.ask(sessions[1][1], batch(KVM)), channel.Done)
