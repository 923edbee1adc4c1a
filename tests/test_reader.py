"""Reading recordings: hostile files give one error that names file and line, at once and in little memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from guestmem.recordings.ioctls import CreateVm
from guestmem.recordings.reader import MAX_LINE_BYTES, RecordingError, read_sequences

BEGIN = {"op": "begin", "seq": "s", "i": -1, "profile": "612"}
CREATE = {"op": "create_vm", "seq": "s", "i": 0, "type": 1, "out": "vm0"}
TOUCH = {"op": "run_touch", "seq": "s", "i": 0, "vm": "vm0", "vcpu": "cpu0", "boot_gpa": 0xD0000000}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines (values become JSON) or bytes to a recording."""

    def write(*lines: object, name: str = "r.jsonl", raw: bytes | None = None) -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_bytes("".join(f"{text}\n" for text in texts).encode() if raw is None else raw)
        return path

    return write


def refusal(path: Path) -> RecordingError:
    """The one error of a recording that cannot be read."""
    with pytest.raises(RecordingError) as refused:
        list(read_sequences(path))
    error = refused.value
    assert str(error).startswith(f"{path}:{error.line}: ")
    assert len(str(error)) < len(str(path)) + 250
    assert str(error).isprintable()
    return error


def line_of_refusal(path: Path) -> int | None:
    """Where reading ends with the one error; None if all can be read. Any other exception is a failure."""
    try:
        list(read_sequences(path))
    except RecordingError as error:
        return error.line
    return None


# -- what can be read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "whatever"])
def test_plain_and_gzip_are_told_apart_by_content(write: Write, name: str) -> None:
    text = "\n".join(map(json.dumps, (BEGIN, CREATE))).encode()

    for raw in (text, gzip.compress(text)):
        [sequence] = read_sequences(write(name=name, raw=raw))
        assert sequence.begin.profile == "612"
        assert sequence.operations == [CreateVm(seq="s", i=0, type=1, out="vm0")]
        assert (sequence.line, sequence.lines) == (1, [2])


def test_sequences_come_one_by_one_with_the_line_of_each_operation(write: Write) -> None:
    path = write(BEGIN, CREATE, {**BEGIN, "seq": "t"}, {**CREATE, "seq": "t"}, {**CREATE, "seq": "t", "i": 1})

    sequences = list(read_sequences(path))

    assert [(s.begin.seq, s.line, s.lines) for s in sequences] == [("s", 1, [2]), ("t", 3, [4, 5])]


def test_a_sequence_is_available_before_the_rest_of_the_file_is_looked_at(write: Write) -> None:
    sequences = read_sequences(write(BEGIN, CREATE, {**BEGIN, "seq": "t"}, "nonsense"))

    assert next(sequences).begin.seq == "s"
    with pytest.raises(RecordingError, match=":4: "):
        next(sequences)


def test_line_ends_of_other_systems_and_a_missing_last_one_are_no_matter(write: Write) -> None:
    raw = b"\r\n".join([json.dumps(BEGIN).encode(), json.dumps(CREATE).encode()])

    [sequence] = read_sequences(write(raw=raw))

    assert len(sequence.operations) == 1


def test_a_line_that_was_never_run_is_told_from_one_that_succeeded(write: Write) -> None:
    succeeded = {**CREATE, "i": 1, "result": "vm0", "errno": None}

    [sequence] = read_sequences(write(BEGIN, CREATE, succeeded))

    assert [operation.errno is UNSET for operation in sequence.operations] == [True, False]


