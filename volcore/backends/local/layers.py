"""The rows of the local backend: layers, volumes, snapshots, pages and overwrite notes.

Changes are made inside a transaction of the caller; names are checked by the backend. A layer's
chain lists its ancestors and itself, oldest first.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from volcore.backends import refusals
from volcore.backends.local.pagecodec import Page, Row, decoded, encoded
from volcore.backends.local.pagecodec import damaged as damaged_page
from volcore.database import Database
from volcore.errors import IntegrityError, PreconditionError, Reason
from volcore.seal import DIGEST_MASK, Seal, damaged

__all__ = ["FORMAT", "LayerRow", "Layers", "Page", "PointRow"]

FORMAT: Final = 4
"""Versions 1 to 3 are read and raised; docs/formats/local.md."""
_UNSEALED: Final = frozenset({1, 2})
LOG_BYTES_MAX: Final = 1600 << 10
"""Of pages in the log before they move to the database."""
RESERVE_BYTES: Final = 2 << 20
"""Space that log and database each keep at a start: more than one filled log."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS layer (
  id INTEGER PRIMARY KEY AUTOINCREMENT, parent_id INTEGER REFERENCES layer (id),
  owner TEXT NOT NULL, depth INTEGER NOT NULL, frozen INTEGER NOT NULL,
  pages INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX IF NOT EXISTS layer_parent ON layer (parent_id);
CREATE INDEX IF NOT EXISTS layer_owner ON layer (owner);
CREATE TABLE IF NOT EXISTS volume (
  volume_id TEXT PRIMARY KEY, top_layer INTEGER NOT NULL REFERENCES layer (id),
  size_bytes INTEGER NOT NULL, parent_volume TEXT, parent_snapshot TEXT) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS volume_layer ON volume (top_layer);
CREATE TABLE IF NOT EXISTS snapshot (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  volume_id TEXT NOT NULL REFERENCES volume (volume_id), snapshot_id TEXT NOT NULL,
  layer INTEGER NOT NULL REFERENCES layer (id), size_bytes INTEGER NOT NULL,
  parent_volume TEXT, parent_snapshot TEXT, UNIQUE (volume_id, snapshot_id)) STRICT;
CREATE INDEX IF NOT EXISTS snapshot_layer ON snapshot (layer);
CREATE TABLE IF NOT EXISTS page (
  layer_id INTEGER NOT NULL REFERENCES layer (id), chunk_index INTEGER NOT NULL,
  states BLOB NOT NULL, crcs BLOB NOT NULL, checksum INTEGER NOT NULL,
  PRIMARY KEY (layer_id, chunk_index)) STRICT;
CREATE INDEX IF NOT EXISTS page_states ON page (layer_id, chunk_index, checksum, states);
CREATE TABLE IF NOT EXISTS dirty (
  layer_id INTEGER NOT NULL REFERENCES layer (id), chunk_index INTEGER NOT NULL,
  PRIMARY KEY (layer_id, chunk_index)) STRICT, WITHOUT ROWID
"""
_SEALED: Final = {
    "layer": ("id", "parent_id", "owner", "depth", "frozen"),
    "volume": ("volume_id", "top_layer", "size_bytes", "parent_volume", "parent_snapshot"),
    "snapshot": (
        "seq", "volume_id", "snapshot_id", "layer", "size_bytes", "parent_volume",
        "parent_snapshot",
    ),
}  # fmt: skip
_MARK: Final = "(page.checksum + page.chunk_index * 257)"
"""What a page adds to its layer's sum: below 2**33, so that 2**24 pages stay below 2**63."""
_WEIGHTS: Final = 1024
"""A page counts in the digest by its layer: no layer's sum passes for another's."""
_PAGE_CHANGES: Final = {
    "INSERT": (("+", "NEW"),),
    "DELETE": (("-", "OLD"),),
    "UPDATE OF layer_id, chunk_index, checksum": (("-", "OLD"), ("+", "NEW")),
}

