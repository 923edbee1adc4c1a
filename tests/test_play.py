"""Playing a sequence: every operation gets an outcome, whatever the backend and its process do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.backend import Backend
from guestmem.errors import UnexpectedExit
from guestmem.model.process import Process
from guestmem.model.profiles import V7_2
from guestmem.recordings.calls import Close
from guestmem.recordings.ioctls import CreateVm, SetUserMemoryRegion
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import HostAddress
from guestmem.recordings.outcome import Answered, GuestLeft, ProcessEnded, Skipped, UnknownName, ended
from guestmem.recordings.play import play, play_in_child
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin

CREATE = CreateVm(seq="s", i=0, type=1, out="vm0")
HUGE = SetUserMemoryRegion(
    seq="s", i=1, vm="vm0", slot=0, flags=0, gpa=0, size=1 << 42, userspace_addr=HostAddress(abs=0)
)
CLOSE = Close(seq="s", i=2, fd="vm0")


def model() -> Process:
    return Process(V7_2)


class Broken(Process):
    """A model in which creating a VM does something that no answer of a kernel is."""

    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__(V7_2)
        self._action = action

    def create_vm(self, fd: int, type: int) -> int:
        self._action()
        return super().create_vm(fd, type)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    raise UnexpectedExit("KVM_EXIT_SHUTDOWN")


def test_an_operation_above_a_limit_is_skipped_and_says_why() -> None:
    made, skipped, closed = play(model(), [CREATE, HUGE, CLOSE], Limits())

    assert ended(made) == ended(closed) == "ok"
    assert isinstance(skipped, Skipped)
    assert "costs too much kernel memory" in skipped.why


def test_the_model_alone_has_no_limits() -> None:
    _, set_, _ = play(model(), [CREATE, HUGE, CLOSE], None)

    assert isinstance(set_, Answered)


def test_a_name_that_nothing_made_is_an_outcome() -> None:
    [outcome] = play(model(), [Close(seq="s", i=0, fd="vm7")], None)

    assert isinstance(outcome, UnknownName)
    assert "vm7" in outcome.problem


def test_an_exit_that_no_access_can_cause_is_an_outcome() -> None:
    first, second = play(Broken(leave), [CREATE, Close(seq="s", i=1, fd="kvm")], None)

    assert first == GuestLeft("KVM_EXIT_SHUTDOWN")
    assert ended(second) == "ok"


def test_in_a_child_outcomes_are_those_without() -> None:
    operations = [CREATE, CLOSE, CLOSE]

    alone = list(play(model(), operations, None))
    assert list(play_in_child(model, operations, None)) == alone
    assert [ended(each) for each in alone] == ["ok", "ok", "EBADF"]


def test_when_the_process_ends_its_operation_says_how_and_the_rest_is_skipped() -> None:
    def broken() -> Backend:
        return Broken(crash)

    outcomes = list(play_in_child(broken, [CREATE, CLOSE, CLOSE], None))

    gone = Skipped("the process had ended")
    assert outcomes == [ProcessEnded("it was ended by SIGSEGV"), gone, gone]


@pytest.mark.parametrize(("real", "limited", "held"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_target_holds_to_limits_when_it_or_its_partner_is_real(real: bool, limited: bool, held: bool) -> None:
    target = Target("p", lambda begin: model(), lambda begin: "", lambda begin: "", real=real)

    outcomes = list(target.run(Begin(seq="s"), [CREATE, HUGE], limited=limited))

    assert isinstance(outcomes[1], Skipped) is held
