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
from guestmem.recordings import vocabulary as v
from guestmem.recordings.limits import Limits
from guestmem.recordings.play import Place, play, play_in_child

CREATE = v.CreateVm(seq="s", i=0, type=1, out="vm0")
HUGE = v.SetUserMemoryRegion(
    seq="s", i=1, vm="vm0", slot=0, flags=0, gpa=0, size=1 << 42, userspace_addr=v.HostAddress(abs=0)
)
CLOSE = v.Close(seq="s", i=2, fd="vm0")


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


def test_an_operation_above_a_limit_is_not_issued_and_says_why() -> None:
    made, skipped, closed = play(model(), [CREATE, HUGE, CLOSE], Limits())

    assert made.errno is None
    assert "costs too much kernel memory" in str(skipped.observed["skipped"])
    assert closed.errno is None


def test_the_model_alone_has_no_limits() -> None:
    _, set_, _ = play(model(), [CREATE, HUGE, CLOSE], None)

    assert "skipped" not in set_.observed


def test_a_name_that_nothing_made_is_an_outcome() -> None:
    [outcome] = play(model(), [v.Close(seq="s", i=0, fd="vm7")], None)

    assert "vm7" in str(outcome.observed["unknown"])


def test_an_exit_that_no_access_can_cause_is_an_outcome() -> None:
    first, second = play(Broken(leave), [CREATE, v.Close(seq="s", i=1, fd="kvm")], None)

    assert first.observed["unexpected_exit"] == "KVM_EXIT_SHUTDOWN"
    assert second.errno is None


def test_in_a_child_outcomes_are_those_without() -> None:
    operations = [CREATE, CLOSE, CLOSE]

    alone = [(each.result, each.errno, each.check) for each in play(model(), operations, None)]
    assert [(each.result, each.errno, each.check) for each in play_in_child(model, operations, None)] == alone
    assert [errno for _, errno, _ in alone] == [None, None, "EBADF"]


def test_when_the_process_ends_its_operation_says_how_and_the_rest_is_skipped() -> None:
    def broken() -> Backend:
        return Broken(crash)

    ended, skipped, also = play_in_child(broken, [CREATE, CLOSE, CLOSE], None)

    assert ended.observed == {"process_ended": "it was ended by SIGSEGV"}
    assert skipped.observed == also.observed == {"skipped": "the process had ended"}


@pytest.mark.parametrize(("real", "limited", "held"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_place_holds_to_limits_when_it_or_its_partner_is_real(real: bool, limited: bool, held: bool) -> None:
    place = Place("p", lambda begin: model(), lambda begin: "", lambda begin: "", real=real)

    outcomes = list(place.run(v.Begin(seq="s"), [CREATE, HUGE], limited=limited))

    assert ("skipped" in outcomes[1].observed) is held
