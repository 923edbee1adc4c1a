"""The archive holds what was written, in the format the kernel reads."""

from __future__ import annotations

import io
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.lab.cpio import CpioWriter


def read(archive: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """A naive reader from the format's description: name, mode, contents, device of each entry."""
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = []
    at = 0
    while True:
        assert at % 4 == 0, "a header is not aligned"
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at += 110 + name_size
        at += -at % 4
        contents = archive[at : at + size]
        at += size
        at += -at % 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return entries
        entries.append((name[:-1].decode(), mode, contents, (major, minor)))


def written(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    writer = CpioWriter(out)
    for name, contents in files:
        writer.file(name, contents)
    writer.finish()
    return out.getvalue()


def test_a_file_is_the_bytes_the_format_says() -> None:
    header = "07070100000001000081A40000000000000000000000010000000000000003"
    header += "000000000000000000000000000000000000000200000000"
    first = header.encode() + b"a\0" + b"abc\0"  # 110 + 2 is a multiple of 4 already
    assert written(("a", b"abc")).startswith(first)


@given(st.dictionaries(st.text("abc/.", min_size=1, max_size=9), st.binary(max_size=9), max_size=6))
def test_every_file_that_is_taken_is_read_back(files: dict[str, bytes]) -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    taken = {}
    for name, contents in files.items():
        try:
            writer.file(name, contents)
        except ValueError:
            continue
        taken[name] = contents
    writer.finish()
    found = read(out.getvalue())
    assert {name: contents for name, mode, contents, _ in found if stat.S_ISREG(mode)} == taken


def test_parents_come_once_and_before_their_children() -> None:
    names = [name for name, *_ in read(written(("a/b/c", b""), ("a/b/d", b""), ("a/e", b"")))]
    assert names == ["a", "a/b", "a/b/c", "a/b/d", "a/e"]


def test_a_device_says_what_it_is() -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.character_device("dev/console", 5, 1)
    writer.finish()
    directory, console = read(out.getvalue())
    assert stat.S_ISDIR(directory[1])
    assert (stat.S_ISCHR(console[1]), console[3]) == (True, (5, 1))


@pytest.mark.parametrize("name", ["", "/etc", "../up", "a/../b", "TRAILER!!!"])
def test_a_name_outside_the_archive_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        written((name, b""))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="already"):
        written(("a", b"1"), ("a", b"2"))


def test_the_same_contents_make_the_same_bytes() -> None:
    assert written(("a/b", b"1"), ("c", b"2")) == written(("a/b", b"1"), ("c", b"2"))
