"""Whatever bytes arrive, the server lives, answers others and forgets nothing."""

import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volcore.limits import MIB

from . import client as c
from .client import HungUpError, RawClient
from .conftest import Place

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

edges = st.sampled_from([0, 1, 2, 3, 4095, 65536, 2**31, 2**32 - 1])
options = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda option, data, lie: struct.pack(">QII", c.IHAVEOPT, option, lie or len(data)) + data,
        st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1)),
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([c.info_data("disk"), c.meta_data("disk", "base:allocation")]),
        ),
        st.one_of(st.just(0), edges),
    ),
)
requests = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda flags, command, offset_bytes, length_bytes, data: (
            struct.pack(">IHHQQI", 0x25609513, flags, command, 1, offset_bytes, length_bytes) + data
        ),
        st.one_of(st.integers(0, 31), st.integers(0, 2**16 - 1)),
        st.one_of(st.integers(0, 9), st.integers(0, 2**16 - 1)),
        st.one_of(st.integers(0, 65 * MIB), st.integers(0, 2**64 - 1)),
        st.one_of(st.integers(0, 3000), edges),
        st.binary(max_size=3000),
    ),
)


def is_alive(place: Place) -> bool:
    with place.connect() as client:
        client.write(0, b"alive")
        return client.read(0, 5) == b"alive"


@pytest.mark.parametrize("backend", ["memory"], indirect=True)
@FUZZ
@given(flags=st.one_of(st.just(3), st.integers(0, 2**32 - 1)), messages=st.lists(options))
def test_handshakes(place: Place, flags: int, messages: list[bytes]) -> None:
    with RawClient(place.path, flags=flags) as client:
        send_all(client, messages)
    assert is_alive(place)
    place.wait_closed()


@FUZZ
@given(structured=st.booleans(), messages=st.lists(requests))
def test_requests(place: Place, structured: bool, messages: list[bytes]) -> None:
    with place.connect(structured=structured) as client:
        send_all(client, messages)
    assert is_alive(place)
    place.wait_closed()


def send_all(client: RawClient, messages: list[bytes]) -> None:
    """Send and half-close; read what comes, as a client that vanishes proves less."""
    with suppress(HungUpError, OSError):
        client.send(b"".join(messages))
        client.sock.shutdown(socket.SHUT_WR)
    assert client.hung_up()
