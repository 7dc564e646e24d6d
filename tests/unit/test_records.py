"""Records keep their JSON form: it is what the catalog compares."""

import json

from volcore.model.records import State, Volume

VOLUME = Volume(
    name="v", id="1", backend_id="v.1", size_bytes=4096, state=State.READY, create_time_ns=7
)


def test_the_form_read_is_the_form_compared() -> None:
    """Goal: a record is found unchanged without making its form again. Method: read, write."""
    raw = VOLUME.encode()
    read = Volume.decode(raw)
    assert read == VOLUME
    assert read.encode() is raw
    assert read.but(size_bytes=8192).encode() == VOLUME.but(size_bytes=8192).encode() != raw


def test_what_a_newer_server_added_is_not_passed_off_as_known() -> None:
    """Goal: this server never overwrites fields it cannot see. Method: add one, read, compare."""
    raw = json.dumps({**json.loads(VOLUME.encode()), "zone": "b"}).encode()
    read = Volume.decode(raw)
    assert read == VOLUME
    assert read.encode() == VOLUME.encode() != raw
