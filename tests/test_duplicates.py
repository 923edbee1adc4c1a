"""guestmem.duplicates: JSON in which an object has a key twice."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.duplicates import duplicate_key

TEXTS = [
    ('{"a": 1, "a": 2}', "a"),
    ('{"a": 1, "a": 1}', "a"),
    ('{"a": 1, "b": {"a": 2}}', None),
    ('[{"a": 1}, {"a": 2}]', None),
    ('[{"a": {"b": 0, "c": [{"d": 1, "d": 2}]}}]', "d"),
    (r'{"a": 1, "\u0061": 2}', "a"),
    (r'{"a": ":\n", "b": 1, "b": 2}', "b"),
    ('{"a": {"b": 1}, "a": 2}', "a"),
    ('{"a": ":", "a": "::"}', "a"),
    ('{"": 0, "": 0}', ""),
    ('{"é": 0, "é": 0}', "é"),
    ('{"a": ":::::"}', None),
    (r'{"a": "\""}', None),
    ('{"a": 123456789012345678901234567890, "a": 1}', "a"),
    ('{"a": 1e400, "b": 2}', None),
    ('{"a": 1e400, "a": 2}', "a"),
    ("7", None),
    ('"a: b"', None),
    # Not JSON: the decoder of the source says so.
    ("", None),
    ("{", None),
    ('{"a": 1 "a": 2}', None),
    ("[" * 100_000, None),
]
IDS = [text[:30] for text, _ in TEXTS]


@pytest.mark.parametrize(("text", "key"), TEXTS, ids=IDS)
def test_the_first_key_that_is_there_twice(text: str, key: str | None) -> None:
    assert duplicate_key(text) == key
    assert duplicate_key(text.encode()) == key


@pytest.mark.parametrize("size", [1 << 15, (1 << 16) - 20, 1 << 16, 1 << 17])
def test_long_texts_are_answered_like_short_ones(size: int) -> None:
    filling = "x" * size

    assert duplicate_key(f'{{"a": "{filling}", "b": 1}}'.encode()) is None
    assert duplicate_key(f'{{"a": "{filling}", "a": 1}}'.encode()) == "a"


def test_bytes_that_are_no_utf8_are_no_json() -> None:
    assert duplicate_key(b'{"\xff": 1, "\xff": 2}') is None


class Pairs(list[tuple[str, object]]):
    """The members of an object as they are written, so that a key can be there twice."""


MEMBERS = st.recursive(
    st.none() | st.integers() | st.text(':\\"ab', max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(st.text(':\\"ab', max_size=1), inner), max_size=3).map(Pairs)
    ),
)


def written(value: object) -> str:
    match value:
        case Pairs():
            return "{" + ", ".join(f"{json.dumps(key)}: {written(inner)}" for key, inner in value) + "}"
        case list():
            return "[" + ", ".join(written(inner) for inner in value) + "]"
        case _:
            return json.dumps(value)


def twice(value: object) -> set[str]:
    """Every key that an object of the value has more than once."""
    match value:
        case Pairs():
            keys = [key for key, _ in value]
            return {key for key in keys if keys.count(key) > 1} | set().union(*(twice(inner) for _, inner in value))
        case list():
            return set().union(*map(twice, value))
        case _:
            return set()


@given(MEMBERS)
def test_a_key_is_found_where_one_is_there_twice(value: object) -> None:
    found = duplicate_key(written(value).encode())

    assert (found in twice(value)) if twice(value) else (found is None)
