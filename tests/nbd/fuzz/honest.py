"""Clients that keep to the protocol, or almost, and compare every byte with a model.

Each has a region of `disk` of its own, so that it alone knows what must be there. A hang-up before
the replies leaves open when the requests end: what writes then is kept to a part of the region that
never changes, and rewrites what is there.
"""

import functools
import ssl
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from volcore.limits import KIB, MIB

from .. import client as c
from ..client import HungUpError, RawClient
from .target import SIZE_BYTES

LENGTHS = (1, 511, 512, 4095, 4096, 4097, 16 * KIB, 64 * KIB, 64 * KIB + 1, 256 * KIB, MIB)
COMMANDS = (c.READ,) * 5 + (c.WRITE,) * 5 + (c.TRIM, c.ZEROES, c.STATUS, c.FLUSH)
TOO_LONG = 32 * MIB + 1
GONE = (HungUpError, OSError)
TLS_SHARE = 0.3
"""TLS is served by Python, the rest by compiled code where there is any."""
CONSTANT_BYTES = 2 * MIB
"""Start of each region that keeps its first contents."""
UNREAD_BYTES_MAX = 64 * KIB
"""Replies that fit into any socket; who sends on with more of them unread may wait for ever."""


@dataclass
class Region:
    """What one fuzzing thread alone may change."""

    start_bytes: int
    length_bytes: int
    model: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.model = bytearray(self.length_bytes)

    def expected(self, at: int, length: int) -> bytes:
        return bytes(self.model[at : at + length])


@dataclass
class Pending:
    """A request that was sent: its kind, place in the region, and the errno that it must get."""

    command: int
    at: int = 0
    length: int = 0
    errno: int = 0


class HonestClient:
    """One connection to `disk`, with requests in flight that do not disturb each other."""

    def __init__(self, dice: Random, path: Path, region: Region) -> None:
        self.dice = dice
        self.region = region
        self.leaving = False
        self.structured = dice.random() < 0.7
        self.raw = connect(dice, path).go("disk", structured=self.structured)
        self.pending: dict[int, Pending] = {}
        if dice.random() < 0.2:
            self.raw.send = self._send_slowly  # type: ignore[method-assign]

    def close(self) -> None:
        self.raw.sock.close()

    def burst(self, count: int) -> None:
        """Send `count` requests, take the replies in any order, compare."""
        for _ in range(count):
            if self.dice.random() < 0.15:
                self._wrong()
            else:
                self._right()
            if len(self.pending) > self.dice.randrange(60):
                self.settle()
        self.settle()

    def settle(self) -> None:
        """Receive every reply that is due."""
        while self.pending:
            self._take_reply()

    def cut_off(self) -> None:
        """Hang up in the middle of a header or a payload; nothing may have been written."""
        at, length = self._place()
        header = self._header(c.WRITE, at, length)
        sent = header + self.dice.randbytes(length)
        self.raw.send(sent[: self.dice.randrange(1, len(sent))])
        self.close()

    def hang_up_with_replies_due(self) -> None:
        """Leave without reading what was asked for."""
        self.leaving = True
        self.raw.sock.settimeout(0.2)
        for _ in range(self.dice.randrange(1, 90)):
            length = self.dice.choice(LENGTHS)
            at = self.dice.randrange(CONSTANT_BYTES - length)
            if self.dice.random() < 0.5:
                self._ask(c.READ, at, length)
            else:
                self._ask(c.WRITE, at, length, data=self.region.expected(at, length))
        if self.dice.random() < 0.5:
            with suppress(OSError):
                self.raw.sock.recv(self.dice.randrange(1, 5000))
        self.close()

    def disconnect(self) -> None:
        """DISC with requests before it: all are answered, then the stream ends."""
        for _ in range(self.dice.randrange(8)):
            self._right()
        self.raw.send(self._header(c.DISC, 0, 0))
        self.settle()
        assert self.raw.hung_up()
        self.close()

    def _right(self) -> None:
        dice = self.dice
        command = dice.choice(COMMANDS)
        if command == c.STATUS and not self.structured:
            command = c.READ
        if command == c.FLUSH:
            self._ask(c.FLUSH, -self.region.start_bytes, 0)
            return
        at, length = self._place()
        changes = command in (c.WRITE, c.TRIM, c.ZEROES)
        for other in self.pending.values():
            apart = at + length <= other.at or other.at + other.length <= at
            if not apart and not (other.command == c.READ and not changes):
                self.settle()
                break
        flags = dice.choice((0, 0, 0, c.FUA))
        if command == c.ZEROES:
            flags |= dice.choice((0, c.NO_HOLE, c.FAST_ZERO))
        if command == c.READ and self.structured:
            flags |= dice.choice((0, c.DF))
        data = dice.randbytes(length) if command == c.WRITE else b""
        if data and dice.random() < 0.1:
            data = bytes(length)
        self._ask(command, at, length, flags=flags, data=data)
        if changes:
            self.region.model[at : at + length] = data or bytes(length)

    def _wrong(self) -> None:
        """Ask for what must be refused, with the connection staying as good as it was."""
        start = self.region.start_bytes
        match self.dice.randrange(7):
            case 0:
                self._ask(c.READ, SIZE_BYTES - start - 10, 11, errno=c.EINVAL)
            case 1:
                data = self.dice.randbytes(self.dice.choice((11, 5000, 300_000)))
                self._ask(c.WRITE, SIZE_BYTES - start - 10, 0, data=data, errno=c.ENOSPC)
            case 2:
                self._ask(c.READ, 0, TOO_LONG, errno=c.EINVAL)
            case 3:
                self._ask(self.dice.choice((5, 8, 9, 77, 0xFFFF)), 0, 4096, errno=c.EINVAL)
            case 4:
                self._ask(c.READ, 0, 4096, flags=1 << 9, errno=c.EINVAL)
            case 5:
                self._ask(c.TRIM, 2**64 - 1 - start, 2, errno=c.ENOSPC)
            case _:
                data = self.dice.randbytes(4096)
                self._ask(c.WRITE, 0, 0, flags=c.REQ_ONE, data=data, errno=c.EINVAL)

    def _place(self) -> tuple[int, int]:
        length = self.dice.choice(LENGTHS)
        at = self.dice.randrange(CONSTANT_BYTES, self.region.length_bytes - length)
        if self.dice.random() < 0.5:
            at &= -4096
        return at, length

    def _header(self, command: int, at: int, length: int, flags: int = 0) -> bytes:
        cookie, self.raw.next_cookie = self.raw.next_cookie, self.raw.next_cookie + 1
        offset = self.region.start_bytes + at
        return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)

    def _ask(
        self,
        command: int,
        at: int,
        length: int,
        *,
        flags: int = 0,
        data: bytes = b"",
        errno: int = 0,
    ) -> None:
        unread = sum(one.length for one in self.pending.values() if one.command == c.READ)
        if data and unread > UNREAD_BYTES_MAX and not self.leaving:
            self.settle()
        cookie = self.raw.next_cookie
        length = len(data) or length
        self.pending[cookie] = Pending(command, at, length, errno)
        self.raw.send(self._header(command, at, length, flags) + data)

    def _take_reply(self) -> None:
        """Receive one reply; a simple one does not say how long it is, its request does."""
        reply = self._reply()
        asked = self.pending.pop(reply.cookie)
        assert reply.errno == asked.errno, (reply, asked)
        if reply.errno or asked.command not in (c.READ, c.STATUS):
            return
        if asked.command == c.STATUS:
            assert 0 < sum(length for length, _ in reply.status) <= asked.length
            return
        expected = self.region.expected(asked.at, asked.length)
        if reply.simple:
            found = bytes(reply.pieces[0][2])  # type: ignore[arg-type]
        else:
            found = reply.data(self.region.start_bytes + asked.at, asked.length)
        assert found == expected, f"wrong data in {asked}"

    def _reply(self) -> c.Reply:
        if self.structured:
            return self.raw.reply()
        head = self.raw.receive(16)
        magic, errno, cookie = struct.unpack(">IIQ", head)
        assert magic == 0x67446698
        asked = self.pending[cookie]
        wanted = asked.length if asked.command == c.READ and not errno else 0
        data = self.raw.receive(wanted)
        return c.Reply(cookie, errno, pieces=[("simple", -1, data)], simple=True)

    def _send_slowly(self, data: bytes) -> None:
        """Send in small pieces with pauses, cuts at odd places."""
        cuts = sorted(self.dice.randrange(len(data)) for _ in range(self.dice.randrange(4)))
        try:
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                self.raw.sock.sendall(data[start:end])
                time.sleep(0.0005)
        except OSError as error:
            raise HungUpError from error


