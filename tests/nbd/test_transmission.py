"""Requests and replies, against the protocol document."""

import struct
import threading

import pytest
from structlog.testing import capture_logs

from volcore.errors import (
    BackendIOError,
    ExhaustedError,
    IntegrityError,
    InvariantViolationError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from volcore.limits import KIB, MIB, NBD_IN_FLIGHT_BYTES_MAX, NBD_IN_FLIGHT_MAX

from . import client as c
from .client import RawClient
from .conftest import VOLUME_SIZE_BYTES, Place, wait_for

END = VOLUME_SIZE_BYTES
HOLE = 3


@pytest.fixture(params=[True, False], ids=["structured", "simple"])
def client(place: Place, request: pytest.FixtureRequest):
    with place.connect(structured=request.param) as client:
        yield client


def test_bytes_come_back(client: RawClient) -> None:
    for offset_bytes, length_bytes in ((0, 1), (4095, 2), (8192, 200_000), (END - 7, 7)):
        data = bytes(i * 7 & 255 for i in range(length_bytes))
        client.write(offset_bytes, data)
        assert client.read(offset_bytes, length_bytes) == data
    assert client.read(0, 2 * MIB)[:8192] == b"\0" + bytes(4094) + b"\0\7" + bytes(4095)


def test_the_largest_request(client: RawClient) -> None:
    data = bytes(range(256)) * (32 * MIB // 256)
    client.write(0, data)
    assert client.read(0, 32 * MIB) == data


def test_requests_of_no_bytes_succeed(client: RawClient) -> None:
    for command in (c.READ, c.WRITE, c.TRIM, c.ZEROES):
        assert client.call(command, 5).errno == 0


def test_zeroes_and_trim(place: Place, client: RawClient) -> None:
    client.write(0, b"x" * 65536)
    assert client.call(c.TRIM, 0, 4096).errno == 0
    assert client.call(c.ZEROES, 8192, 4096).errno == 0
    assert client.call(c.ZEROES, 16384, 4096, flags=c.NO_HOLE).errno == 0
    assert client.call(c.ZEROES, 20480, 1, flags=c.FAST_ZERO).errno == 0
    assert client.call(c.ZEROES, 0, 4096, flags=c.FAST_ZERO | c.NO_HOLE).errno == c.ENOTSUP
    calls = place.device.calls
    assert [one for one in calls if one.startswith("write_z")] == [
        "write_zeroes",
        "write_zeroes_no_hole",
        "write_zeroes",
    ]
    x, z = b"x" * 4096, bytes(4096)
    assert client.read(0, 24576) == z + x + z + x + z + b"\0" + x[1:]
    assert client.call(c.TRIM, 0, END).errno == 0
    assert client.read(0, 65536) == bytes(65536)


def test_force_unit_access(place: Place, client: RawClient) -> None:
    client.write(0, b"x", flags=c.FUA)
    assert place.device.calls[-1] == "write_fua"
    for command in (c.TRIM, c.ZEROES):
        assert client.call(command, 0, 4096, flags=c.FUA).errno == 0
    assert place.device.calls[-3:-1] == ["discard", "flush"]
    assert client.call(c.READ, 0, 1, flags=c.FUA).errno == 0
    assert client.call(c.FLUSH, flags=c.FUA).errno == 0
    assert place.device.calls[-1] == "flush"


@pytest.mark.parametrize(
    ("command", "offset_bytes", "length_bytes", "flags", "errno"),
    [
        (c.READ, END, 1, 0, c.EINVAL),
        (c.READ, END - 1, 2, 0, c.EINVAL),
        (c.READ, 2**64 - 1, 2**32 - 1, 0, c.EINVAL),
        (c.READ, 0, 32 * MIB + 1, 0, c.EINVAL),
        (c.READ, 0, 1, c.NO_HOLE, c.EINVAL),
        (c.READ, 0, 1, 1 << 15, c.EINVAL),
        (c.WRITE, END, 1, 0, c.ENOSPC),
        (c.WRITE, 2**64 - 1, 4097, 0, c.ENOSPC),
        (c.WRITE, 0, 100_000, c.DF, c.EINVAL),
        (c.TRIM, END - 1, 2, 0, c.ENOSPC),
        (c.ZEROES, 0, 2**32 - 1, 0, c.ENOSPC),
        (c.ZEROES, 0, 1, c.REQ_ONE, c.EINVAL),
        (c.FLUSH, 1, 0, 0, c.EINVAL),
        (c.FLUSH, 0, 1, 0, c.EINVAL),
        (c.CACHE, 0, 1, 0, c.EINVAL),
        (c.STATUS, END, 1, 0, c.EINVAL),
        (c.STATUS, 0, 0, 0, c.EINVAL),
        (99, 0, 0, 0, c.EINVAL),
        (0xFFFF, 2**64 - 1, 2**32 - 1, 0xFFFF, c.EINVAL),
    ],
)
def test_wrong_requests_are_refused_and_the_next_is_served(
    client: RawClient, command: int, offset_bytes: int, length_bytes: int, flags: int, errno: int
) -> None:
    with capture_logs() as logs:
        data = bytes(length_bytes) if command == c.WRITE else b""
        reply = client.call(command, offset_bytes, length_bytes, flags=flags, data=data)
    assert reply.errno == errno
    assert client.read(0, 4) == bytes(4)
    assert [(log["event"], log["offset_bytes"]) for log in logs] == [
        ("nbd request refused", offset_bytes)
    ]


def test_dont_fragment_needs_structured_replies(place: Place) -> None:
    with place.connect(structured=False) as client:
        assert client.call(c.READ, 0, 1, flags=c.DF).errno == c.EINVAL


def test_an_oversize_write_is_refused_and_ends_the_connection(client: RawClient) -> None:
    client.request(c.WRITE, 0, 32 * MIB + 1)
    assert client.reply().errno == c.EINVAL
    assert client.hung_up()


def test_a_wrong_request_magic_ends_the_connection(place: Place, client: RawClient) -> None:
    cookie = client.request(c.WRITE, 0, data=b"done")
    client.send(b"\0" * 28)
    assert client.reply().cookie == cookie
    assert client.hung_up()
    place.wait_closed()


def test_holes_travel_as_holes_and_short_ones_as_data(place: Place) -> None:
    with place.connect() as client:
        client.write(256 * KIB, b"a" * (64 * KIB))
        client.write(336 * KIB, b"b" * (64 * KIB))  # a hole of 16 KiB before it
        client.call(c.TRIM, 300 * KIB, 4 * KIB)
        reply = client.call(c.READ, 0, 512 * KIB)
        shape = [
            (kind, at, piece if isinstance(piece, int) else len(piece))
            for kind, at, piece in reply.pieces
        ]
        assert shape == [
            ("hole", 0, 256 * KIB),
            ("data", 256 * KIB, 144 * KIB),
            ("hole", 400 * KIB, 112 * KIB),
        ]
        whole = client.read(0, 512 * KIB)
        assert whole[256 * KIB : 300 * KIB] == b"a" * (44 * KIB)
        assert whole[336 * KIB : 400 * KIB] == b"b" * (64 * KIB)
        unfragmented = client.call(c.READ, 0, 512 * KIB, flags=c.DF)
        assert [kind for kind, _, _ in unfragmented.pieces] == ["data"]
        assert unfragmented.data(0, 512 * KIB) == whole
        assert client.call(c.READ, 4 * MIB, 2 * MIB).pieces == [("hole", 4 * MIB, 2 * MIB)]


def test_a_read_of_very_many_pieces(place: Place) -> None:
    with place.connect() as client:
        for index in range(512):
            client.write(index * 64 * KIB, bytes([index & 255]) * 4096)
        reply = client.call(c.READ, 0, 32 * MIB)
        assert len(reply.pieces) == 1024
        data = reply.data(0, 32 * MIB)
        assert all(data[i * 65536 : i * 65536 + 4097] == bytes([i & 255]) * 4096 + b"\0"
                   for i in range(512))  # fmt: skip


def test_block_status(place: Place) -> None:
    with place.connect() as client:
        client.write(8192, b"x" * 8192)
        client.call(c.TRIM, 12288, 4096)
        client.write(20 * MIB, b"x" * MIB)
        assert client.call(c.STATUS, 0, END).status == [
            (8192, HOLE),
            (4096, 0),
            (20 * MIB - 12288, HOLE),
            (MIB, 0),
            (END - 21 * MIB, HOLE),
        ]
        assert client.call(c.STATUS, 0, END, flags=c.REQ_ONE).status == [(8192, HOLE)]
        assert client.call(c.STATUS, 12288, END - 12288, flags=c.REQ_ONE).status == [
            (20 * MIB - 12288, HOLE)
        ]
        assert client.call(c.STATUS, 9000, 100).status == [(100, 0)]
        client.call(c.TRIM, 0, END)
        for index in range(5000):
            client.write(index * 8192, b"y")
        status = client.call(c.STATUS, 0, END).status
        assert status == [(4096, 0), (4096, HOLE)] * 2048


def test_a_read_only_export_refuses_to_change(place: Place) -> None:
    place.exports.publish("frozen", place.opener, read_only=True)
    with place.connect("frozen") as client:
        for command in (c.WRITE, c.TRIM, c.ZEROES):
            data = b"x" * 100_000 if command == c.WRITE else b""
            assert client.call(command, 0, 100_000, data=data).errno == c.EPERM
        assert client.call(c.FLUSH).errno == 0
        assert client.read(0, 4096) == bytes(4096)
        assert set(place.device.calls) == {"read_into"}


@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (BackendIOError("the disk is ill", reason=Reason.BACKEND_IO), c.EIO),
        (ExhaustedError("full", reason=Reason.POOL_FULL), c.ENOSPC),
        (PreconditionError("no", reason=Reason.READ_ONLY), c.EPERM),
        (UnavailableError("bye", reason=Reason.SHUTTING_DOWN), c.ESHUTDOWN),
        (UnavailableError("away", reason=Reason.CLUSTER_UNREACHABLE), c.EIO),
        (InvariantViolationError("bug", reason=Reason.INVARIANT_VIOLATION), c.EIO),
        (MemoryError(), 12),
        (ZeroDivisionError("secret detail"), c.EIO),
    ],
)
def test_device_errors_become_error_numbers(
    place: Place, client: RawClient, error: Exception, errno: int
) -> None:
    client.read(0, 1)

    def fail(method: str, _offset_bytes: int) -> None:
        if method == "write":
            raise error

    place.device.before = fail
    with capture_logs() as logs:
        reply = client.call(c.WRITE, 8192, data=b"x" * 4096)
    assert reply.errno == errno
    assert "secret" not in reply.message
    assert reply.offset_bytes is None
    (log,) = logs
    assert log["event"] == "nbd request failed"
    assert (log["export"], log["offset_bytes"], log["command"]) == ("disk", 8192, "WRITE")
    assert client.read(8192, 4) == bytes(4)


