"""What host and guest say to each other arrives as it was said, however the stream is cut."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.backend import Boot, ConversionResult, Exit, FileStat, PreFaultResult, Touch
from guestmem.errors import KvmError
from guestmem.lab import channel
from guestmem.units import S64_MAX, U64_MAX

REQUESTS: list[channel.Request] = [
    channel.Open(),
    channel.End(),
    channel.PowerOff(),
    channel.Input(b"\0\xff"),
    channel.Batch(()),
    channel.Batch((channel.Call("open_kvm"), channel.Call("create_vm", (0, 1), ((0, 0),)))),
    channel.Command(("cat", "/proc/version"), {"PATH": "/bin"}, "/", 25, 80),
]
REPLIES: list[channel.Reply] = [
    channel.Hello("0.1", "6.12.117-guestmem"),
    channel.Opened(7),
    channel.Accepted(),
    channel.Ended(9),
    channel.Output(2, b"text\n"),
    channel.Done(
        (channel.Returned(None), channel.Refused(22, "size=0x1", "", ""), channel.Signalled("SIGBUS", "at 0"))
    ),
    channel.Done((channel.Invisible("no"), channel.Unavailable("no /dev/kvm"), channel.Bug("KeyError: 1", "trace"))),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_a_request_arrives_as_it_was_sent(message: channel.Request) -> None:
    assert channel.decode_request(channel.encode(message)) == message


@pytest.mark.parametrize("message", REPLIES, ids=lambda message: type(message).__name__)
def test_a_reply_arrives_as_it_was_sent(message: channel.Reply) -> None:
    assert channel.decode_reply(channel.encode(message)) == message


@pytest.mark.parametrize("value", [0, 1, -1, -(2**63), S64_MAX, 2**63, U64_MAX])
def test_every_64_bit_number_travels(value: int) -> None:
    sent = channel.Batch((channel.Call("lseek", (3, value, 0)),))
    received = channel.decode_request(channel.encode(sent))
    assert isinstance(received, channel.Batch)
    assert received.calls[0].arguments == (3, value, 0)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 1 << 100, object(), {1, object()}])
def test_what_does_not_travel_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        channel.encode(channel.Batch((channel.Call("lseek", (3, value, 0)),)))


VALUES: list[tuple[object, object]] = [
    (None, None),
    (4, int),
    (None, FileStat | None),
    (FileStat(4096, 0, 4096, 0o100600, 1), FileStat | None),
    (PreFaultResult(0x1000, 0), PreFaultResult),
    (ConversionResult(0x3000), ConversionResult),
    (ConversionResult(), ConversionResult),
    (
        [[Exit("done", value=U64_MAX)], [Exit("mmio", gpa=4096, len=8, is_write=1, data="00"), Exit("done")]],
        list[list[Exit]],
    ),
    (Boot(0xD0000000, 0x7F0000000000), Boot | None),
    ((Touch(0, "w", 8, U64_MAX), Touch(1, "x", 1)), tuple[Touch, ...]),
]


@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_a_value_of_the_backend_arrives_equal_and_of_its_type(value: object, kind: object) -> None:
    reply = channel.decode_reply(channel.encode(channel.Done((channel.Returned(value),))))
    assert isinstance(reply, channel.Done)
    (outcome,) = reply.outcomes
    assert isinstance(outcome, channel.Returned)
    assert channel.convert(outcome.value, kind) == value


def test_a_refusal_inside_a_value_arrives_with_all_it_says() -> None:
    refused = KvmError(2, "gpa=0x1000", check="has-slot", hint="make a slot")
    reply = channel.decode_reply(channel.encode(channel.Done((channel.Returned(PreFaultResult(4096, 8192, refused)),))))
    assert isinstance(reply, channel.Done)
    (outcome,) = reply.outcomes
    assert isinstance(outcome, channel.Returned)
    came: PreFaultResult = channel.convert(outcome.value, PreFaultResult)
    assert (came.gpa, came.size) == (4096, 8192)
    assert came.refused is not None
    assert (came.refused.errno, came.refused.reason) == (2, "gpa=0x1000")
    assert (came.refused.check, came.refused.hint) == ("has-slot", "make a slot")


@pytest.mark.parametrize("value", ["text", [1], {"kind": "other"}, 1.5])
def test_a_value_of_another_type_is_a_protocol_error(value: object) -> None:
    with pytest.raises(channel.ProtocolError):
        channel.convert(value, list[list[Exit]])


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x91\xa5Nonce", channel.encode(REPLIES[0]), channel.encode(REQUESTS[0])[:-1]]
)
def test_what_is_no_request_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(channel.ProtocolError):
        channel.decode_request(body)


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_frames_are_the_same_however_the_stream_is_cut(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(channel.frame(session, body) for session, body in sent)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    frames = channel.Frames()
    received: list[tuple[int, bytes]] = []
    for start, end in pairwise(edges):
        received += frames.feed(stream[start:end])
    assert received == sent


def test_an_absurd_length_is_refused_before_its_bytes_are_awaited() -> None:
    with pytest.raises(channel.ProtocolError, match="largest"):
        list(channel.Frames().feed(struct.pack("<II", 1, channel.MAX_BODY + 1)))
    assert list(channel.Frames().feed(struct.pack("<II", 1, channel.MAX_BODY))) == []
