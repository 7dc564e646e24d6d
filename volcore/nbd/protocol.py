"""Numbers and byte layouts of the NBD protocol; no I/O and no policy.

Source: the NBD protocol document, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
All integers on the wire are big-endian and unsigned.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

STRING_BYTES_MAX: Final = 4096
"""The protocol's bound for any string: export names, queries, messages."""
PREFERRED_BLOCK_BYTES: Final = 4096

# Magic numbers.
NBD_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

# Layouts.
GREETING: Final = struct.Struct(">QQH")
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
EXPORT_REPLY: Final = struct.Struct(">QH")
INFO_EXPORT: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
REQUEST: Final = struct.Struct(">IHHQQI")
"""magic, command flags, command, cookie, offset, length"""
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
"""magic, errno, cookie"""
CHUNK: Final = struct.Struct(">IHHQI")
"""magic, flags, type, cookie, length of payload"""
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
"""A chunk header and the offset that starts the payload."""
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")
ERROR_FIXED: Final = struct.Struct(">IH")
EXPORT_REPLY_PADDING: Final = bytes(124)

ALLOCATION_CONTEXT: Final = "base:allocation"
ALLOCATION_CONTEXT_ID: Final = 1
STATE_DATA: Final = 0
STATE_HOLE_ZERO: Final = 3
"""NBD_STATE_HOLE and NBD_STATE_ZERO."""


class HandshakeFlag(IntFlag):
    """Bits that server and client exchange first; both directions use the same two."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    """What a client may ask during the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """What the server answers to an option."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7


class InfoType(IntEnum):
    """Pieces of information about an export."""

    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


# Command flags as plain integers: they are tested on every request.
FLAG_FUA: Final = 1 << 0
FLAG_NO_HOLE: Final = 1 << 1
FLAG_DF: Final = 1 << 2
FLAG_REQ_ONE: Final = 1 << 3
FLAG_FAST_ZERO: Final = 1 << 4

REPLY_DONE: Final = 1 << 0
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_OFFSET_HOLE: Final = 2
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = (1 << 15) + 1
CHUNK_ERROR_OFFSET: Final = (1 << 15) + 2


class NbdErrno(IntEnum):
    """The only error numbers that may go over the wire."""

    OK = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


@dataclass(slots=True)
class Request:
    """One request header, without its magic."""

    flags: int
    command: int
    cookie: int
    offset_bytes: int
    length_bytes: int


class ProtocolError(Exception):
    """The peer broke the protocol in a way that only ends the connection."""


class Cursor:
    """Reads the fields of one option's data; running past the end is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        end = self._position + count
        if end > len(self._data):
            raise ValueError("option data ends early")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def u16(self) -> int:
        """Return the next 16-bit number."""
        return int.from_bytes(self.take(2))

    def u32(self) -> int:
        """Return the next 32-bit number."""
        return int.from_bytes(self.take(4))

    def string(self) -> str:
        """Return the next string, which its 32-bit length precedes."""
        count = self.u32()
        if count > STRING_BYTES_MAX:
            raise ValueError("string too long")
        return self.take(count).decode()  # UnicodeDecodeError is a ValueError

    def end(self) -> None:
        """Check that nothing is left."""
        if self._position != len(self._data):
            raise ValueError("option data is too long")


def unpack_request(data: bytearray, start: int) -> Request:
    """Return the request header at `start`.

    Raises:
        ProtocolError: wrong magic; the stream cannot be followed any further.
    """
    magic, flags, command, cookie, offset_bytes, length_bytes = REQUEST.unpack_from(data, start)
    if magic != REQUEST_MAGIC:
        raise ProtocolError("request with a wrong magic number")
    return Request(flags, command, cookie, offset_bytes, length_bytes)


def pack_option_reply(option: int, reply: OptionReply, data: bytes = b"") -> bytes:
    """Return one whole option reply."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def pack_simple_reply(cookie: int, errno: int = 0) -> bytes:
    """Return a simple reply without its data."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, errno, cookie)


def pack_data_chunk(cookie: int, offset_bytes: int, length_bytes: int, *, done: bool) -> bytes:
    """Return the header of an OFFSET_DATA chunk; `length_bytes` of data follow it."""
    return DATA_CHUNK.pack(
        CHUNK_MAGIC, done, CHUNK_OFFSET_DATA, cookie, length_bytes + 8, offset_bytes
    )


def pack_hole_chunk(cookie: int, offset_bytes: int, length_bytes: int, *, done: bool) -> bytes:
    """Return a whole OFFSET_HOLE chunk."""
    return HOLE_CHUNK.pack(
        CHUNK_MAGIC, done, CHUNK_OFFSET_HOLE, cookie, 12, offset_bytes, length_bytes
    )


def pack_none_chunk(cookie: int) -> bytes:
    """Return the final chunk of a reply without content."""
    return CHUNK.pack(CHUNK_MAGIC, REPLY_DONE, CHUNK_NONE, cookie, 0)


def pack_status_chunk(cookie: int, runs: list[tuple[int, int]]) -> bytes:
    """Return the final BLOCK_STATUS chunk of (length, state) runs for `base:allocation`."""
    numbers = [number for run in runs for number in run]
    body = struct.pack(f">I{len(numbers)}I", ALLOCATION_CONTEXT_ID, *numbers)
    return CHUNK.pack(CHUNK_MAGIC, REPLY_DONE, CHUNK_BLOCK_STATUS, cookie, len(body)) + body


def pack_error_chunk(cookie: int, errno: int, message: str, offset_bytes: int | None) -> bytes:
    """Return the final error chunk: ERROR_OFFSET where the error has an offset, else ERROR."""
    text = message.encode(errors="replace")[:STRING_BYTES_MAX]
    text = text.decode(errors="ignore").encode()  # never half a character
    body = ERROR_FIXED.pack(errno, len(text)) + text
    kind = CHUNK_ERROR
    if offset_bytes is not None:
        kind = CHUNK_ERROR_OFFSET
        body += U64.pack(offset_bytes)
    return CHUNK.pack(CHUNK_MAGIC, REPLY_DONE, kind, cookie, len(body)) + body
