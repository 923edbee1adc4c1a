"""Many seeds on two places: every seed is accounted for, whatever the kernel under it does to the process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest

from guestmem.fuzz import campaign
from guestmem.fuzz.campaign import Campaign, Figures, Seed, causes, compare_seed, open_campaign, run_seeds
from guestmem.fuzz.generator import sequence
from guestmem.model.process import Process
from guestmem.model.profiles import V6_12, V6_18, Profile
from guestmem.recordings.calls import Dup
from guestmem.recordings.outcome import Answered
from guestmem.recordings.play import play
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin
from guestmem.targets import target_named

MODEL = target_named("model:v6.12")
FIRST, COUNT = 1, 12


class Sleeping(Process):
    """A kernel in which duplicating a descriptor never comes back."""

    def dup(self, fd: int) -> int:
        time.sleep(600)
        return super().dup(fd)


class Crashing(Process):
    """A kernel in which it ends the process."""

    def dup(self, fd: int) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().dup(fd)


class Stubborn(Process):
    """A model with a bug: duplicating a descriptor is refused."""

    def dup(self, fd: int) -> int:
        super().close(super().dup(fd))
        return super().dup(-1)


def beside(kind: type[Process]) -> Campaign:
    """The model of 6.12 and another kind of process."""
    return open_campaign(MODEL, replace(MODEL, name="other", open=lambda begin: kind(V6_12)))


def duplicating(against: Campaign, errnos: tuple[str | None, ...] = (None, "EBADF")) -> list[int]:
    """The seeds that duplicate a descriptor with such an outcome."""
    found = []
    for seed in range(FIRST, FIRST + COUNT):
        operations = sequence(seed, against.scope)
        outcomes = play(Process(V6_12), operations, None)
        answers = [each.operation for each in outcomes if isinstance(each, Answered)]
        if any(isinstance(each, Dup) and each.errno in errnos for each in answers):
            found.append(seed)
    return found


def test_the_seeds_used_here_are_of_both_kinds() -> None:
    assert 2 <= len(duplicating(beside(Process), (None,))) < len(duplicating(beside(Process))) < COUNT


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_every_seed_is_reported_once_and_in_order(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_CHUNK", chunk)
    same = beside(Process)

    seeds = list(run_seeds(same, FIRST, COUNT))

    assert [seed.seed for seed in seeds] == list(range(FIRST, FIRST + COUNT))
    assert [seed.operations for seed in seeds] == [compare_seed(same, seed.seed).operations for seed in seeds]
    assert not any(seed.differs for seed in seeds)


@pytest.mark.parametrize(
    ("kind", "words"), [(Sleeping, "it did not answer within 0.5 s"), (Crashing, "it was ended by SIGSEGV")]
)
def test_a_seed_that_takes_the_process_with_it_is_named_and_the_next_go_on(
    kind: type[Process], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "_SEQUENCE_LIMIT_S", 0.5)
    against = beside(kind)

    seeds = list(run_seeds(against, FIRST, COUNT))

    assert [seed.seed for seed in seeds] == list(range(FIRST, FIRST + COUNT))
    assert [seed.seed for seed in seeds if seed.differs] == duplicating(against)
    assert {seed.ended for seed in seeds if seed.differs} == {words}


def test_who_stops_listening_leaves_no_child() -> None:
    seeds = run_seeds(beside(Process), FIRST, 10_000)
    next(seeds)
    del seeds

    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_machine_of_its_own_is_asked_from_this_process() -> None:
    """The lab's machine is talked to over one connection, which a fork would have twice."""
    here: list[int] = []

    def opened(begin: Begin) -> Process:
        here.append(os.getpid())
        return Process(V6_12)

    elsewhere = replace(MODEL, name="elsewhere", open=opened, real=True, isolate=False)
    list(run_seeds(open_campaign(MODEL, elsewhere), FIRST, 3))

    assert here == [os.getpid()] * 4  # one to ask what it has, and one for each seed


def test_differences_are_one_cause_shrunk_to_what_it_needs() -> None:
    against = beside(Stubborn)

    [group] = causes(against, range(FIRST, FIRST + COUNT), shrink_s=2)

    assert (group.cause.op, group.cause.a, group.cause.b, group.count) == (
        "dup",
        "ok",
        "EBADF",
        len(duplicating(against, (None,))),
    )
    assert isinstance(group.smallest.operations[-1], Dup)
    assert len(group.smallest.operations) <= 3  # a VM, its file, and the duplicate of it


def test_sequences_go_where_one_of_the_two_has_something_and_where_both_have_addresses() -> None:
    def of(profile: Profile, gpa_bits: int) -> Target:
        machine = replace(profile.machine, gpa_bits=gpa_bits)
        return replace(MODEL, open=lambda begin: Process(profile, machine))

    scope = open_campaign(of(V6_18, 52), of(V6_12, 40)).scope

    assert (scope.vm_types, scope.attributes, scope.two_dimensional_paging, scope.gpa_bits) == ((0, 1), True, True, 40)
    assert scope.creation_flags == ((0, 3), (1, 0))  # type 0 binds on 6.18 alone, with MMAP and INIT_SHARED


def test_figures_add_up() -> None:
    figures = Figures()
    for seed in (Seed(1, 10, 1, ("collapse",)), Seed(2, 20, differs=True), Seed(3, differs=True, ended="gone")):
        figures.add(seed)

    assert (figures.sequences, figures.operations, figures.skipped) == (3, 30, 1)
    assert (dict(figures.known), figures.differ, figures.ended) == ({"collapse": 1}, [2, 3], {3: "gone"})
