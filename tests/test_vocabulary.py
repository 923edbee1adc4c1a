"""The declarations of operations: what a run finds out is declared as observed, for every operation there is."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from recordings import answered

from guestmem.backend import Backend
from guestmem.fuzz.draft import Scope
from guestmem.fuzz.generator import sequence
from guestmem.model.process import Process
from guestmem.model.profiles import V6_12
from guestmem.recordings.calls import MemfdRestricted, Poison, SetShmemEnabled
from guestmem.recordings.ioctls import GmemSetMemoryAttributes, PreFault
from guestmem.recordings.operation import Field, Operation, marked, unrun
from guestmem.recordings.outcome import Answered
from guestmem.recordings.play import play
from guestmem.recordings.vocabulary import OPERATIONS
from guestmem.recordings.writer import recorded

SCOPE = Scope((0, 1), attributes=True, two_dimensional_paging=True, creation_flags=((1, 0),))
SEEDS = range(300)
UNSEEN = {"signal", "error_offset", "address_out", "size_out"}  # no run of these sequences has one


def answers() -> Iterator[tuple[Operation, Operation]]:
    """Operations of every kind, and the same as the model answered them."""
    for seed in SEEDS:
        operations = sequence(seed, SCOPE)
        hosts = [
            Poison(seq="", i=0, fd=-1, offset=0),
            SetShmemEnabled(seq="", i=0, policy="always"),
            MemfdRestricted(seq="", i=0, flags=0, out="rm0"),
            GmemSetMemoryAttributes(seq="", i=0, fd=-1, offset=0, size=4096, attributes=8, flags=0),
        ]
        for operation, outcome in zip([*operations, *hosts], play(model(), [*operations, *hosts], None), strict=True):
            if isinstance(outcome, Answered):
                yield operation, outcome.operation


def model() -> Backend:
    return Process(V6_12)


ANSWERS = list(answers())


def test_every_operation_is_answered_here() -> None:
    assert {type(operation) for operation, _ in ANSWERS} == set(OPERATIONS)


def test_a_run_writes_nothing_but_what_is_declared_as_observed_and_without_it_the_operation_is_as_before() -> None:
    """What is not declared would be taken for an argument, and be written into the next recording as if seen there."""
    for operation, answer in ANSWERS:
        assert unrun(answer) == operation, answer.name()


def test_everything_that_is_declared_as_observed_is_written_by_some_run() -> None:
    for kind in OPERATIONS:
        seen = [answer for _, answer in ANSWERS if type(answer) is kind]
        for name in set(marked(kind, Field.OBSERVED)) - {"result", "errno"}:
            values = [getattr(answer, name) for answer in seen]
            assert any(value is not None for value in values) or name in UNSEEN, (kind, name)


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.name())
def test_an_old_outcome_is_dropped_and_replaced_whole(kind: type[Operation]) -> None:
    bare = next(operation for operation, _ in ANSWERS if type(operation) is kind)
    old = msgspec.structs.replace(bare, **dict.fromkeys(marked(kind, Field.OBSERVED, Field.REMARK), "old"))

    assert unrun(old) == bare
    assert recorded(old, answered(old, 0)) == msgspec.structs.replace(bare, result=0, errno=None)


def test_what_another_recorder_noted_is_not_an_argument() -> None:
    noted = PreFault(seq="s", i=0, vcpu="c", gpa=0, size=4096, flags=0, errno="EINTR", livelock=True)

    assert not unrun(noted).livelock
    assert noted.arguments() == {"vcpu": "c", "gpa": 0, "size": 4096, "flags": 0}
