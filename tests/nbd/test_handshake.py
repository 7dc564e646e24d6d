"""Option haggling, against the protocol document."""

import struct
import time
from pathlib import Path

import pytest

from volcore.errors import BackendIOError, Reason
from volcore.nbd import NbdServer, TcpAddress, UnixAddress
from volcore.nbd.protocol import Cursor

from . import client as c
from .client import HungUpError, RawClient
from .conftest import VOLUME_SIZE_BYTES, Place, wait_for

pytestmark = pytest.mark.parametrize("backend", ["memory"], indirect=True)

WRITABLE = 1 | 4 | 8 | 32 | 64 | 256 | 2048
READ_ONLY = 1 | 2 | 4 | 8 | 256
SEND_DF = 128


def test_it_greets_as_fixed_newstyle_without_zeroes(place: Place) -> None:
    with RawClient(place.path) as client:
        assert client.server_flags == 3


def test_unknown_client_flags_end_the_connection(place: Place) -> None:
    with RawClient(place.path, flags=4) as client:
        assert client.hung_up()


def test_list_shows_what_is_published(place: Place) -> None:
    place.exports.publish("pool/größe 1", place.opener, read_only=True)
    place.exports.publish("gone", place.opener, read_only=True)
    place.exports.withdraw("gone", timeout_s=1)
    with RawClient(place.path) as client:
        replies = client.option(c.LIST)
    names = [Cursor(data).string() for kind, data in replies if kind == c.SERVER]
    assert names == ["disk", "pool/größe 1"] == place.exports.names()
    assert replies[-1] == (c.ACK, b"")
    assert not place.opened


@pytest.mark.parametrize("option", [4, 5, 11, 12, 99, 0, 0xFFFFFFFF])
def test_unknown_options_are_answered_and_skipped(place: Place, option: int) -> None:
    with RawClient(place.path) as client:
        assert client.option(option, b"whatever it is")[0][0] == c.ERR_UNSUP
        client.go()


def test_abort_is_acknowledged(place: Place) -> None:
    with RawClient(place.path) as client:
        assert client.option(c.ABORT) == [(c.ACK, b"")]
        assert client.hung_up()


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (c.LIST, b"x"),
        (c.STRUCTURED, b"x"),
        (c.GO, b""),
        (c.GO, c.string("disk")),
        (c.GO, c.string("disk") + b"\0\2\0\0"),
        (c.GO, c.info_data("disk") + b"x"),
        (c.GO, struct.pack(">I", 0xFFFFFFFF) + b"disk\0\0"),
        (c.GO, struct.pack(">I", 2) + b"\xff\xfe\0\0"),
        (c.INFO, struct.pack(">I", 5000) + bytes(5002)),
        (c.SET_META, b""),
        (c.SET_META, c.string("disk") + struct.pack(">I", 0xFFFFFFFF)),
        (c.LIST_META, c.meta_data("disk", "base:") + b"x"),
    ],
)
def test_malformed_options_are_refused_and_haggling_goes_on(
    place: Place, option: int, data: bytes
) -> None:
    with RawClient(place.path) as client:
        if option in (c.SET_META, c.LIST_META):
            client.option(c.STRUCTURED)
        assert client.option(option, data)[0][0] == c.ERR_INVALID
        client.go()


def test_info_tells_and_does_not_start(place: Place) -> None:
    with RawClient(place.path) as client:
        replies = client.option(c.INFO, c.info_data("disk", 1, 3, 77))
        assert [kind for kind, _ in replies] == [c.REP_INFO] * 3 + [c.ACK]
        assert struct.unpack(">HQH", replies[0][1]) == (0, VOLUME_SIZE_BYTES, WRITABLE)
        assert replies[1][1] == b"\0\1disk"
        assert struct.unpack(">HIII", replies[2][1]) == (3, 1, 4096, 32 << 20)
        client.go()
        assert len(place.opened) == 1
        assert client.flags == WRITABLE | SEND_DF


def test_a_read_only_export_says_so(place: Place) -> None:
    place.exports.publish("frozen", place.opener, read_only=True)
    with RawClient(place.path) as client:
        client.go("frozen", structured=False)
        assert client.flags == READ_ONLY


@pytest.mark.parametrize("option", [c.GO, c.INFO])
def test_an_unknown_export_is_an_error_and_haggling_goes_on(place: Place, option: int) -> None:
    with RawClient(place.path) as client:
        kind, message = client.option(option, c.info_data("nope"))[0]
        assert kind == c.ERR_UNKNOWN
        assert b"nope" in message
        client.go()


