"""Which rbd images of a pool are volcore's: one row per volume, one per deleted image.

The directory decides what exists. A volume is there from the moment its row carries an image id
until the moment its row is exchanged for a row of the trash; both are one RADOS operation, so
a crash leaves a volume whole or gone. Foreign images of the pool have no row and are never seen.

Rows of the omap object `volcore_directory` (docs/formats/omap.md):
`v/<volume id>` - a volume: its image id, or, while it is being made, none yet, or what the short
path makes;
`t/<image id>` - the image of a deleted volume, until no clone needs it: the name it had;
`n/<number>` - a snapshot number in stock, or the image that a snapshot with it is being made of;
`f/<volume id>` - a volume that is being flattened;
`s/server` - who served this pool last, until that one has stopped cleanly;
`s/proof`, `s/proving` - what is known of direct clones, and whether scratch images may exist.

Invariants:
1. INV-RBD-1 (must): no image is deleted that has no row.
2. INV-RBD-2 (must): an image of ours has a row from before its first object to after its last, or
   from its adoption, or to its release.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.omap import OmapObject
from volcore.backends.rbd.reads import Wave
from volcore.errors import IntegrityError, Reason

OBJECT_NAME: Final = "volcore_directory"
HIDDEN_PREFIX: Final = ".clone-"
"""Of snapshots made to clone a live volume; ids never start with a dot."""
FORMAT: Final = 1
LINK_FORMAT: Final = 2
"""Of the row of what the short path makes: servers that cannot finish it refuse the pool."""

_VOLUME: Final = "v/"
_TRASH: Final = "t/"
_NUMBER: Final = "n/"
_FLATTEN: Final = "f/"
_SERVER: Final = "s/server"
_PROOF: Final = "s/proof"
_PROVING: Final = "s/proving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An image that the short path makes: enough to finish it or undo it."""

    image_id: str
    parent_id: str = ""
    """Empty: the image is blank. Servers that make none so finish or undo it all the same."""
    snap: int = 0
    hidden: bool = False
    """The snapshot was made for this clone only: it goes to the trash when that is whole."""


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
    link: Link | None = None
    """While made by the short path, and until the write behind the answer: which image it is."""


