"""A raw NBD client that follows the protocol document by its own numbers, and can break it."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

IHAVEOPT = 0x49484156454F5054
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = (
    1, 2, 3, 5, 6, 7, 8, 9, 10,
)  # fmt: skip
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN, ERR_SHUTDOWN = (0x80000000 + n for n in (1, 3, 6, 7))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << n for n in range(5))
EPERM, EIO, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 95, 108


class HungUpError(Exception):
    """The server closed the connection."""


@dataclass
class Reply:
    """A whole reply, its chunks put together."""

    cookie: int
    errno: int = 0
    offset_bytes: int | None = None
    message: str = ""
    pieces: list[tuple[str, int, bytes | int]] = field(default_factory=list)
    status: list[tuple[int, int]] = field(default_factory=list)
    simple: bool = False

    def data(self, offset_bytes: int, length_bytes: int) -> bytes:
        assert self.errno == 0
        out = bytearray(b"\xee" * length_bytes)
        covered = 0
        for _, at, piece in self.pieces:
            body = bytes(piece) if isinstance(piece, int) else piece
            out[at - offset_bytes : at - offset_bytes + len(body)] = body
            covered += len(body)
        assert covered == length_bytes == len(out)
        return bytes(out)


class RawClient:
    """One connection; `go` enters transmission."""

    def __init__(self, address: Path | tuple[str, int], *, flags: int | None = 3) -> None:
        if isinstance(address, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(20)
            self.sock.connect(str(address))
        else:
            self.sock = socket.create_connection(address, timeout=20)
        self.held: bytes | None = None
        self.structured = False
        self.size_bytes = self.flags = -1
        self.next_cookie = 1
        if flags is not None:
            magic, option_magic, self.server_flags = struct.unpack(">QQH", self.receive(18))
            assert (magic, option_magic) == (0x4E42444D41474943, IHAVEOPT)
            self.send(struct.pack(">I", flags))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send all requests of the block with one call, so that none arrives much later."""
        self.held = b""
        yield
        held, self.held = self.held, None
        self.send(held)

    def send(self, data: bytes) -> None:
        if self.held is not None:
            self.held += data
            return
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise HungUpError from error

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = self.sock.recv(count - len(data))
            except ConnectionResetError as error:
                raise HungUpError from error
            if not piece:
                raise HungUpError
            data += piece
        return data

    def send_option(self, option: int, data: bytes = b"") -> None:
        self.send(struct.pack(">QII", IHAVEOPT, option, len(data)) + data)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return its replies, the final one last."""
        self.send_option(option, data)
        replies = []
        while not replies or replies[-1][0] in (SERVER, REP_INFO, META):
            magic, same, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, same) == (0x3E889045565A9, option)
            replies.append((kind, self.receive(length)))
        return replies

    def go(self, name: str = "disk", *, structured: bool = True, meta: bool = True) -> "RawClient":
        if structured:
            assert self.option(STRUCTURED) == [(ACK, b"")]
            self.structured = True
            if meta:
                assert self.option(SET_META, meta_data(name, "base:allocation"))[-1][0] == ACK
        replies = self.option(GO, info_data(name))
        assert replies[-1] == (ACK, b""), replies
        _, self.size_bytes, self.flags = struct.unpack(">HQH", replies[0][1])
        return self

    def request(
        self,
        command: int,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
    ) -> int:
        cookie, self.next_cookie = self.next_cookie, self.next_cookie + 1
        length_bytes = length_bytes or len(data)
        header = struct.pack(
            ">IHHQQI", 0x25609513, flags, command, cookie, offset_bytes, length_bytes
        )
        self.send(header + data)
        return cookie

    def reply(self, read_length_bytes: int = 0) -> Reply:
        """Receive one whole reply; a simple one has `read_length_bytes` of data if it is fine."""
        reply: Reply | None = None
        while True:
            (magic,) = struct.unpack(">I", self.receive(4))
            if magic == 0x67446698:
                errno, cookie = struct.unpack(">IQ", self.receive(12))
                assert reply is None
                data = b"" if errno else self.receive(read_length_bytes)
                return Reply(cookie, errno, pieces=[("simple", -1, data)], simple=True)
            assert magic == 0x668E33EF
            assert self.structured
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            body = self.receive(length)
            reply = reply or Reply(cookie)
            assert reply.cookie == cookie, "chunks of two replies are mixed"
            self._chunk(reply, kind, body)
            if flags & 1:
                return reply

    def _chunk(self, reply: Reply, kind: int, body: bytes) -> None:
        if kind == 1:
            reply.pieces.append(("data", struct.unpack_from(">Q", body)[0], body[8:]))
        elif kind == 2:
            offset_bytes, length_bytes = struct.unpack(">QI", body)
            reply.pieces.append(("hole", offset_bytes, length_bytes))
        elif kind == 5:
            numbers = struct.unpack(f">{len(body) // 4}I", body)
            assert numbers[0] == 1
            reply.status = list(zip(numbers[1::2], numbers[2::2], strict=True))
        elif kind in (0x8001, 0x8002):
            reply.errno, text_length = struct.unpack_from(">IH", body)
            assert reply.errno
            reply.message = body[6 : 6 + text_length].decode()
            if kind == 0x8002:
                (reply.offset_bytes,) = struct.unpack(">Q", body[6 + text_length :])
            else:
                assert len(body) == 6 + text_length
        else:
            assert (kind, body) == (0, b"")

    def call(
        self,
        command: int,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
    ) -> Reply:
        cookie = self.request(command, offset_bytes, length_bytes, flags=flags, data=data)
        reply = self.reply(length_bytes if command == READ and not self.structured else 0)
        assert reply.cookie == cookie
        return reply

    def read(self, offset_bytes: int, length_bytes: int, *, flags: int = 0) -> bytes:
        reply = self.call(READ, offset_bytes, length_bytes, flags=flags)
        if reply.simple:
            assert reply.errno == 0
            return bytes(reply.pieces[0][2])
        return reply.data(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes, *, flags: int = 0) -> None:
        assert self.call(WRITE, offset_bytes, data=data, flags=flags).errno == 0

    def hung_up(self) -> bool:
        """Return whether the server hangs up at once, after what it still has to say."""
        self.sock.settimeout(5)  # less than a server waits for a silent client
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True


def string(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def info_data(name: str, *infos: int) -> bytes:
    return string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name: str, *queries: str) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))
