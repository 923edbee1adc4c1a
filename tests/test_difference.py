"""Comparing two backends: the first difference counts, and differences of one cause are one group."""

from __future__ import annotations

from guestmem.recordings import vocabulary as v
from guestmem.recordings.difference import Difference, ended, first_difference, grouped
from guestmem.recordings.runner import Outcome

BEGIN = v.Begin(seq="s")
OPERATIONS = [v.CreateVm(seq="s", i=index, type=index, out=f"vm{index}") for index in range(4)]
OK = Outcome(result="vm")


def refused(errno: str, check: str = "") -> Outcome:
    return Outcome(None, errno, check=check)


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


def test_what_one_side_did_not_issue_is_not_compared() -> None:
    skipped = Outcome(observed={"skipped": "too large"})

    pair = first_difference(BEGIN, OPERATIONS, [skipped, OK], [refused("EINVAL"), OK])

    assert (pair.skipped, pair.operations, pair.new) == (1, 1, None)


def test_a_process_that_ended_differs_from_any_answer() -> None:
    gone = Outcome(observed={"process_ended": "it was ended by SIGSEGV"})

    pair = first_difference(BEGIN, OPERATIONS, [OK], [gone])

    assert pair.new is not None
    assert pair.new.cause.b == "process ended"


def test_a_known_divergence_that_does_not_last_is_counted_and_passed() -> None:
    foreign = v.CheckExtension(seq="s", i=0, on="kvm", cap=999)

    pair = first_difference(BEGIN, [foreign, OPERATIONS[0]], [Outcome(result=0), OK], [Outcome(result=1), OK])

    assert [each.cause.divergence for each in pair.known] == ["other-capabilities"]
    assert (pair.operations, pair.new) == (2, None)


def test_after_one_that_lasts_the_rest_of_the_sequence_counts_for_nothing() -> None:
    guard = v.Madvise(seq="s", i=0, map="map0", advice=102)

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


def test_how_an_operation_ended_is_said_in_a_word_or_two() -> None:
    assert ended({"result": 0, "errno": None}) == "ok"
    assert ended({"result": None, "errno": "EINVAL"}) == "EINVAL"
    assert ended([{"exit": "memory_fault", "errno": "EFAULT", "flags": 8}]) == "memory_fault EFAULT"
    assert ended({"signal": "SIGBUS"}) == "SIGBUS"
