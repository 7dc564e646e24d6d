"""Requests that the compiled loop serves alone, on files."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from volcore.backends.local import LocalBackend, LocalStore
from volcore.kernels.datapath import HAS_LOOP
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, KIB, MIB, NBD_IN_FLIGHT_MAX

from . import client as c
from .client import RawClient
from .conftest import VOLUME_SIZE_BYTES, Place
from .devices import NativeDevice, WatchedDevice
from .test_transmission import (  # noqa: F401 - the same again, on this module's device
    test_a_client_that_vanishes_in_the_middle_changes_nothing,
    test_a_new_connection_sees_the_new_size_and_an_old_one_may_use_it,
    test_a_read_of_very_many_pieces,
    test_a_wrong_request_magic_ends_the_connection,
    test_an_oversize_write_is_refused_and_ends_the_connection,
    test_block_status,
    test_bytes_come_back,
    test_connections_are_coherent_and_a_flush_covers_all,
    test_disconnect_answers_what_is_outstanding,
    test_holes_travel_as_holes_and_short_ones_as_data,
    test_requests_of_no_bytes_succeed,
    test_short_requests_sent_together_are_all_answered,
    test_the_largest_request,
    test_wrong_requests_are_refused_and_the_next_is_served,
)

pytestmark = pytest.mark.skipif(not HAS_LOOP, reason="the compiled kernels are not in use")
B = BLOCK_SIZE_BYTES
READ_BYTES_AT_ONCE = 150 * KIB
"""A client that sends without reading must not ask for more than the socket takes."""


@pytest.fixture
def backend(nothing_leaks: None, tmp_path: Path) -> Iterator[LocalBackend]:
    backend = LocalBackend(LocalStore.open(tmp_path / "pool"))
    backend.open()
    backend.create("v1", VOLUME_SIZE_BYTES)
    yield backend
    backend.close()


@pytest.fixture
def device_type() -> type[WatchedDevice]:
    return NativeDevice


@pytest.fixture(params=[True, False], ids=["structured", "simple"])
def client(place: Place, request: pytest.FixtureRequest) -> Iterator[RawClient]:
    with place.connect(structured=request.param) as client:
        yield client


def layer_path(place: Place) -> Path:
    backend = place.backend
    assert isinstance(backend, LocalBackend)
    return backend._store.files.path(place.device.inner.chunks.top)


def test_python_is_left_alone(place: Place, client: RawClient) -> None:
    """Goal: the common case needs no GIL. Method: count calls into the device."""
    client.write(0, b"a" * 2 * MIB)
    client.read(0, B)
    place.device.calls.clear()
    for turn in range(20):
        client.write(turn * B, bytes([turn]) * B)
        assert client.read(turn * B, B) == bytes([turn]) * B
    client.write(0, b"b" * MIB)
    assert client.read(0, 2 * MIB) == b"b" * MIB + b"a" * MIB
    assert place.device.calls == []


def test_random_histories_of_many_clients(place: Place) -> None:
    """Goal: every byte is right at any depth of queue. Method: a model for each client's part."""
    part = VOLUME_SIZE_BYTES // 4
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            history(place, number, part)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for step in range(10):
        place.backend.create_snapshot("v1", f"s{step}")
    for thread in threads:
        thread.join(120)
    assert not failures


def history(place: Place, number: int, part: int) -> None:
    """Send bursts of requests that do not overlap, then compare all replies with a model."""
    rng = random.Random(number)
    model = bytearray(part)
    base = number * part
    with place.connect() as client:
        for _ in range(60):
            reads: dict[int, tuple[int, int]] = {}
            writes: set[int] = set()
            taken: list[tuple[int, int]] = []
            room = READ_BYTES_AT_ONCE
            for _ in range(rng.randrange(1, NBD_IN_FLIGHT_MAX)):
                length = rng.choice([B, B, B, B, 512, 3 * B, 64 * KIB, 128 * KIB])
                at = rng.randrange(0, part - length) // 512 * 512
                at -= at % B if length >= B else 0
                if any(at < end and start < at + length for start, end in taken):
                    continue  # what overlaps in flight has no order
                taken.append((at, at + length))
                if rng.random() < 0.5:
                    data = rng.randbytes(length)
                    model[at : at + length] = data
                    writes.add(client.request(c.WRITE, base + at, data=data))
                elif length <= room:
                    room -= length
                    reads[client.request(c.READ, base + at, length)] = (at, length)
            for _ in range(len(writes) + len(reads)):
                reply = client.reply()
                assert reply.errno == 0
                if reply.cookie in reads:
                    at, length = reads.pop(reply.cookie)
                    assert reply.data(base + at, length) == model[at : at + length]
                else:
                    writes.remove(reply.cookie)


def test_a_flipped_bit_is_an_error_with_its_place(place: Place, client: RawClient) -> None:
    client.write(0, b"x" * MIB)
    client.write(CHUNK_SIZE_BYTES, b"y" * MIB)
    client.read(0, MIB)
    with open(layer_path(place), "r+b") as file:
        file.seek(5 * B + 7)
        file.write(b"!")
    for length_bytes in (B, MIB):
        with capture_logs() as logs:
            reply = client.call(c.READ, 5 * B if length_bytes == B else 0, length_bytes)
        assert reply.errno == c.EIO
        assert [log["offset_bytes"] for log in logs] == [5 * B]
    assert client.read(6 * B, B) == b"x" * B
    assert client.read(CHUNK_SIZE_BYTES, MIB) == b"y" * MIB


def test_a_file_that_is_cut_off_is_an_error(place: Place, client: RawClient) -> None:
    client.write(0, b"x" * MIB)
    client.read(0, B)
    os.truncate(layer_path(place), 8 * B)
    assert client.read(0, 8 * B) == b"x" * 8 * B
    assert client.call(c.READ, 8 * B, B).errno == c.EIO
    assert client.call(c.READ, 0, MIB).errno == c.EIO


def test_a_read_only_export_refuses_writes(place: Place) -> None:
    with place.connect() as client:
        client.write(0, b"x" * B)
    place.exports.publish("frozen", place.opener, read_only=True)
    with place.connect("frozen") as client:
        assert client.read(0, B) == b"x" * B
        assert client.call(c.WRITE, 0, data=b"y" * B).errno == c.EPERM
        assert client.read(0, B) == b"x" * B