@pytest.mark.parametrize("length_bytes", [4096, 65536, 2 * MIB])
def test_damaged_data_is_an_error_and_never_data(
    place: Place, client: RawClient, length_bytes: int
) -> None:
    client.write(0, b"s" * 2 * MIB)
    bad_offset_bytes = length_bytes - 4096

    def fail(method: str, offset_bytes: int) -> None:
        if method == "read_into" and offset_bytes <= bad_offset_bytes:
            raise IntegrityError(
                "checksum of a block is wrong",
                reason=Reason.BAD_CHECKSUM,
                volume="v1",
                offset_bytes=bad_offset_bytes,
            )

    place.device.before = fail
    with capture_logs() as logs:
        reply = client.call(c.READ, 0, length_bytes)
    assert reply.errno == c.EIO
    assert not any(piece for _, _, piece in reply.pieces)
    assert [log["offset_bytes"] for log in logs] == [bad_offset_bytes]
    if client.structured:
        assert reply.offset_bytes == bad_offset_bytes
        assert reply.message == "checksum of a block is wrong"
    assert client.read(length_bytes, 4) in (b"ssss", bytes(4))


def test_short_requests_sent_together_are_all_answered(client: RawClient) -> None:
    cookies = set()
    for index in range(200):
        cookies.add(client.request(c.WRITE, index * 512, data=bytes([index]) * 512))
    for _ in range(200):
        reply = client.reply()
        assert reply.errno == 0
        cookies.remove(reply.cookie)
    assert client.read(0, 200 * 512) == b"".join(bytes([i]) * 512 for i in range(200))


