"""Data messages of uploads that protobuf does not touch are the messages of protobuf."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from volcore.limits import MIB
from volcore.v1.image_service_pb2 import ImportHeader, ImportImageRequest
from volcore.wire import frames

LENGTHS = [0, 1, 127, 128, 129, 16383, 16384, MIB - 1, MIB, 4 * MIB]


@pytest.mark.parametrize("length", LENGTHS)
def test_same_bytes(length):
    """Goal: the wire does not change. Method: compare with protobuf, both ways."""
    data = bytes(length)
    message = ImportImageRequest(data=data)
    raw = message.SerializeToString()
    assert frames.pack(data) == frames.pack(memoryview(data)) == frames.pack(message) == raw
    assert frames.unpack(raw) == data


def test_other_messages():
    header = ImportImageRequest(header=ImportHeader(parent="pools/p", image_id="i"))
    raw = frames.pack(header)
    assert raw == header.SerializeToString()
    assert frames.unpack(raw) == header
    assert frames.unpack(b"") == ImportImageRequest()


@given(st.binary(max_size=64).map(lambda tail: b"\x12" + tail) | st.binary(max_size=64))
def test_any_bytes(raw):
    """Goal: nothing is read otherwise than by protobuf. Method: any bytes, most begin like data."""
    try:
        wanted = ImportImageRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            frames.unpack(raw)
        return
    found = frames.unpack(raw)
    assert found == (wanted.data if isinstance(found, memoryview) else wanted)


def test_two_frames_in_one_message():
    """Goal: a field that is given twice counts as protobuf counts it, the last one wins."""
    raw = ImportImageRequest(data=b"ab").SerializeToString() * 2
    found = frames.unpack(raw)
    assert found == ImportImageRequest(data=b"ab")