@pytest.mark.parametrize("value", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_unsigned_numbers_go_up_to_2_64(write: Write, value: int) -> None:
    [sequence] = read_sequences(write(BEGIN, {**CREATE, "type": value}))

    assert sequence.operations == [CreateVm(seq="s", i=0, type=value, out="vm0")]


# -- what cannot -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "line", "says"),
    [
        (b"", 1, "empty"),
        (b"\n", 1, "the line is empty"),
        (b"   \n", 1, "the line is empty"),
        (b"\x00" * 100, 1, "malformed"),
        (b"\x7fELF\x02\x01\x01\x00", 1, "malformed"),
        (bytes(range(256)), 1, "malformed"),
        (b"\xef\xbb\xbf" + json.dumps(BEGIN).encode(), 1, "malformed"),  # a byte order mark
        (json.dumps(BEGIN).encode("utf-16"), 1, "malformed"),
        (b"{", 1, "truncated"),
        (b"null", 1, "Expected `object`"),
        (b"[]", 1, "Expected `object`"),
        (b"{}", 1, "op"),
        (b'{"op":"begin"}', 1, "seq"),
        (b'{"op":"begin","seq":"\xff\xfe"}', 1, "utf-8"),
        (b'{"op":"begin","seq":"a"} {"op":"begin","seq":"b"}', 1, "malformed"),
        (b'{"op":"begin","seq":"a"}\n\n{"op":"begin","seq":"b"}', 2, "the line is empty"),
        (b'{"op":"begin","seq":"a"}\n{"op":"be', 2, "truncated"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_where_it_ceases_to_be_one(
    write: Write, raw: bytes, line: int, says: str
) -> None:
    for content in (raw, gzip.compress(raw)):
        error = refusal(write(raw=content))
        assert error.line == line
        assert says in str(error)


def variations(base: dict[str, object], **values: list[object]) -> list[dict[str, object]]:
    """The line with one field changed at a time."""
    return [{**base, field: value} for field, tried in values.items() for value in tried]


REGION = {
    "op": "set_user_memory_region2",
    "seq": "s",
    "i": 0,
    "vm": "vm0",
    "slot": 0,
    "flags": 0,
    "gpa": 0,
    "size": 4096,
    "userspace_addr": {"buf": "A"},
    "guest_memfd": -1,
    "guest_memfd_offset": 0,
}
terminal: dict[str, list[object]] = {"\x1b[2J\n": [0]}  # a field whose name would clear the screen
WRONG: list[dict[str, object]] = [
    *variations(
        CREATE,
        op=["", "create_v", "CREATE_VM", "exec", None, 5, ["create_vm"]],
        type=[-1, 1 << 64, 10**50, 1.5, 1.0, "1", True, None, [], {}],
        out=[None, 5, ["vm0"]],
        on=[1.5, None, 1 << 64, -(1 << 63) - 1],
        i=[None, "0", 1.5],
        seq=[None, 0],
        errno=[5, ["EINVAL"], True],
        unknown=[0, None],
        **terminal,
        st_size=[4096],
    ),
    *variations(
        REGION,
        slot=[-1, 1 << 32],
        flags=[-1, 1 << 32],
        gpa=[-1, 1 << 64],
        userspace_addr=[None, 0, "A", {"abs": -1}, {"abs": 1 << 64}, {"off": 1 << 64, "buf": "A"}, {"pid": 1}],
        guest_memfd=[1 << 63, None, 1.5],
        pad1=[1 << 32],
        pad2=[-1, 1 << 64, [1 << 64], ["0"], [[0]]],
    ),
    *variations(
        {"op": "create_guest_memfd", "seq": "s", "i": 0, "vm": "v", "size": 1, "flags": 0, "out": "g"},
        reserved=[0, [-1], [1 << 64], [None]],
    ),
    *variations(
        {"op": "fallocate", "seq": "s", "i": 0, "fd": "g", "mode": 1, "offset": 0, "len": 1},
        mode=[1 << 32, -(1 << 31) - 1],
        offset=[1 << 63, -(1 << 63) - 1],
        len=[1 << 63],
    ),
    *variations({"op": "read", "seq": "s", "i": 0, "fd": "g", "len": 1}, len=[-1, (1 << 30) + 1, 1 << 64]),
    *variations({"op": "open_aux", "seq": "s", "i": 0, "kind": "pipe", "out": "a"}, kind=["", "socket", None]),
    *variations({"op": "host_read", "seq": "s", "i": 0, "buf": "A", "off": 0, "size": 8}, size=[0, 3, 16, -1]),
    *variations(
        TOUCH,
        touches=[
            None,
            {},
            [None],
            [{"gpa": 0, "rw": "r"}],
            [{"gpa": 0, "rw": "q", "size": 8}],
            [{"gpa": 0, "rw": "r", "size": 3}],
            [{"gpa": 1 << 64, "rw": "r", "size": 8}],
            [{"gpa": 0, "rw": "w", "size": 8, "value": 1 << 64}],
            [{"gpa": 0, "rw": "r", "size": 8, "extra": 0}],
            [{"gpa": 0xFF9, "rw": "r", "size": 8}],  # crosses a page
            [{"gpa": 0xFFF, "rw": "w", "size": 4}],
            [{"gpa": 0xFFF, "rw": "x", "size": 8}],
        ],
    ),
    *variations(BEGIN, seq=[None, 5], vm_types=[5, ["0"]], pools=[[], {"2M": "1"}], smm=[1], surplus=[1]),
]


@pytest.mark.parametrize("line", WRONG, ids=lambda line: json.dumps(line)[:80])
def test_a_wrong_type_a_huge_number_or_an_unknown_word_is_refused_on_its_line(
    write: Write, line: dict[str, object]
) -> None:
    assert refusal(write(BEGIN, line)).line == 2


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_touch_may_end_at_the_end_of_its_page(write: Write, size: int) -> None:
    touch = {"gpa": 0x1000 - size, "rw": "r", "size": size}

    [sequence] = read_sequences(write(BEGIN, {**TOUCH, "touches": [touch]}))

    assert len(sequence.operations) == 1


@pytest.mark.parametrize("digits", [20, 100, 5_000, 500_000])
def test_a_number_of_any_length_is_refused_quickly(write: Write, digits: int) -> None:
    for number in ("9" * digits, "-" + "9" * digits, "1" + "0" * digits + ".5", "1e" + "9" * digits):
        line = json.dumps({**CREATE, "type": 0}).replace('"type": 0', f'"type": {number}')
        assert refusal(write(BEGIN, line)).line == 2


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [2_000, 100_000])
@pytest.mark.parametrize("where", ["value", "before the op", "bare"])
def test_deep_nesting_is_refused(write: Write, opening: str, depth: int, where: str) -> None:
    nested = opening * depth
    line = {
        "value": f'{{"op":"create_vm","seq":"s","i":0,"type":{nested}',
        "before the op": f'{{"x":{nested}',
        "bare": nested,
    }[where]

    assert refusal(write(BEGIN, line)).line == 2


def test_closed_deep_nesting_is_refused_too(write: Write) -> None:
    nested = "[" * 100_000 + "]" * 100_000

    assert refusal(write(BEGIN, f'{{"x":{nested},"op":"begin","seq":"t"}}')).line == 2
    assert refusal(write(BEGIN, f'{{"op":"begin","seq":"t","x":{nested}}}')).line == 2


def test_the_file_must_begin_with_begin(write: Write) -> None:
    error = refusal(write(CREATE, BEGIN))

    assert error.line == 1
    assert "begin" in str(error)


def test_an_operation_of_another_sequence_is_refused(write: Write) -> None:
    error = refusal(write(BEGIN, CREATE, {**CREATE, "seq": "t"}))

    assert error.line == 3
    assert "'t'" in str(error)
    assert "'s'" in str(error)


# -- gzip --------------------------------------------------------------------------------------------------------------


def test_truncated_gzip_is_refused_at_every_length(write: Write) -> None:
    lines = [json.dumps(BEGIN)] + [json.dumps({**CREATE, "i": i, "type": i * i}) for i in range(200)]
    whole = gzip.compress("\n".join(lines).encode())

    for length in [2, 3, 9, 10, 11, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1]:
        error = refusal(write(raw=whole[:length]))
        assert 1 <= error.line <= 202


@pytest.mark.parametrize("spoiled", [3, 20, -6, -2])
def test_gzip_with_a_wrong_byte_is_refused(write: Write, spoiled: int) -> None:
    whole = bytearray(gzip.compress("\n".join([json.dumps(BEGIN)] * 50).encode()))
    whole[spoiled] ^= 0xFF

    refusal(write(raw=bytes(whole)))


@pytest.mark.parametrize(
    ("filler", "says"),
    [(b"\n", "the line is empty"), (b"\0", "longer than"), (b" ", "longer than"), (b"[", "longer than")],
)
def test_a_gigabyte_of_nothing_is_refused_in_little_memory(write: Write, filler: bytes, says: str) -> None:
    path = write(raw=gzip.compress(json.dumps(BEGIN).encode() + b"\n") + gzip.compress(filler * MAX_LINE_BYTES) * 1024)

    tracemalloc.start()
    try:
        error = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert error.line == 2
    assert says in str(error)
    assert peak < 8 << 20


def test_a_line_may_have_one_mebibyte_and_not_a_byte_more(write: Write) -> None:
    def begin(length: int) -> bytes:
        frame = b'{"op":"begin","seq":"s","title":""}\n'
        return frame.replace(b'""', b'"' + b"x" * (length - len(frame)) + b'"')

    assert len(begin(MAX_LINE_BYTES)) == MAX_LINE_BYTES
    [sequence] = read_sequences(write(raw=begin(MAX_LINE_BYTES)))
    assert len(sequence.begin.title) > 1_000_000
    assert refusal(write(raw=begin(MAX_LINE_BYTES + 1))).line == 1


# -- anything ----------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=60))
def test_any_bytes_give_sequences_or_the_one_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    for prefix in (b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00", json.dumps(BEGIN).encode() + b"\n"):
        path.write_bytes(prefix + raw)
        assert line_of_refusal(path) != 0


@given(
    st.sampled_from((BEGIN, CREATE, REGION, TOUCH)), st.sampled_from(sorted({*CREATE, *REGION, *TOUCH})), json_values
)
def test_any_value_in_any_field_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, line: dict[str, object], field: str, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "field.jsonl"
    path.write_text(json.dumps(BEGIN) + "\n" + json.dumps({**line, field: value}) + "\n")
    assert line_of_refusal(path) in (None, 2)
