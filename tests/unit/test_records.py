"""Records keep their JSON form: it is what the catalog compares."""

import json
from functools import partial
from typing import Any

import pytest

from volcore.engine.pool import drop, put, unchanged
from volcore.errors import IntegrityError, PreconditionError, Reason
from volcore.model.records import State, TrashedVolume, Volume

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
    """Goal: this server never overwrites fields it cannot see. Method: add one, read, change."""
    raw = json.dumps({**json.loads(VOLUME.encode()), "zone": "b"}).encode()
    read = Volume.decode(raw)
    assert read == VOLUME
    assert read.added == ("zone",)
    assert read.encode() == raw
    for change in (
        read.check_known,
        partial(read.but, size_bytes=1),
        partial(drop, read),
        partial(put, VOLUME, read),
    ):
        with pytest.raises(PreconditionError, match="'v' is of a newer server") as caught:
            change()
        assert "it has zone" in caught.value.message
        assert caught.value.reason is Reason.RECORD_NEWER
    assert unchanged(read).expect == raw


def test_fields_added_deep_inside_are_seen() -> None:
    """Goal: a value in a record is no place to lose fields. Method: a trashed volume with more."""
    trashed = TrashedVolume(volume=VOLUME, delete_time_ns=1, purge_time_ns=2)
    body = json.loads(trashed.encode())
    body["volume"]["zone"] = "b"
    read = TrashedVolume.decode(json.dumps(body).encode())
    assert read == trashed
    assert read.added == ("zone",)


@pytest.mark.parametrize("more", [{"v": 2}, {"v": 2, "name": []}, {"state": "ARCHIVED"}])
def test_what_only_a_newer_server_understands_is_refused(more: dict[str, Any]) -> None:
    """Goal: one clear sentence with a stable reason. Method: another format, an unknown word."""
    raw = json.dumps({**json.loads(VOLUME.encode()), **more}).encode()
    with pytest.raises(PreconditionError) as caught:
        Volume.decode(raw, "v")
    assert caught.value.reason is Reason.RECORD_NEWER
    assert "volume 'v' is of a newer server" in caught.value.message


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"v":0}', b'{"v":"2"}', b'{"v":1}', b"\xff"])
def test_damage_is_not_taken_for_a_newer_server(raw: bytes) -> None:
    """Goal: nobody waits for a newer server in vain. Method: what no server writes."""
    with pytest.raises(IntegrityError) as caught:
        Volume.decode(raw)
    assert caught.value.reason is Reason.BAD_RECORD
