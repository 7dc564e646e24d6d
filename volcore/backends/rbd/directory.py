"""Which rbd images of a pool are volcore's: one row per volume, one per deleted image.

The directory decides what exists. A volume is there from the moment its row carries an image id
until the moment its row is exchanged for a row of the trash; both are one RADOS operation, so
a crash leaves a volume whole or gone. Foreign images of the pool have no row and are never seen.

Rows of the omap object `volcore_directory` (docs/formats/omap.md):
`v/<volume id>` - a volume: its image id, or, while it is being made, none yet;
`t/<image id>` - the image of a deleted volume, until no clone needs it: the name it had;
`s/server` - who served this pool last, until that one has stopped cleanly.

Invariants:
1. INV-RBD-1 (must): no image is deleted that has no row.
2. INV-RBD-2 (must): an image of ours has a row from before its first object to after its last.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.omap import OmapObject
from volcore.errors import IntegrityError, Reason

OBJECT_NAME: Final = "volcore_directory"
FORMAT: Final = 1

_VOLUME: Final = "v/"
_TRASH: Final = "t/"
_SERVER: Final = "s/server"


@dataclass(frozen=True, slots=True)
class Entry:
    """The row of one volume."""

    volume_id: str
    image_id: str
    """Empty while the volume is being made, and after a crash in the middle of that."""
    source: str
    """While being made as a clone of a live volume: that volume, which has a hidden snapshot."""
    raw: bytes
    """The row's bytes, to compare with."""


class Directory:
    """The rows of one pool; any thread, any number of processes."""

    def __init__(self, omap: OmapObject) -> None:
        self._omap = omap

    def find(self, volume_id: str) -> Entry | None:
        """Return the row of a volume, also of a half-made one."""
        raw = self._omap.find(_VOLUME + volume_id)
        return None if raw is None else _entry(volume_id, raw)

    def walk(self) -> Iterator[Entry]:
        """Yield the rows of all volumes, also of half-made ones."""
        for key, raw in self._omap.walk(_VOLUME):
            yield _entry(key.removeprefix(_VOLUME), raw)

    def reserve(self, volume_id: str, source: str) -> bool:
        """Write the row of a volume about to be made; return False if there is one already."""
        key = _VOLUME + volume_id
        return self._omap.commit(expect={key: None}, puts={key: _encode(image="", source=source)})

    def complete(self, volume_id: str, image_id: str) -> None:
        """Make a reserved volume exist."""
        row = _encode(image=image_id, source="")
        self._omap.commit(expect={}, puts={_VOLUME + volume_id: row})

    def forget(self, volume_id: str) -> None:
        """Take a reservation back whose image was never made."""
        self._omap.commit(expect={}, removals=(_VOLUME + volume_id,))

    def retire(self, entry: Entry, image_id: str) -> bool:
        """Exchange a volume's row for one of the trash; return False if another call did."""
        key = _VOLUME + entry.volume_id
        return self._omap.commit(
            expect={key: entry.raw},
            puts={_TRASH + image_id: _encode(name=entry.volume_id)},
            removals=(key,),
        )

    def retired_name(self, image_id: str) -> str | None:
        """Return the name that the image of a deleted volume had; None if it is none of those."""
        raw = self._omap.find(_TRASH + image_id)
        return None if raw is None else str(_decode(raw)["name"])

    def walk_retired(self) -> Iterator[str]:
        """Yield the image ids of deleted volumes that still hold something."""
        for key, _ in self._omap.walk(_TRASH):
            yield key.removeprefix(_TRASH)

    def freed(self, image_id: str) -> None:
        """Delete the row of an image that is gone."""
        self._omap.commit(expect={}, removals=(_TRASH + image_id,))

    def server(self) -> bytes | None:
        """Return who served this pool last, if that one did not stop cleanly."""
        return self._omap.find(_SERVER)

    def set_server(self, server: bytes | None) -> None:
        """Write down who serves this pool; None at a clean stop."""
        if server is None:
            self._omap.commit(expect={}, removals=(_SERVER,))
        else:
            self._omap.commit(expect={}, puts={_SERVER: server})


def _encode(**fields: str) -> bytes:
    """Return the canonical JSON of a row."""
    body: dict[str, Any] = {"v": FORMAT, **{k: v for k, v in fields.items() if v}}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _decode(raw: bytes) -> dict[str, Any]:
    """Return the fields of a row.

    Raises:
        IntegrityError: BAD_RECORD, it is no row, or of a newer format.
    """
    try:
        body = json.loads(raw)
        found = body["v"]
    except (ValueError, KeyError, TypeError) as err:
        raise IntegrityError(
            f"a row of {OBJECT_NAME} cannot be read: {raw[:80]!r}", reason=Reason.BAD_RECORD
        ) from err
    if found != FORMAT:
        raise IntegrityError(
            f"a row of {OBJECT_NAME} has format {found}, this server knows {FORMAT}; use the newer"
            " server",
            reason=Reason.BAD_RECORD,
        )
    return dict(body)


def _entry(volume_id: str, raw: bytes) -> Entry:
    """Return the row as a value."""
    body = _decode(raw)
    return Entry(volume_id, body.get("image", ""), body.get("source", ""), raw)