def test_an_export_that_does_not_open_is_an_error(place: Place) -> None:
    def broken(_read_only: bool):
        raise BackendIOError("no disk today", reason=Reason.BACKEND_IO)

    place.exports.publish("broken", broken, read_only=False)
    with RawClient(place.path) as client:
        for _ in range(2):
            assert client.option(c.GO, c.info_data("broken")) == [(c.ERR_UNKNOWN, b"no disk today")]
        client.go()


@pytest.mark.parametrize("zeroes", [False, True])
def test_export_name_starts_at_once(place: Place, zeroes: bool) -> None:
    with RawClient(place.path, flags=1 if zeroes else 3) as client:
        client.send_option(c.EXPORT_NAME, b"disk")
        assert struct.unpack(">QH", client.receive(10)) == (VOLUME_SIZE_BYTES, WRITABLE)
        if zeroes:
            assert client.receive(124) == bytes(124)
        client.write(4096, b"old style")
        assert client.read(4096, 9) == b"old style"


def test_an_unknown_export_name_ends_the_connection(place: Place) -> None:
    for name in (b"nope", b"\xff", bytes(5000)):
        with RawClient(place.path) as client:
            client.send_option(c.EXPORT_NAME, name)
            assert client.hung_up()


def test_metadata_contexts(place: Place) -> None:
    with RawClient(place.path) as client:
        assert client.option(c.LIST_META, c.meta_data("disk"))[0][0] == c.ERR_INVALID
        client.option(c.STRUCTURED)
        found = [(c.META, struct.pack(">I", 0) + b"base:allocation"), (c.ACK, b"")]
        assert client.option(c.LIST_META, c.meta_data("disk")) == found
        assert client.option(c.LIST_META, c.meta_data("disk", "base:")) == found
        assert client.option(c.LIST_META, c.meta_data("disk", "qemu:x")) == [(c.ACK, b"")]
        assert client.option(c.LIST_META, c.meta_data("nope"))[0][0] == c.ERR_UNKNOWN
        assert client.option(c.SET_META, c.meta_data("disk", "base:")) == [(c.ACK, b"")]
        chosen = client.option(c.SET_META, c.meta_data("disk", "x:y", "base:allocation"))
        assert chosen == [(c.META, struct.pack(">I", 1) + b"base:allocation"), (c.ACK, b"")]


@pytest.mark.parametrize("last", [("disk", "x:y"), ("other", "base:allocation"), None])
def test_block_status_needs_a_context_of_this_export(
    place: Place, last: tuple[str, str] | None
) -> None:
    place.exports.publish("other", place.opener, read_only=True)
    with RawClient(place.path) as client:
        client.option(c.STRUCTURED)
        client.structured = True
        if last:
            client.option(c.SET_META, c.meta_data("disk", "base:allocation"))
            assert client.option(c.SET_META, c.meta_data(*last))[-1][0] == c.ACK
        assert client.option(c.GO, c.info_data("disk"))[-1][0] == c.ACK
        assert client.call(c.STATUS, 0, 4096).errno == c.EINVAL
        assert client.read(0, 4) == bytes(4)


def test_too_much_option_data_ends_the_connection(place: Place) -> None:
    with RawClient(place.path) as client:
        client.send(struct.pack(">QII", c.IHAVEOPT, c.LIST, 0xFFFFFFFF))
        assert client.hung_up()


def test_a_wrong_magic_ends_the_connection(place: Place) -> None:
    with RawClient(place.path) as client:
        client.send(struct.pack(">QII", 1, c.LIST, 0))
        assert client.hung_up()


@pytest.mark.parametrize("trickle", [False, True])
def test_a_silent_client_loses_its_place(place: Place, tmp_path: Path, trickle: bool) -> None:
    path = tmp_path / "s"
    with (
        NbdServer(
            UnixAddress(path), exports=place.exports, connections_max=1, option_timeout_s=0.3
        ) as server,
        RawClient(path, flags=None if not trickle else 3) as silent,
    ):
        with RawClient(path, flags=None) as refused:
            assert refused.hung_up()
        started_s = time.monotonic()
        try:
            while trickle and time.monotonic() < started_s + 5:
                silent.send(b"I")
                time.sleep(0.1)
        except HungUpError:
            pass
        assert silent.hung_up()
        assert time.monotonic() - started_s < 3
        wait_for(lambda: server.connection_count == 0)
        RawClient(path).sock.close()


def test_it_serves_loopback_tcp_and_no_other(place: Place) -> None:
    for host in ("127.0.0.1", "::1"):
        with NbdServer(TcpAddress(host, 0), exports=place.exports) as server:
            (address,) = server.addresses
            assert isinstance(address, TcpAddress)
            with RawClient((host, address.port)) as client:
                client.go().write(0, host.encode())
                assert client.read(0, len(host)) == host.encode()