class Directory:
    """The rows of one pool; any thread, any number of processes."""

    def __init__(self, omap: OmapObject) -> None:
        self._omap = omap

    def find(self, volume_id: str) -> Entry | None:
        """Return the row of a volume, also of a half-made one."""
        raw = self._omap.find(_VOLUME + volume_id)
        return None if raw is None else _entry(volume_id, raw)

    def finding(self, wave: Wave, volume_ids: Sequence[str]) -> Callable[[], dict[str, Entry]]:
        """Read the rows of those volumes that have one, in a wave."""
        rows = self._omap.finding(wave, [_VOLUME + volume_id for volume_id in volume_ids])

        def result() -> dict[str, Entry]:
            found = ((key.removeprefix(_VOLUME), raw) for key, raw in rows().items())
            return {volume_id: _entry(volume_id, raw) for volume_id, raw in found}

        return result

    def walk(self) -> Iterator[Entry]:
        """Yield the rows of all volumes, also of half-made ones."""
        for key, raw in self._omap.walk(_VOLUME):
            yield _entry(key.removeprefix(_VOLUME), raw)

    def reserve(self, volume_id: str, source: str) -> bool:
        """Write the row of a volume about to be made; return False if there is one already."""
        key = _VOLUME + volume_id
        return self._omap.commit(expect={key: None}, puts={key: _encode(image="", source=source)})

    def reserving(self, op: Any, links: Mapping[str, Link]) -> None:
        """Put the rows of volumes that the short path is about to make into a write operation.

        It fails with ECANCELED, and changes nothing, if one of the volumes has a row.
        """
        puts = {_VOLUME + volume_id: _encode_link(link) for volume_id, link in links.items()}
        self._omap.fill(op, expect=dict.fromkeys(puts), puts=puts)

    def unreserving(self, op: Any, links: Mapping[str, Link]) -> None:
        """Put the deletion of the rows of `reserving` into a write operation.

        It fails with ECANCELED, and changes nothing, unless all are there.
        """
        rows = {_VOLUME + volume_id: _encode_link(link) for volume_id, link in links.items()}
        self._omap.fill(op, expect=rows, removals=rows)

    def completing(self, op: Any, links: Mapping[str, Link]) -> None:
        """Put the rows of volumes that the short path has made into a write operation."""
        rows = {
            _VOLUME + volume_id: _encode(image=link.image_id) for volume_id, link in links.items()
        }
        self._omap.fill(op, expect={}, puts=rows)

    def complete(self, volume_id: str, image_id: str) -> None:
        """Make a reserved volume exist."""
        row = _encode(image=image_id, source="")
        self._omap.commit(expect={}, puts={_VOLUME + volume_id: row})

    def take_over(self, volume_id: str, image_id: str) -> bool:
        """Make a foreign image a volume; return False if there is a row of that name already."""
        key = _VOLUME + volume_id
        return self._omap.commit(expect={key: None}, puts={key: _encode(image=image_id)})

    def take_over_all(self, images: Mapping[str, str]) -> bool:
        """Make images volumes, all or none: False if there is a row of one of the names."""
        rows = {_VOLUME + volume_id: _encode(image=one) for volume_id, one in images.items()}
        return self._omap.commit(expect=dict.fromkeys(rows), puts=rows)

    def let_go(self, entry: Entry) -> None:
        """Make a volume a foreign image; changes nothing if its row is not as given."""
        key = _VOLUME + entry.volume_id
        removals = (key, _FLATTEN + entry.volume_id)
        self._omap.commit(expect={key: entry.raw}, removals=removals)

    def complete_link(self, entry: Entry) -> None:
        """Make what the short path has made exist, if its row is still as given."""
        assert entry.link is not None
        key = _VOLUME + entry.volume_id
        row = _encode(image=entry.link.image_id, source="")
        self._omap.commit(expect={key: entry.raw}, puts={key: row})

    def forget(self, volume_id: str) -> None:
        """Take a reservation back whose image was never made."""
        self._omap.commit(expect={}, removals=(_VOLUME + volume_id,))

    def retire(self, entry: Entry, image_id: str) -> bool:
        """Exchange a volume's row for one of the trash; return False if another call did."""
        key = _VOLUME + entry.volume_id
        return self._omap.commit(
            expect={key: entry.raw},
            puts={_TRASH + image_id: _encode(name=entry.volume_id)},
            removals=(key, _FLATTEN + entry.volume_id),
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

    def add_numbers(self, snaps: Collection[int]) -> None:
        """Write down new snapshot numbers, which nothing uses yet."""
        self._omap.commit(expect={}, puts={_number_key(snap): _encode() for snap in snaps})

    def using_number(self, op: Any, snap: int, image_id: str) -> None:
        """Put into a write operation that a snapshot of the image is being made with a number.

        It fails with ECANCELED, and changes nothing, unless the number is in stock.
        """
        key = _number_key(snap)
        self._omap.fill(op, expect={key: _encode()}, puts={key: _encode(image=image_id)})

    def drop_numbers(self, snaps: Collection[int]) -> None:
        """Write down that numbers in stock are not volcore's any more."""
        if snaps:
            self._omap.commit(expect={}, removals=[_number_key(snap) for snap in snaps])

    def restore_number(self, snap: int, image_id: str) -> None:
        """Write down that no snapshot of the image was made with a number; it is in stock again."""
        key = _number_key(snap)
        self._omap.commit(expect={key: _encode(image=image_id)}, puts={key: _encode()})

    def numbers(self) -> Iterator[tuple[int, str]]:
        """Yield all numbers, ascending, each with the image that it is in use for, or empty."""
        for key, raw in self._omap.walk(_NUMBER):
            yield int(key.removeprefix(_NUMBER), 16), _decode(raw).get("image", "")

    def set_flattening(self, volume_id: str, flattening: bool) -> None:
        """Write down that a volume is about to be flattened, or that it is."""
        key = _FLATTEN + volume_id
        if flattening:
            self._omap.commit(expect={}, puts={key: _encode()})
        else:
            self._omap.commit(expect={}, removals=(key,))

    def walk_flattening(self) -> Iterator[str]:
        """Yield the volumes whose flatten has begun and has not ended well."""
        for key, _ in self._omap.walk(_FLATTEN):
            yield key.removeprefix(_FLATTEN)

    def proof(self) -> str:
        """Return for what direct clones were proven right, empty if for nothing."""
        raw = self._omap.find(_PROOF)
        return "" if raw is None else str(_decode(raw)["for"])

    def set_proof(self, proven_for: str) -> None:
        """Write down for what direct clones were proven right; the scratch images are gone."""
        row = _encode(**{"for": proven_for})
        self._omap.commit(expect={}, puts={_PROOF: row}, removals=(_PROVING,))

    def proving(self) -> bool:
        """Return whether scratch images of a proof may exist."""
        return self._omap.find(_PROVING) is not None

    def set_proving(self, proving: bool) -> None:
        """Write down that scratch images may exist, or that they are gone."""
        if proving:
            self._omap.commit(expect={}, puts={_PROVING: _encode()})
        else:
            self._omap.commit(expect={}, removals=(_PROVING,))

    def server(self) -> bytes | None:
        """Return who served this pool last, if that one did not stop cleanly."""
        return self._omap.find(_SERVER)

    def set_server(self, server: bytes | None) -> None:
        """Write down who serves this pool; None at a clean stop."""
        if server is None:
            self._omap.commit(expect={}, removals=(_SERVER,))
        else:
            self._omap.commit(expect={}, puts={_SERVER: server})


def _number_key(snap: int) -> str:
    """Return the key of the row of a snapshot number; ascending numbers have ascending keys."""
    return f"{_NUMBER}{snap:016x}"


def _encode(**fields: str) -> bytes:
    """Return the canonical JSON of a row."""
    body: dict[str, Any] = {"v": FORMAT, **{k: v for k, v in fields.items() if v}}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _encode_link(link: Link) -> bytes:
    """Return the row of a volume that the short path makes."""
    body = {"clone": link.image_id, "parent": link.parent_id, "snap": link.snap, "v": LINK_FORMAT}
    if link.hidden:
        body["hidden"] = 1
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
    if found not in (FORMAT, LINK_FORMAT):
        raise IntegrityError(
            f"a row of {OBJECT_NAME} has format {found}, this server knows {LINK_FORMAT}; use the"
            " newer server",
            reason=Reason.BAD_RECORD,
        )
    return dict(body)


def _entry(volume_id: str, raw: bytes) -> Entry:
    """Return the row as a value."""
    body = _decode(raw)
    link = None
    if body["v"] == LINK_FORMAT:
        link = Link(
            image_id=body["clone"],
            parent_id=body["parent"],
            snap=int(body["snap"]),
            hidden=bool(body.get("hidden")),
        )
    return Entry(volume_id, body.get("image", ""), body.get("source", ""), raw, link)