def connect(dice: Random, path: Path) -> RawClient:
    """Connect, with TLS or without."""
    context = client_context(path.parent)
    if context is None or dice.random() > TLS_SHARE:
        return RawClient(path)
    client = RawClient(path.with_name("tls.sock"))
    assert client.option(c.STARTTLS) == [(c.ACK, b"")]
    client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
    return client


@functools.cache
def client_context(directory: Path) -> ssl.SSLContext | None:
    """The context of a client that the target knows, if it has TLS."""
    files = directory / "ca" / "client-fuzzer"
    if not files.is_dir():
        return None
    context = ssl.create_default_context(cafile=files / "ca-cert.pem")
    context.load_cert_chain(files / "client-cert.pem", files / "client-key.pem")
    return context


def session(dice: Random, path: Path, region: Region) -> None:
    """One connection that is used for a while and left in one of several ways."""
    client = HonestClient(dice, path, region)
    try:
        for _ in range(dice.randrange(4)):
            client.burst(dice.randrange(1, 80))
        leave = dice.choice(
            (client.cut_off, client.hang_up_with_replies_due, client.disconnect, client.close)
        )
        with suppress(*GONE if leave == client.hang_up_with_replies_due else ()):
            leave()
    finally:
        client.close()


def prepare(dice: Random, path: Path, regions: list[Region]) -> None:
    """Fill the constant part of every region."""
    with RawClient(path).go("disk") as client:
        for region in regions:
            data = dice.randbytes(CONSTANT_BYTES)
            region.model[:CONSTANT_BYTES] = data
            client.write(region.start_bytes, data)


def check_all(path: Path, regions: list[Region]) -> None:
    """Read every region on one more connection."""
    with RawClient(path).go("disk") as client:
        for region in regions:
            for at in range(0, region.length_bytes, MIB):
                found = client.read(region.start_bytes + at, MIB)
                assert found == region.expected(at, MIB), f"wrong data at {region.start_bytes + at}"
