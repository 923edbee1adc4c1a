"""Comparing two backends: the first difference counts, and differences of one cause are one group."""

from __future__ import annotations

from recordings import answered

from guestmem.recordings.calls import Madvise
from guestmem.recordings.diff import Difference, first_difference, grouped
from guestmem.recordings.ioctls import CheckExtension, CreateVm
from guestmem.recordings.outcome import Outcome, ProcessEnded, Skipped
from guestmem.recordings.vocabulary import Begin

BEGIN = Begin(seq="s")
OPERATIONS = [CreateVm(seq="s", i=index, type=index, out=f"vm{index}") for index in range(4)]
OK = answered(OPERATIONS[0], "vm")


def refused(errno: str, check: str = "") -> Outcome:
    return answered(OPERATIONS[0], None, errno, check)


def test_outcomes_that_are_the_same_give_nothing() -> None:
    pair = first_difference(BEGIN, OPERATIONS, [OK, refused("EINVAL")], [OK, refused("EINVAL")])

    assert (pair.operations, pair.new, pair.known, pair.skipped) == (2, None, [], 0)


def test_only_the_first_difference_is_reported_with_what_led_to_it() -> None:
    a = [OK, refused("EINVAL", "vm-type"), refused("EBADF"), OK]
    b = [OK, OK, OK, OK]

    pair = first_difference(BEGIN, OPERATIONS, a, b)

    assert pair.new is not None
    assert pair.operations == 2
    assert pair.new.operations == tuple(OPERATIONS[:2])
    assert (pair.new.cause.op, pair.new.cause.a, pair.new.cause.b) == ("create_vm", "EINVAL", "ok")
    assert pair.new.cause.check == "vm-type"


def test_what_one_side_was_not_asked_is_not_compared() -> None:
    skipped = Skipped("too large")

    pair = first_difference(BEGIN, OPERATIONS, [skipped, OK], [refused("EINVAL"), OK])

    assert (pair.skipped, pair.operations, pair.new) == (1, 1, None)


def test_a_process_that_ended_differs_from_any_answer() -> None:
    gone = ProcessEnded("it was ended by SIGSEGV")

    pair = first_difference(BEGIN, OPERATIONS, [OK], [gone])

    assert pair.new is not None
    assert pair.new.cause.b == "process ended"


def test_a_known_divergence_that_does_not_last_is_counted_and_passed() -> None:
    foreign = CheckExtension(seq="s", i=0, on="kvm", cap=999)

    pair = first_difference(BEGIN, [foreign, OPERATIONS[0]], [answered(foreign, 0), OK], [answered(foreign, 1), OK])

    assert [each.cause.divergence for each in pair.known] == ["other-capabilities"]
    assert (pair.operations, pair.new) == (2, None)


def test_after_one_that_lasts_the_rest_of_the_sequence_counts_for_nothing() -> None:
    guard = Madvise(seq="s", i=0, map="map0", advice=102)

    pair = first_difference(BEGIN, [guard, OPERATIONS[0]], [OK, OK], [refused("EINVAL"), refused("EBADF")])

    assert [each.cause.divergence for each in pair.known] == ["guard-regions"]
    assert (pair.operations, pair.new) == (1, None)


def difference(length: int, errno: str) -> Difference:
    pair = first_difference(BEGIN, OPERATIONS, [OK] * (length - 1) + [refused(errno)], [OK] * 4)
    assert pair.new is not None
    return pair.new


def test_groups_are_by_cause_with_the_smallest_example_and_the_smallest_group_first() -> None:
    found = [difference(4, "EINVAL"), difference(2, "EINVAL"), difference(3, "EBADF"), difference(3, "EINVAL")]

    groups = grouped(found)

    assert [(group.cause.a, group.count, len(group.smallest.operations)) for group in groups] == [
        ("EINVAL", 3, 2),
        ("EBADF", 1, 3),
    ]
