"""The data messages of an upload, written and read without protobuf copying their megabyte.

`ImportImageRequest` with nothing but `data` is a tag, a length and the bytes. This module puts the
three together and takes them apart; every other message goes the usual way. What is on the wire is
the same, and either side may be a program that knows nothing of this.
"""

from typing import Final

from volcore.v1 import image_service_pb2

_TAG: Final = image_service_pb2.ImportImageRequest.DATA_FIELD_NUMBER << 3 | 2
"""Wire type 2: a length follows."""
_LENGTH_BYTES_MAX: Final = 5
"""A varint of more is no length that a message may have."""


def pack(request: image_service_pb2.ImportImageRequest | bytes | bytearray | memoryview) -> bytes:
    """Return a message as it is sent; bytes stand for a message that has them as `data`."""
    if isinstance(request, bytes | bytearray | memoryview):
        return b"".join((_head(len(request)), request))
    return request.SerializeToString()


def unpack(raw: bytes) -> image_service_pb2.ImportImageRequest | memoryview:
    """Return the message, or just the bytes in it if it has `data` and nothing else.

    Raises:
        google.protobuf.message.DecodeError: it is no such message.
    """
    start = _data_start(raw)
    if start:
        return memoryview(raw)[start:]
    return image_service_pb2.ImportImageRequest.FromString(raw)


def _head(length_bytes: int) -> bytes:
    head = bytearray((_TAG,))
    while length_bytes > 0x7F:
        head.append(length_bytes & 0x7F | 0x80)
        length_bytes >>= 7
    head.append(length_bytes)
    return bytes(head)


def _data_start(raw: bytes) -> int:
    """Return where the data begins that goes on to the end of the message, 0 if it is not so."""
    if raw[:1] != bytes((_TAG,)):
        return 0
    length_bytes = 0
    for at, byte in enumerate(raw[1 : 1 + _LENGTH_BYTES_MAX]):
        length_bytes |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            start = at + 2
            return start if start + length_bytes == len(raw) else 0
    return 0