def test_slow_requests_overlap_and_may_overtake(place: Place, client: RawClient) -> None:
    """Goal: a slow bulk read does not hold up a flush. Method: gate the device."""
    gate = threading.Event()
    client.write(0, b"z" * 4 * MIB)

    def hold(method: str, offset_bytes: int) -> None:
        if method == "read_into" and offset_bytes == 0:
            assert gate.wait(10)

    place.device.before = hold
    with client.together():
        slow = [client.request(c.READ, 0, 2 * MIB), client.request(c.READ, 0, 2 * MIB)]
        flush = client.request(c.FLUSH)
    assert client.reply().cookie == flush
    wait_for(lambda: place.device.running_max >= 2)
    gate.set()
    assert {client.reply(2 * MIB).cookie for _ in slow} == set(slow)


def test_short_requests_overlap_once_the_storage_is_slow(place: Place) -> None:
    with place.connect() as client:
        client.read(0, 4096)
        pause = threading.Event()
        place.device.before = lambda _method, _offset: pause.wait(0.005) and None
        for _ in range(5):
            with client.together():
                for index in range(16):
                    client.request(c.READ, index * 4096, 4096)
            for _ in range(16):
                assert client.reply().errno == 0
        assert place.device.running_max == 4


def test_back_pressure(place: Place) -> None:
    """Goal: a client cannot make the server hold more than its share. Method: gate the device."""
    gate = threading.Event()
    with place.connect() as client:
        client.read(0, 1)
        place.device.before = lambda method, _: gate.wait(20) and None
        data = b"d" * (8 * MIB)

        def flood() -> None:
            for _ in range(2 * NBD_IN_FLIGHT_BYTES_MAX // len(data)):
                client.request(c.WRITE, 0, data=data)
            for _ in range(3 * NBD_IN_FLIGHT_MAX):
                client.request(c.FLUSH)

        sender = threading.Thread(target=flood)
        sender.start()
        sender.join(1)
        assert sender.is_alive(), "everything was taken in"
        gate.set()
        for _ in range(2 * NBD_IN_FLIGHT_BYTES_MAX // len(data) + 3 * NBD_IN_FLIGHT_MAX):
            assert client.reply().errno == 0
        sender.join()


def test_a_client_that_does_not_read_is_cut_off_at_the_end(place: Place) -> None:
    with place.connect() as client:
        client.write(0, b"x" * 8 * MIB)
        for _ in range(20):
            client.request(c.READ, 0, 8 * MIB)
    place.wait_closed()


def test_disconnect_answers_what_is_outstanding(place: Place, client: RawClient) -> None:
    cookies = {client.request(c.WRITE, i * MIB, data=b"q" * MIB) for i in range(8)}
    client.send(struct.pack(">IHHQQI", 0x25609513, 0, c.DISC, 0, 0, 0))
    assert {client.reply().cookie for _ in range(8)} == cookies
    assert client.hung_up()
    place.wait_closed()
    with place.connect() as again:
        assert again.read(0, 8 * MIB) == b"q" * 8 * MIB


@pytest.mark.parametrize("cut", [1, 27, 28, 29, 28 + 4096, 28 + MIB - 1])
def test_a_client_that_vanishes_in_the_middle_changes_nothing(place: Place, cut: int) -> None:
    message = struct.pack(">IHHQQI", 0x25609513, 0, c.WRITE, 9, 0, MIB) + b"v" * MIB
    with place.connect() as client:
        client.send(message[:cut])
    place.wait_closed()
    with place.connect() as again:
        assert again.read(0, MIB) == bytes(MIB)


def test_a_new_connection_sees_the_new_size_and_an_old_one_may_use_it(place: Place) -> None:
    with place.connect() as old:
        assert old.call(c.WRITE, END, data=b"x").errno == c.ENOSPC
        place.backend.resize("v1", END + MIB)
        with place.connect() as new:
            assert new.size_bytes == END + MIB
            new.write(END, b"new")
        assert old.read(END, 3) == b"new"


def test_connections_are_coherent_and_a_flush_covers_all(place: Place) -> None:
    with place.connect() as one, place.connect() as two:
        for index in range(50):
            writer, reader = (one, two) if index % 2 else (two, one)
            writer.write(index * 1000, bytes([index + 1]) * 1000)
            assert reader.read(index * 1000, 1000) == bytes([index + 1]) * 1000
        assert two.call(c.FLUSH).errno == 0
    assert len(place.opened) == 1
    assert place.device.calls.count("flush") == 1


def test_the_device_is_closed_with_its_last_connection_and_opened_again(place: Place) -> None:
    for _ in range(3):
        with place.connect() as one, place.connect():
            one.write(0, b"x")
        place.wait_closed()
    assert len(place.opened) == 3
    wait_for(lambda: place.server.connection_count == 0)
    place.backend.delete("v1")
