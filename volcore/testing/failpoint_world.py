"""Where a server is killed: names of its own, and what the API shows there, alike in each run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from volcore.client import Client
from volcore.limits import MIB
from volcore.v1 import volume_pb2

POOL: Final = "pools/p"
QUIET_S: Final = 0.35
"""Longer than anything waits that is begun behind answers."""
_OF_A_RUN: Final = frozenset(
    {
        *("uid", "etag", "backend_name", "create_time", "delete_time", "purge_time"),
        *("allocated_bytes", "exclusive_bytes", "nbd", "rbd", "client_addresses", "adopted_from"),
        "digest",
    }
)
"""Fields that differ from one run to the next."""


class Storage(Protocol):
    """The storage of a pool around volcore; see `volcore.testing.failpoint_sites`."""

    directory: Path
    """Of files that the server may read."""

    their_pool: str
    """Another pool of Ceph."""

    def make_theirs(self, name: str, *, elsewhere: bool = False) -> None:
        """Make an rbd image with snapshot `s` as others do, in the same or in their pool."""

    def grow(self, backend_name: str, size_bytes: int) -> None:
        """Resize an rbd image around volcore."""

    def write(self, backend_name: str, offset_bytes: int, data: bytes) -> None:
        """Write to an rbd image, as a client does."""

    def read(self, backend_name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Return what a client of an rbd image reads."""

    def lose_records(self, part: str) -> None:
        """Delete the records of the catalog whose keys have `part`."""


@dataclass(frozen=True, slots=True)
class World:
    """Where a scenario happens: names of its own, a client, the storage."""

    client: Client
    tag: str
    storage: Storage

    def volume(self, name: str = "v") -> str:
        """Return a name of a volume."""
        return f"{POOL}/volumes/{self.tag}-{name}"

    def snapshot(self, name: str = "s", volume: str = "v") -> str:
        """Return a name of a snapshot."""
        return f"{self.volume(volume)}/snapshots/{name}"

    def image(self, name: str = "i") -> str:
        """Return a name of an image."""
        return f"{POOL}/images/{self.tag}-{name}"

    @property
    def group(self) -> str:
        """Name of a group snapshot."""
        return f"{POOL}/groupSnapshots/{self.tag}-g"

    @property
    def host(self) -> str:
        """Name of a host."""
        return f"{self.tag}-h"

    def file(self, word: str) -> Path:
        """Return the path of a file."""
        return self.storage.directory / f"{self.tag}.{word}"

    @property
    def source(self) -> Path:
        """A raw image of two chunks, in a file; images of one content would share their storage."""
        path = self.file("source")
        if not path.exists():
            path.write_bytes(self.tag.encode().ljust(4 * MIB, b"1") + b"2" * (4 * MIB))
        return path


def shown(client: Client) -> dict[str, str]:
    """Return all that the API shows of a pool, as text by name, without what each run has anew."""
    return {
        one.name: said(one)
        for listed in (
            client.list_volumes(POOL, show_deleted=True, view=volume_pb2.VOLUME_VIEW_FULL),
            client.list_snapshots(f"{POOL}/volumes/-"),
            client.list_images(POOL),
            client.list_group_snapshots(POOL),
            client.list_attachments(f"{POOL}/volumes/-"),
            client.list_fenced_hosts(POOL),
        )
        for one in listed
    }


def said(found: Any) -> str:
    """Return what a caller learns as text, without what each run has anew."""
    return json.dumps(_plain(found), sort_keys=True)


def _plain(found: Any) -> Any:
    if isinstance(found, Message):
        return _plain(MessageToDict(found, preserving_proto_field_name=True))
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items() if key not in _OF_A_RUN}
    if isinstance(found, list | tuple):
        return [_plain(one) for one in found]
    return found
