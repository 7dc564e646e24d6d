"""The rows of the local backend: layers, volumes, snapshots, pages and overwrite notes.

Changes are made inside a transaction of the caller; names are checked by the backend. A layer's
chain lists its ancestors and itself, oldest first.
"""

import json
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from volcore.database import Database
from volcore.errors import IntegrityError, PreconditionError, Reason
from volcore.kernels import crc32c
from volcore.limits import CHUNK_BLOCKS

FORMAT: Final = 1
LOG_PAGES_MAX: Final = 400
"""Pages of 4 KiB in the log before they move to the database."""
RESERVE_BYTES: Final = 2 << 20
"""Space that log and database each keep at a start: more than one filled log."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS layer (
  id INTEGER PRIMARY KEY AUTOINCREMENT, parent_id INTEGER REFERENCES layer (id),
  owner TEXT NOT NULL, depth INTEGER NOT NULL, frozen INTEGER NOT NULL) STRICT;
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
CREATE TABLE IF NOT EXISTS dirty (
  layer_id INTEGER NOT NULL REFERENCES layer (id), chunk_index INTEGER NOT NULL,
  PRIMARY KEY (layer_id, chunk_index)) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """A volume's head or a snapshot: a layer seen with a size, and where it came from."""

    layer_id: int
    size_bytes: int
    parent_volume: str | None
    parent_snapshot: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A layer."""

    layer_id: int
    parent_id: int | None
    depth: int


@dataclass(frozen=True, slots=True)
class Page:
    """States and CRCs of one chunk of one layer, as stored."""

    layer_id: int
    chunk_index: int
    states: bytes
    crcs: "array[int]"


class Layers:
    """Access to the rows over one connection."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self.database = database

    def create_schema(self, directory: Path) -> None:
        """Create what is missing; refuse a newer format."""
        with self.database.transaction():
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS local_format (version INTEGER NOT NULL) STRICT"
            )
            found = self.database.query("SELECT version FROM local_format")
            if found and found[0][0] > FORMAT:
                raise PreconditionError(
                    f"pool directory {directory} has format {found[0][0]}, this server knows "
                    f"{FORMAT}; it was left alone: use the newer server",
                    reason=Reason.POOL_UNUSABLE,
                )
            if not found:
                self.database.execute("INSERT INTO local_format VALUES (?)", (FORMAT,))
            for statement in _SCHEMA.split(";"):
                self.database.execute(statement)

    def reserve(self) -> None:
        """Give log and database some spare space, so that deletes succeed on a full disk."""
        self.database.execute("CREATE TABLE IF NOT EXISTS reserve (filler BLOB) STRICT")
        self.database.execute("INSERT INTO reserve VALUES (zeroblob(?))", (RESERVE_BYTES,))
        self.database.execute("DELETE FROM reserve")
        self.database.query(f"PRAGMA wal_autocheckpoint({LOG_PAGES_MAX})")
        self.database.query("PRAGMA wal_checkpoint(PASSIVE)")

    # Volumes and snapshots

    def find_volume(self, volume_id: str) -> PointRow | None:
        """Return the volume's head."""
        return self._point(
            "SELECT top_layer, size_bytes, parent_volume, parent_snapshot FROM volume"
            " WHERE volume_id = ?",
            (volume_id,),
        )

    def find_snapshot(self, volume_id: str, snapshot_id: str) -> PointRow | None:
        """Return the snapshot."""
        return self._point(
            "SELECT layer, size_bytes, parent_volume, parent_snapshot FROM snapshot"
            " WHERE volume_id = ? AND snapshot_id = ?",
            (volume_id, snapshot_id),
        )

    def volume_ids(self) -> list[str]:
        """Return every volume id."""
        return [row[0] for row in self.database.query("SELECT volume_id FROM volume")]

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
        self.database.execute(
            "INSERT INTO layer (parent_id, owner, depth, frozen)"
            " SELECT ?1, ?2, coalesce((SELECT depth + 1 FROM layer WHERE id = ?1), 0), 0",
            (parent_id, owner),
        )
        return int(self.database.query("SELECT last_insert_rowid()")[0][0])

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

    def chain(self, layer_id: int) -> list[int]:
        """Return the layer's ancestors and itself, oldest first."""
        rows = self.database.query(
            "WITH RECURSIVE up (id, parent_id, depth) AS ("
            " SELECT id, parent_id, depth FROM layer WHERE id = ? UNION ALL"
            " SELECT layer.id, layer.parent_id, layer.depth FROM layer JOIN up"
            " ON layer.id = up.parent_id) SELECT id FROM up ORDER BY depth",
            (layer_id,),
        )
        return [row[0] for row in rows]

    def freeze(self, layer_id: int) -> None:
        """Note that the layer never changes again; its pages are complete."""
        self.database.execute("UPDATE layer SET frozen = 1 WHERE id = ?", (layer_id,))
        self.clear_notes(layer_id)

    def cut(self, layer_id: int) -> None:
        """Make the layer, which no other has as parent, stand alone."""
        self.database.execute(
            "UPDATE layer SET parent_id = NULL, depth = 0 WHERE id = ?", (layer_id,)
        )

    def free(self, layer_id: int | None) -> list[int]:
        """Delete the layer and its ancestors as far as nothing refers to them; return which."""
        freed = []
        while layer_id is not None:
            referred = self.database.query(
                "SELECT EXISTS (SELECT 1 FROM volume WHERE top_layer = ?1)"
                " OR EXISTS (SELECT 1 FROM snapshot WHERE layer = ?1)"
                " OR EXISTS (SELECT 1 FROM layer WHERE parent_id = ?1)",
                (layer_id,),
            )[0][0]
            if referred:
                break
            parent_id = self.layer(layer_id).parent_id
            self.database.execute("DELETE FROM page WHERE layer_id = ?", (layer_id,))
            self.clear_notes(layer_id)
            self.database.execute("DELETE FROM layer WHERE id = ?", (layer_id,))
            freed.append(layer_id)
            layer_id = parent_id
        return freed

    # Pages

    def is_blank(self, layer_id: int) -> bool:
        """Tell whether nothing was ever flushed to the layer."""
        rows = self.database.query("SELECT 1 FROM page WHERE layer_id = ? LIMIT 1", (layer_id,))
        return not rows

    def pages(self, layer_ids: Iterable[int], chunk_index: int) -> list[Page]:
        """Return the pages that the layers have for the chunk."""
        rows = self.database.query(
            "SELECT layer_id, chunk_index, states, crcs, checksum FROM page"
            " WHERE chunk_index = ? AND layer_id IN (SELECT value FROM json_each(?))",
            (chunk_index, json.dumps(list(layer_ids))),
        )
        return [_decoded(*row) for row in rows]

    def chunks(self, layer_ids: Iterable[int], first: int, last: int) -> list[int]:
        """Return the chunks, from `first` to `last`, for which the layers have pages; ascending."""
        rows = self.database.query(
            "SELECT DISTINCT chunk_index FROM page WHERE chunk_index BETWEEN ? AND ?"
            " AND layer_id IN (SELECT value FROM json_each(?)) ORDER BY chunk_index",
            (first, last, json.dumps(list(layer_ids))),
        )
        return [row[0] for row in rows]

    def put_pages(self, pages: Sequence[Page]) -> None:
        """Add or replace pages."""
        self.database.execute_many(
            "INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?, ?)", [_encoded(page) for page in pages]
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

    def _point(self, sql: str, parameters: tuple[str, ...]) -> PointRow | None:
        for layer_id, size_bytes, parent_volume, parent_snapshot in self.database.query(
            sql, parameters
        ):
            return PointRow(
                layer_id=layer_id,
                size_bytes=size_bytes,
                parent_volume=parent_volume,
                parent_snapshot=parent_snapshot,
            )
        return None


def _checksum(layer_id: int, chunk_index: int, states: bytes, crcs: bytes) -> int:
    """Return the checksum of a page: a flipped state would show a parent's data as good."""
    seed = crc32c.crc32c(struct.pack("<QQ", layer_id, chunk_index))
    return crc32c.crc32c(crcs, crc32c.crc32c(states, seed))


def _encoded(page: Page) -> tuple[int, int, bytes, bytes, int]:
    crcs = page.crcs
    if sys.byteorder == "big":
        crcs = array("I", crcs)
        crcs.byteswap()
    raw = crcs.tobytes()
    checksum = _checksum(page.layer_id, page.chunk_index, page.states, raw)
    return page.layer_id, page.chunk_index, page.states, raw, checksum


def _decoded(layer_id: int, chunk_index: int, states: bytes, raw: bytes, checksum: int) -> Page:
    if (
        len(states) != CHUNK_BLOCKS
        or len(raw) != 4 * CHUNK_BLOCKS
        or checksum != _checksum(layer_id, chunk_index, states, raw)
    ):
        raise IntegrityError(
            f"the map of chunk {chunk_index} in layer {layer_id} is damaged; restore the volumes "
            "that use it",
            reason=Reason.BAD_CHECKSUM,
            layer=layer_id,
            chunk_index=chunk_index,
        )
    crcs = array("I", raw)
    if sys.byteorder == "big":
        crcs.byteswap()
    return Page(layer_id, chunk_index, states, crcs)
