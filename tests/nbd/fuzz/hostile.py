"""Clients that break the protocol, lie, stall and vanish; they write to `scratch` only."""

import socket
import ssl
import struct
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from .. import client as c
from ..client import HungUpError, RawClient
from . import mutation

ANY_ERROR = (HungUpError, OSError, AssertionError, struct.error, ValueError)
"""What a client may see of a server that it has just lied to."""
SILENCE_S = 0.02


def noise(dice: Random, path: Path) -> None:
    """No protocol at all."""
    with plain(path) as sock:
        push(dice, sock, dice.randbytes(dice.randrange(5000)))
        end(dice, sock)


def options(dice: Random, path: Path) -> None:
    """Options, most of them wrong, one after the other without waiting."""
    with plain(path) as sock:
        flags = 3 if dice.random() < 0.8 else dice.getrandbits(32)
        export = dice.choice(("scratch", "locked", "nobody", "", "x" * 5000))
        messages = [mutation.option(dice, export) for _ in range(dice.randrange(30))]
        push(dice, sock, struct.pack(">I", flags) + b"".join(messages))
        end(dice, sock)


def handshake(dice: Random, path: Path) -> None:
    """A good handshake with faults in it, then requests as if it had worked."""
    final = dice.choice((c.GO, c.GO, c.EXPORT_NAME, c.INFO))
    good = mutation.handshake("scratch", structured=dice.random() < 0.5, final=final)
    requests = [mutation.request(dice) for _ in range(dice.randrange(5))]
    with plain(path) as sock:
        push(dice, sock, mutation.mutated(dice, good) + b"".join(requests))
        end(dice, sock)


def requests(dice: Random, path: Path) -> None:
    """Requests, most of them wrong, after a good handshake; cut off somewhere."""
    export = dice.choice(("scratch", "scratch", "locked"))
    with plain(path) as sock:
        push(dice, sock, mutation.handshake(export, structured=dice.random() < 0.6))
        sent = b"".join(mutation.request(dice) for _ in range(dice.randrange(1, 60)))
        if dice.random() < 0.3:
            sent = mutation.mutated(dice, sent)
        push(dice, sock, sent[: dice.randrange(len(sent) + 1)] if dice.random() < 0.5 else sent)
        end(dice, sock)


def stalled(dice: Random, path: Path) -> None:
    """Stop for a while at some byte, while requests are in flight, then go on or vanish."""
    with RawClient(path).go("scratch", structured=dice.random() < 0.5) as client:
        for _ in range(dice.randrange(20)):
            client.request(c.READ, dice.randrange(2**20), 65536)
        data = dice.randbytes(100_000)
        message = struct.pack(">IHHQQI", 0x25609513, 0, c.WRITE, 9, 4096, len(data)) + data
        at = dice.randrange(len(message))
        client.send(message[:at])
        time.sleep(dice.choice((0.001, SILENCE_S, 0.2)))
        if dice.random() < 0.5:
            client.send(message[at:])
        end(dice, client.sock)


def deaf(dice: Random, path: Path) -> None:
    """Ask for much and read nothing."""
    with RawClient(path).go("scratch", structured=dice.random() < 0.5) as client:
        client.sock.settimeout(0.1)
        for _ in range(dice.randrange(200)):
            client.request(c.READ, dice.randrange(32) * 2**20, dice.choice((2**16, 2**20, 2**25)))
        time.sleep(SILENCE_S)


def oversize(dice: Random, path: Path) -> None:
    """A write that is longer than any may be: refused, then hung up on."""
    with RawClient(path).go("scratch") as client:
        client.request(c.WRITE, 0, 2**25 + dice.randrange(1, 2**30), data=dice.randbytes(5000))
        if dice.random() < 0.5:
            with suppress(HungUpError):
                assert client.reply().errno
        end(dice, client.sock)


def crowd(dice: Random, path: Path) -> None:
    """Many connections at once, gone before they are used."""
    socks = [plain(path) for _ in range(dice.randrange(2, 30))]
    for sock in socks:
        if dice.random() < 0.5:
            push(dice, sock, mutation.handshake("scratch", structured=True))
    for sock in socks:
        sock.close()


def tls(dice: Random, path: Path) -> None:
    """Everything that can go wrong before, during and after TLS."""
    directory = path.parent / "ca" / "client-fuzzer"
    if not directory.is_dir():
        return
    with RawClient(path.with_name("tls.sock")) as client:
        kind = dice.randrange(4)
        if kind == 0:
            push(dice, client.sock, mutation.option(dice, "scratch") * 3)
            end(dice, client.sock)
            return
        assert client.option(c.STARTTLS) == [(c.ACK, b"")]
        if kind == 1:
            start = dice.choice((b"", b"\x16\x03\x01", b"\x17\x03\x03\x00\x10", b"\x80\x2e\x01"))
            push(dice, client.sock, start + dice.randbytes(dice.randrange(3000)))
            end(dice, client.sock)
            return
        context = ssl.create_default_context(cafile=directory / "ca-cert.pem")
        if kind == 2 or dice.random() < 0.8:
            context.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
        inner = client.sock
        with context.wrap_socket(inner, server_hostname="localhost") as sock:
            client.sock = sock
            push(dice, sock, mutation.handshake("scratch", structured=True)[4:])
            push(dice, sock, b"".join(mutation.request(dice) for _ in range(dice.randrange(20))))
            if kind == 2:  # bytes below TLS: records that nobody made
                with socket.socket(fileno=sock.detach()) as bare:
                    push(dice, bare, dice.randbytes(dice.randrange(1, 400)))
                    end(dice, bare)
            else:
                end(dice, sock)


SESSIONS = (noise, options, options, handshake, handshake, requests, requests, requests, requests,
            stalled, deaf, oversize, crowd, tls)  # fmt: skip


def plain(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


def push(dice: Random, sock: socket.socket, data: bytes) -> None:
    """Send, at times in pieces, reading nothing; give up when the server does not take it."""
    sock.settimeout(0.2)
    step = len(data) or 1
    if dice.random() < 0.2:
        step = dice.choice((1, 7, 28, 1000))
        data = data[: 200 * step]
    for at in range(0, len(data), step):
        try:
            sock.sendall(data[at : at + step])
        except TimeoutError:
            with suppress(OSError):
                sock.recv(2**20)
        if step < len(data) and dice.random() < 0.05:
            time.sleep(0.002)


def end(dice: Random, sock: socket.socket) -> None:
    """Leave: at once, half-closed and reading to the end, or with a reset."""
    kind = dice.randrange(3)
    if kind == 0:
        return
    if kind == 1 and not isinstance(sock, ssl.SSLSocket):
        sock.shutdown(socket.SHUT_WR)
    sock.settimeout(0.2 if kind == 1 else SILENCE_S)
    until_s = time.monotonic() + 2
    while time.monotonic() < until_s and sock.recv(2**16):
        pass