_PAGES: Final = (
    "SELECT key.layer_id, key.chunk_index, page.states, page.crcs, key.checksum"
    " FROM page AS key INDEXED BY page_states LEFT JOIN page ON page.rowid = key.rowid"
)
"""The index was proven with the layer, so a page that does not fit its entry is lost or old."""
_PAGES_OF_CHUNK: Final = (
    _PAGES + " WHERE key.chunk_index = ? AND key.layer_id IN (SELECT value FROM json_each(?))"  # noqa: S608
)
_PAGES_AMONG: Final = (
    _PAGES + " WHERE key.layer_id = ? AND key.chunk_index IN (SELECT value FROM json_each(?))"  # noqa: S608
    " ORDER BY key.chunk_index"
)
_PAGES_FIRST: Final = _PAGES + " WHERE key.layer_id = ? ORDER BY key.chunk_index LIMIT ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """A volume's head or a snapshot: a layer seen with a size, and where it came from."""

    layer_id: int
    size_bytes: int
    parent_volume: str | None
    parent_snapshot: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A layer; `depth` is at least the count of its ancestors."""

    layer_id: int
    parent_id: int | None
    depth: int


class Layers:
    """Access to the rows over one connection."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self.database = database
        self._proven: set[int] = set()
        """Layers whose pages were all there when they were first used."""

    def create_schema(self, directory: Path) -> None:
        """Create what is missing; refuse a newer format, and a database that is not as it was left.

        Raises:
            PreconditionError: POOL_UNUSABLE, the format is newer.
            IntegrityError: BAD_RECORD.
        """
        with self.database.sealing(directory / "witness") as seal:
            found = self._version()
            if found is not None and found > FORMAT:
                raise PreconditionError(
                    f"pool directory {directory} has format {found}, this server knows "
                    f"{FORMAT}; it was left alone: use the newer server",
                    reason=Reason.POOL_UNUSABLE,
                )
            if not seal.fresh:
                self._check_whole(found)
            elif found is not None and found not in _UNSEALED:
                raise damaged(f"it has format {found} and no seal")
            seal.create()
            self._upgrade(found)
            protect(self.database, seal)

    def _version(self) -> int | None:
        known = "SELECT 1 FROM sqlite_master WHERE name = 'local_format'"
        if not self.database.query(known):
            return None
        rows = self.database.query("SELECT version FROM local_format")
        if not rows:
            return None
        (version,) = rows[0]
        if not isinstance(version, int):  # a damaged page keeps to no column's type
            raise damaged("its format is not a number")
        return version

    def _check_whole(self, version: int | None) -> None:
        """Refuse a sealed database that lacks a table or says nonsense about itself."""
        known = {row[0] for row in self.database.query("SELECT name FROM sqlite_master")}
        wanted = {line.split()[5] for line in _SCHEMA.split(";\n") if " TABLE " in line}
        if version is None or version in _UNSEALED or not wanted <= known:
            raise damaged("it lacks what every pool has")

    def _upgrade(self, version: int | None) -> None:
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS local_format (version INTEGER NOT NULL) STRICT"
        )
        if version is None:
            self.database.execute("INSERT INTO local_format VALUES (?)", (FORMAT,))
        elif version < FORMAT:
            for index in ("page_brief", "page_facts"):  # of versions 2 and 3
                self.database.execute(f"DROP INDEX IF EXISTS {index}")
            if version in _UNSEALED:
                added = "pages INTEGER NOT NULL DEFAULT 0"
                total = f"SELECT coalesce(sum({_MARK}), 0) FROM page WHERE layer_id = layer.id"  # noqa: S608
                self.database.execute(f"ALTER TABLE layer ADD COLUMN {added}")
                self.database.execute(f"UPDATE layer SET pages = ({total})")  # noqa: S608
            self.database.execute("UPDATE local_format SET version = ?", (FORMAT,))
        for statement in _SCHEMA.split(";\n"):
            self.database.execute(statement)

    def reserve(self) -> None:
        """Give log and database some spare space, so that deletes succeed on a full disk."""
        self.database.execute("CREATE TABLE IF NOT EXISTS reserve (filler BLOB) STRICT")
        self.database.execute("INSERT INTO reserve VALUES (zeroblob(?))", (RESERVE_BYTES,))
        self.database.execute("DELETE FROM reserve")
        ((page_bytes,),) = self.database.query("PRAGMA page_size")
        self.database.query(f"PRAGMA wal_autocheckpoint({LOG_BYTES_MAX // page_bytes})")
        self.database.query("PRAGMA wal_checkpoint(PASSIVE)")

    # Volumes and snapshots

    def find_volume(self, volume_id: str) -> PointRow | None:
        """Return the volume's head."""
        return self._found(
            "SELECT top_layer, size_bytes, parent_volume, parent_snapshot FROM volume"
            " WHERE volume_id = ?",
            (volume_id,),
        )

    def find_snapshot(self, volume_id: str, snapshot_id: str) -> PointRow | None:
        """Return the snapshot."""
        return self._found(
            "SELECT layer, size_bytes, parent_volume, parent_snapshot FROM snapshot"
            " WHERE volume_id = ? AND snapshot_id = ?",
            (volume_id, snapshot_id),
        )

    def point(self, volume_id: str, snapshot_id: str | None = None) -> PointRow:
        """Return the snapshot, or the volume's head.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND.
        """
        if snapshot_id is not None:
            point = self.find_snapshot(volume_id, snapshot_id)
            if point is not None:
                return point
        head = self.find_volume(volume_id)
        if head is None:
            raise refusals.volume_missing(volume_id)
        if snapshot_id is not None:
            raise refusals.snapshot_missing(volume_id, snapshot_id)
        return head

    def volume_ids(self) -> list[str]:
        """Return every volume id."""
        return [row[0] for row in self.database.query("SELECT volume_id FROM volume")]

    def find_room(
        self, volume_id: str, snapshot_id: str, count: int
    ) -> tuple[PointRow, bool, bool] | None:
        """Return the volume's head, whether it has such a snapshot, and whether it has `count`."""
        rows = self.database.query(
            "SELECT top_layer, size_bytes, parent_volume, parent_snapshot,"
            " EXISTS (SELECT 1 FROM snapshot WHERE volume_id = ?1 AND snapshot_id = ?2),"
            " (SELECT 1 FROM snapshot WHERE volume_id = ?1 LIMIT 1 OFFSET ?3)"
            " FROM volume WHERE volume_id = ?1",
            (volume_id, snapshot_id, count - 1),
        )
        for *point, is_taken, is_full in rows:
            return _point_row(*point), bool(is_taken), bool(is_full)
        return None

    def snapshots(self, volume_id: str) -> list[tuple[str, int]]:
        """Return (snapshot id, layer id), oldest first."""
        return self.database.query(
            "SELECT snapshot_id, layer FROM snapshot WHERE volume_id = ? ORDER BY seq", (volume_id,)
        )

    def put_volume(self, volume_id: str, point: PointRow) -> None:
        """Add the volume or replace its head."""
        self.database.execute(
            "INSERT INTO volume VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (volume_id) DO UPDATE SET"
            " top_layer = ?2, size_bytes = ?3, parent_volume = ?4, parent_snapshot = ?5",
            (
                volume_id,
                point.layer_id,
                point.size_bytes,
                point.parent_volume,
                point.parent_snapshot,
            ),
        )

    def add_snapshot(self, volume_id: str, snapshot_id: str, point: PointRow) -> None:
        """Add a snapshot, the newest."""
        self.database.execute(
            "INSERT INTO snapshot (volume_id, snapshot_id, layer, size_bytes, parent_volume,"
            " parent_snapshot) VALUES (?, ?, ?, ?, ?, ?)",
            (
                volume_id,
                snapshot_id,
                point.layer_id,
                point.size_bytes,
                point.parent_volume,
                point.parent_snapshot,
            ),
        )

    def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Delete the row; the layer is the caller's to free."""
        self.database.execute(
            "DELETE FROM snapshot WHERE volume_id = ? AND snapshot_id = ?", (volume_id, snapshot_id)
        )

    def delete_volume(self, volume_id: str) -> None:
        """Delete the rows of the volume and its snapshots; layers are the caller's to free."""
        self.database.execute("DELETE FROM snapshot WHERE volume_id = ?", (volume_id,))
        self.database.execute("DELETE FROM volume WHERE volume_id = ?", (volume_id,))

    # Layers

    def add_layer(self, owner: str, parent_id: int | None) -> int:
        """Add an empty layer and return its id."""
        return self.database.insert(
            "INSERT INTO layer (parent_id, owner, depth, frozen)"
            " SELECT ?1, ?2, coalesce((SELECT depth + 1 FROM layer WHERE id = ?1), 0), 0",
            (parent_id, owner),
        )

    def layer(self, layer_id: int) -> LayerRow:
        """Return the layer."""
        rows = self.database.query("SELECT parent_id, depth FROM layer WHERE id = ?", (layer_id,))
        return LayerRow(layer_id=layer_id, parent_id=rows[0][0], depth=rows[0][1])

    def exists(self, layer_id: int) -> bool:
        """Tell whether there is such a layer."""
        return bool(self.database.query("SELECT 1 FROM layer WHERE id = ?", (layer_id,)))

    def layer_ids(self, owner: str | None = None) -> list[int]:
        """Return the ids of all layers, or of those that `owner` wrote."""
        sql = "SELECT id FROM layer"
        if owner is None:
            return [row[0] for row in self.database.query(sql)]
        return [row[0] for row in self.database.query(f"{sql} WHERE owner = ?", (owner,))]

    def chain(self, layer_id: int, known: Sequence[int] = ()) -> list[int]:
        """Return the layer's ancestors and itself, oldest first.

        *Complexity*: the depth, or constant for the child of the last one of a `known` chain.
        """
        if known and layer_id != known[-1] and self.layer(layer_id).parent_id == known[-1]:
            return [*known, layer_id]
        rows = self.database.query(
            "WITH RECURSIVE up (id, parent_id, height) AS ("
            " SELECT id, parent_id, 0 FROM layer WHERE id = ? UNION ALL"
            " SELECT layer.id, layer.parent_id, height + 1 FROM layer JOIN up"
            " ON layer.id = up.parent_id) SELECT id FROM up ORDER BY height DESC",
            (layer_id,),
        )
        chain = [row[0] for row in rows]
        self.prove(chain)
        return chain

    def prove(self, chain: list[int]) -> None:
        """Check that the layers have the pages they had, once for each layer.

        Raises:
            IntegrityError: BAD_RECORD, maps are missing or old.
        """
        todo = [layer_id for layer_id in chain if layer_id not in self._proven]
        if not todo:
            return
        wrong = self.database.query(
            "SELECT id FROM layer WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608
            f" AND pages != (SELECT coalesce(sum({_MARK}), 0)"
            " FROM page INDEXED BY page_states WHERE layer_id = layer.id)",
            (json.dumps(todo),),
        )
        if wrong:
            raise IntegrityError(
                f"maps of layer {wrong[0][0]} are missing or old; restore the volumes that use it",
                reason=Reason.BAD_RECORD,
                layer=wrong[0][0],
            )
        self._proven.update(todo)

    def freeze(self, layer_id: int) -> None:
        """Note that the layer never changes again; its pages are complete."""
        self.database.execute("UPDATE layer SET frozen = 1 WHERE id = ?", (layer_id,))
        self.clear_notes(layer_id)

    def cut(self, layer_id: int) -> None:
        """Make the layer, which no other has as parent, stand alone."""
        self.database.execute(
            "UPDATE layer SET parent_id = NULL, depth = 0 WHERE id = ?", (layer_id,)
        )

    def free(self, layer_ids: Iterable[int]) -> None:
        """Mark as dead those of the layers to which nothing refers; the rest is for `Upkeep`.

        A dead layer has no owner. Its ancestors follow when it is reaped. *Complexity*: constant.
        """
        self.database.execute(
            "UPDATE layer SET owner = '' WHERE id IN (SELECT value FROM json_each(?))"
            " AND NOT EXISTS (SELECT 1 FROM volume WHERE top_layer = layer.id)"
            " AND NOT EXISTS (SELECT 1 FROM snapshot WHERE layer = layer.id)"
            " AND NOT EXISTS (SELECT 1 FROM layer AS child WHERE child.parent_id = layer.id)",
            (json.dumps(list(layer_ids)),),
        )

    # Pages

    def is_blank(self, layer_id: int) -> bool:
        """Tell whether nothing was ever flushed to the layer."""
        rows = self.database.query(
            "SELECT 1 FROM layer WHERE id = ?1 AND pages = 0"  # else pages were lost
            " AND NOT EXISTS (SELECT 1 FROM page WHERE layer_id = ?1)",
            (layer_id,),
        )
        return bool(rows)

    def pages(self, layer_ids: Iterable[int], chunk_index: int) -> list[Page]:
        """Return the pages that the layers have for the chunk."""
        where = chunk_index, json.dumps(list(layer_ids))
        return _single(self.database.query(_PAGES_OF_CHUNK, where))

    def pages_among(self, layer_id: int, chunks: Iterable[int]) -> list[Page]:
        """Return the pages that a layer has for chunks; ascending."""
        return _single(self.database.query(_PAGES_AMONG, (layer_id, json.dumps(list(chunks)))))

    def first_pages(self, layer_id: int, limit: int) -> list[Page]:
        """Return up to `limit` pages of the layer, ascending."""
        return _single(self.database.query(_PAGES_FIRST, (layer_id, limit)))

    def chunks(self, layer_ids: Iterable[int], first: int, last: int) -> list[int]:
        """Return the chunks, from `first` to `last`, for which the layers have pages; ascending."""
        rows = self.database.query(
            # The index that is proven: a chunk that it lacks is one that the layers below decide.
            "SELECT DISTINCT chunk_index FROM page INDEXED BY page_states"
            " WHERE chunk_index BETWEEN ? AND ?"
            " AND layer_id IN (SELECT value FROM json_each(?)) ORDER BY chunk_index",
            (first, last, json.dumps(list(layer_ids))),
        )
        return [row[0] for row in rows]

    def page_sum(self, layer_id: int) -> int:
        """Return a number that is another one after each change of the layer's pages."""
        found: int = self.database.query("SELECT pages FROM layer WHERE id = ?", (layer_id,))[0][0]
        return found

    def put_pages(self, pages: Sequence[Page]) -> None:
        """Add or replace pages."""
        self.database.execute_many(
            "INSERT OR REPLACE INTO page (layer_id, chunk_index, states, crcs, checksum)"
            " VALUES (?, ?, ?, ?, ?)",
            [encoded(page) for page in pages],
        )

    # Notes

    def notes(self, layer_id: int) -> list[int]:
        """Return the chunks noted for overwriting."""
        rows = self.database.query("SELECT chunk_index FROM dirty WHERE layer_id = ?", (layer_id,))
        return [row[0] for row in rows]

    def add_notes(self, layer_id: int, chunks: Iterable[int]) -> None:
        """Note chunks for overwriting."""
        rows = [(layer_id, chunk) for chunk in chunks]
        self.database.execute_many("INSERT OR IGNORE INTO dirty VALUES (?, ?)", rows)

    def delete_notes(self, layer_id: int, chunks: Iterable[int]) -> None:
        """Take notes back."""
        rows = [(layer_id, chunk) for chunk in chunks]
        self.database.execute_many("DELETE FROM dirty WHERE layer_id = ? AND chunk_index = ?", rows)

    def clear_notes(self, layer_id: int) -> None:
        """Take all notes of the layer back."""
        self.database.execute("DELETE FROM dirty WHERE layer_id = ?", (layer_id,))

    def _found(self, sql: str, parameters: tuple[str, ...]) -> PointRow | None:
        for row in self.database.query(sql, parameters):
            return _point_row(*row)
        return None


