"""Hostile input: whatever the bytes, a reader gives layouts or one LayoutError on one printable line."""

from __future__ import annotations

import msgspec
import pytest
from examples import LAYOUTS
from hypothesis import given, settings
from hypothesis import strategies as st

from guestmem.layout import LayoutError, cover
from guestmem.layout.formats import FORMATS
from guestmem.layout.recognise import read

SEEDS = {
    "qemu-mtree": "qemu72-q35-numa2-dimm.txt",
    "qemu-trace": "qemu100-q35-10G-booted.kvm_set_user_memory.txt",
    "libvirt": "libvirt-numa-huge.xml",
    "cloud-hypervisor": "ch-zones-odd-virtio-mem.json",
    "firecracker": "fc-1025M-hotplug.json",
    "firecracker-uffd": "fc-uffd-handshake.json",
    "strace": "strace61-gm-Xraw-y-ttt.txt",
    "gdb-dump": "gdb-ioctl-dump-gm.txt",
    "guestmem-toml": "discussion.toml",
}
NUMBERS = [b"0", b"-1", b"1", b"4095", b"18446744073709551615", b"18446744073709551616", b"0x", b"1e999", b"9" * 400]
KEYS = ["memory", "zones", "size", "slots", "gpa", "machine-config", "config", "op", "id"]
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
JSON_KINDS = ["cloud-hypervisor", "firecracker", "firecracker-uffd", "guestmem-json", "recording", None]


@st.composite
def broken(draw: st.DrawFn, name: str) -> bytes:
    """A shipped file with parts cut, doubled, replaced, or numbers exchanged."""
    data = (LAYOUTS / name).read_bytes()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 2, 4, 9, 17, 40, 200])))
        new = draw(st.one_of(st.binary(max_size=12), st.sampled_from(NUMBERS), st.just(data[at:end] * 2)))
        data = data[:at] + new + data[end:]
    return data


def attempt(data: bytes, kind: str | None) -> None:
    """Read and cover; any failure must be one LayoutError on one line."""
    problem = ""
    try:
        for layout in read("x", data, kind):
            cover(layout)
    except LayoutError as error:
        problem = str(error)
    assert problem.isprintable()
    assert len(problem) < 2000


@pytest.mark.parametrize("kind", SEEDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_damaged_file_is_read_or_refused_in_one_line(kind: str, data: st.DataObject) -> None:
    attempt(data.draw(broken(SEEDS[kind])), kind)


@given(st.binary(max_size=300), st.sampled_from([None, *FORMATS]))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_in_one_line(data: bytes, kind: str | None) -> None:
    attempt(data, kind)


@given(VALUES, st.sampled_from(JSON_KINDS))
@settings(max_examples=300, deadline=None)
def test_json_of_any_shape_is_read_or_refused_in_one_line(value: object, kind: str | None) -> None:
    attempt(msgspec.json.encode(value), kind)
