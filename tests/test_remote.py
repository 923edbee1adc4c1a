"""A sequence that is run far away, in one request, has the outcomes that it has call by call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fake_lab import AGENT, fake_machine

from guestmem.backend import Backend
from guestmem.lab.backend import LabBackend
from guestmem.lab.errors import SessionFailed
from guestmem.lab.machine import LabMachine
from guestmem.model.process import Process
from guestmem.model.profiles import V6_12
from guestmem.recordings import remote
from guestmem.recordings.ioctls import CreateGuestMemfd
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Outcome, ProcessEnded, Skipped
from guestmem.recordings.play import play
from guestmem.recordings.reader import Sequence as Recorded
from guestmem.recordings.reader import read_sequences
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin

RECORDINGS = Path(__file__).parent.parent / "examples/recordings"
SEQUENCES = list(read_sequences(RECORDINGS / "v6.12-directed.jsonl.gz"))


def call_by_call(backend: Backend, sequence: Recorded) -> list[Outcome]:
    return list(play(backend, sequence.operations, Limits()))


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: str(sequence.begin.seq))
def test_outcomes_are_the_same_through_bytes(sequence: Recorded) -> None:
    data = remote.work(Process(V6_12), remote.request(sequence.operations, limited=True))

    assert remote.answer(data, sequence.operations) == call_by_call(Process(V6_12), sequence)


def test_limits_hold_only_where_they_are_asked_for() -> None:
    [finding] = read_sequences(Path(__file__).parent.parent / "examples/findings/offset-past-2-63.jsonl")
    limited, free = (
        remote.answer(remote.work(Process(V6_12), asked), finding.operations)
        for asked in (remote.request(finding.operations, limited=limited) for limited in (True, False))
    )

    assert limited == call_by_call(Process(V6_12), finding)
    assert free == list(play(Process(V6_12), finding.operations, None))


@pytest.mark.parametrize("data", [b"", b"\x91\x01", b"\xff", b"\x90", b"\x91" * 100_000])
def test_an_answer_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no outcomes|had 0 outcomes"):
        remote.answer(data, SEQUENCES[0].operations)


# -- in a lab ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> Iterator[LabMachine]:
    with fake_machine() as machine:
        yield machine


def target(machine: LabMachine) -> Target:
    """As ``targets`` has it, on the agent as an ordinary process."""

    def far(operations: Sequence[Operation], limited: bool) -> Sequence[Outcome]:
        backend = LabBackend.on(machine, module="guestmem.recordings.remote")
        try:
            return remote.answer(backend.work(remote.request(operations, limited=limited)), operations)
        finally:
            backend.shutdown()

    return Target("lab", lambda begin: LabBackend.on(machine), str, str, real=True, ends=(SessionFailed,), far=far)


@pytest.mark.parametrize("sequence", SEQUENCES[:5], ids=lambda sequence: str(sequence.begin.seq))
def test_a_lab_answers_a_whole_sequence_as_it_answers_each_call(machine: LabMachine, sequence: Recorded) -> None:
    whole = list(target(machine).run(sequence.begin, sequence.operations))

    assert whole == call_by_call(LabBackend.on(machine), sequence)


DYING = (
    AGENT.replace("Agent(", "class Dying(Process):\n    def create_guest_memfd(self, *of): os.abort()\nAgent(").replace(
        "Process(profile_named", "Dying(profile_named"
    )
)  # fmt: skip


def test_a_sequence_that_ends_its_process_is_run_again_to_see_where() -> None:
    kinds = [[type(operation) for operation in each.operations] for each in SEQUENCES]
    dies, operations = next(
        (kind.index(CreateGuestMemfd), each.operations)
        for kind, each in zip(kinds, SEQUENCES, strict=True)
        if CreateGuestMemfd in kind[1:-1]
    )
    with fake_machine(DYING) as machine:
        found = list(target(machine).run(Begin(seq=""), operations))

    assert len(found) == len(operations)
    assert [isinstance(outcome, ProcessEnded) for outcome in found[: dies + 1]] == [*[False] * dies, True]
    assert not any(isinstance(outcome, Skipped) for outcome in found[:dies])
    assert all(isinstance(outcome, Skipped) for outcome in found[dies + 1 :])