def _point_row(
    layer_id: int, size_bytes: int, parent_volume: str | None, parent_snapshot: str | None
) -> PointRow:
    return PointRow(
        layer_id=layer_id,
        size_bytes=size_bytes,
        parent_volume=parent_volume,
        parent_snapshot=parent_snapshot,
    )


def _single(rows: list[Row]) -> list[Page]:
    """Return the pages of rows, of which none is there twice.

    Else the index that keeps them apart has lost an entry, and one of the two is old.
    """
    pages = [decoded(*row) for row in rows]
    if len(pages) > 1 and len({(page.layer_id, page.chunk_index) for page in pages}) < len(pages):
        raise damaged_page(pages[0].layer_id, pages[0].chunk_index)
    return pages


def protect(database: Database, seal: Seal) -> None:
    """Seal the tables of the backend, and the page checksums in the sum that each layer keeps."""
    for table, columns in _SEALED.items():
        seal.cover(table, columns, adopt=seal.fresh)
    layers = database.query("SELECT id, pages FROM layer")
    total = sum(pages * (layer_id % _WEIGHTS + 1) for layer_id, pages in layers)
    seal.check("page", total & DIGEST_MASK, adopt=seal.fresh)
    for change, terms in _PAGE_CHANGES.items():
        marks = [(sign, row, _MARK.replace("page", row)) for sign, row in terms]
        weighed = " ".join(
            f"{sign} {mark} * ({row}.layer_id % {_WEIGHTS} + 1)" for sign, row, mark in marks
        )
        seal.follow("page", change, weighed)
        updates = " ".join(
            f"UPDATE layer SET pages = pages {sign} {mark} WHERE id = {row}.layer_id;"  # noqa: S608
            for sign, row, mark in marks
        )
        name = f"pages_{change.split()[0]}".lower()
        database.execute(
            f"CREATE TEMP TRIGGER {name} AFTER {change} ON main.page BEGIN {updates} END"
        )
    # A layer that lost pages takes their part of the sum along: what is left is as it was left.
    database.execute(
        "CREATE TEMP TRIGGER pages_lost AFTER DELETE ON main.layer WHEN OLD.pages <> 0 BEGIN"  # noqa: S608
        f" UPDATE seal SET value = (value - OLD.pages * (OLD.id % {_WEIGHTS} + 1)) & {DIGEST_MASK}"
        " WHERE name = 'page'; END"
    )
