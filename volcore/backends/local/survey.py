"""What the rows say for a verify: what there is to read, who sees a block, what points nowhere.

Reads over a connection of its own, so that long looks keep nobody waiting. Chains are followed
here without trust: a circle or a hole in them is a finding, not an endless loop.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from volcore.backends.local.layers import Layers, Page
from volcore.errors import IntegrityError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES

POINTS_NAMED_MAX: Final = 64
"""Volumes and snapshots that one finding names; the others are counted."""
TROUBLES_MAX: Final = 100
"""Findings of the database that are told one by one."""
_ONLY_ABSENT: Final = bytes([1]) + bytes(255)
"""Translates states to 1 where the parent shows through."""
_EVERYWHERE: Final = int.from_bytes(bytes([1]) * CHUNK_BLOCKS)

PointKey = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class View:
    """A volume or snapshot, its end in the chunk, and which of a layer's blocks it sees."""

    key: PointKey
    block_count: int
    seen: bytes
    """1 for each block of the chunk that comes from the layer."""

    def sees(self, block: int) -> bool:
        """Tell whether a block of the chunk is visible."""
        return block < self.block_count and bool(self.seen[block])


class Survey:
    """Looks at the rows of one pool."""

    def __init__(self, layers: Layers) -> None:
        """Read through `layers`, which the caller closes."""
        self._rows = layers
        self._database = layers.database

    # What there is

    def page_counts(self) -> list[tuple[int, int]]:
        """Return (layer id, count of its pages), ascending."""
        return self._database.query(
            "SELECT id, (SELECT count(*) FROM page WHERE layer_id = layer.id) FROM layer"
            " ORDER BY id"
        )

    def chunks_after(self, layer_id: int, chunk_index: int, limit: int) -> list[int]:
        """Return up to `limit` chunks after `chunk_index` for which the layer has pages."""
        rows = self._database.query(
            "SELECT chunk_index FROM page INDEXED BY page_states"  # which is proven
            " WHERE layer_id = ? AND chunk_index > ? ORDER BY chunk_index LIMIT ?",
            (layer_id, chunk_index, limit),
        )
        return [row[0] for row in rows]

    def pages_up_to(self, layer_id: int, chunk_index: int) -> int:
        """Return how many pages the layer has for chunks up to `chunk_index`."""
        rows = self._database.query(
            "SELECT count(*) FROM page WHERE layer_id = ? AND chunk_index <= ?",
            (layer_id, chunk_index),
        )
        return int(rows[0][0])

    def page(self, layer_id: int, chunk_index: int) -> Page | None:
        """Return the layer's page of a chunk.

        Raises:
            IntegrityError: it is damaged.
        """
        pages = self._rows.pages([layer_id], chunk_index)
        return pages[0] if pages else None

    def is_indexed(self, page: Page) -> bool:
        """Tell whether the index, from which diffs are made, has the states that the row has."""
        rows = self._database.query(
            "SELECT page.states IS key.states FROM page AS key INDEXED BY page_states"
            " LEFT JOIN page ON page.rowid = key.rowid"
            " WHERE key.layer_id = ? AND key.chunk_index = ?",
            (page.layer_id, page.chunk_index),
        )
        return all(same for (same,) in rows)

    def siblings(self, layer_id: int, chunk_index: int) -> list[int]:
        """Return the other layers that have a page for the chunk."""
        rows = self._database.query(
            "SELECT id FROM layer WHERE id <> ?1 AND EXISTS ("
            "SELECT 1 FROM page WHERE layer_id = layer.id AND chunk_index = ?2)",
            (layer_id, chunk_index),
        )
        return [row[0] for row in rows]

    def owner(self, layer_id: int) -> list[str]:
        """Return the volume that wrote the layer, if the layer exists."""
        rows = self._database.query("SELECT owner FROM layer WHERE id = ?", (layer_id,))
        return [row[0] for row in rows]

    def chain(self, layer_id: int) -> tuple[list[int], str]:
        """Return the layer's ancestors and itself, oldest first, and what is wrong with them."""
        found: dict[int, None] = {}
        at: int | None = layer_id
        while at is not None:
            if at in found:
                return _oldest_first(found), f"layer {at} is an ancestor of itself"
            rows = self._database.query("SELECT parent_id FROM layer WHERE id = ?", (at,))
            if not rows:
                return _oldest_first(found), f"layer {at} does not exist"
            found[at] = None
            at = rows[0][0]
        return _oldest_first(found), ""

    # Who sees what

    def views(self, layer_id: int, chunk_index: int, *, whole: bool = False) -> list[View]:
        """Return who sees blocks of a layer's chunk; with `whole`, everyone above the layer."""
        family = self._database.query(
            "WITH RECURSIVE down (id, parent_id) AS ("
            " SELECT id, NULL FROM layer WHERE id = ? UNION"
            " SELECT layer.id, layer.parent_id FROM layer JOIN down ON layer.parent_id = down.id)"
            " SELECT id, parent_id FROM down",
            (layer_id,),
        )
        hidden = {} if whole else self._transparent([row[0] for row in family], chunk_index)
        children: dict[int, list[int]] = {}
        for child, parent in family:
            children.setdefault(parent, []).append(child)
        seen = {layer_id: _EVERYWHERE}
        todo = [layer_id]
        for at in todo:
            for child in children.get(at, ()):
                if child not in seen:
                    seen[child] = seen[at] & hidden.get(child, _EVERYWHERE)
                    todo.append(child)
        return [
            View(key, block_count, seen[at].to_bytes(CHUNK_BLOCKS))
            for key, at, size_bytes in self._points(seen)
            if (block_count := size_bytes // BLOCK_SIZE_BYTES - chunk_index * CHUNK_BLOCKS) > 0
            and seen[at]
        ]

    def _transparent(self, layer_ids: list[int], chunk_index: int) -> dict[int, int]:
        """Return, for each layer with a page, where it lets its parent show through."""
        found = {}
        for page in self._sound_pages(layer_ids, chunk_index):
            found[page.layer_id] = int.from_bytes(bytes(page.states).translate(_ONLY_ABSENT))
        return found

    def _sound_pages(self, layer_ids: list[int], chunk_index: int) -> Iterable[Page]:
        try:
            return self._rows.pages(layer_ids, chunk_index)
        except IntegrityError:
            if len(layer_ids) == 1:
                return ()
        half = len(layer_ids) // 2
        return [
            *self._sound_pages(layer_ids[:half], chunk_index),
            *self._sound_pages(layer_ids[half:], chunk_index),
        ]

    def _points(self, layer_ids: Iterable[int]) -> list[tuple[PointKey, int, int]]:
        """Return (key, layer, size in bytes) of the volumes and snapshots at these layers."""
        chosen = (json.dumps(list(layer_ids)),)
        rows = self._database.query(
            "SELECT volume_id, NULL, top_layer, size_bytes FROM volume"
            " WHERE top_layer IN (SELECT value FROM json_each(?1)) UNION ALL"
            " SELECT volume_id, snapshot_id, layer, size_bytes FROM snapshot"
            " WHERE layer IN (SELECT value FROM json_each(?1)) ORDER BY 1, 2",
            chosen,
        )
        return [((volume, snapshot), layer, size) for volume, snapshot, layer, size in rows]

    def all_points(self) -> list[tuple[PointKey, int, int]]:
        """Return (key, layer, size in bytes) of every volume and snapshot."""
        rows = self._database.query(
            "SELECT volume_id, NULL, top_layer, size_bytes FROM volume UNION ALL"
            " SELECT volume_id, snapshot_id, layer, size_bytes FROM snapshot ORDER BY 1, 2"
        )
        return [((volume, snapshot), layer, size) for volume, snapshot, layer, size in rows]

    # What is wrong with the rows

    def troubles(self) -> list[str]:
        """Return what SQLite finds wrong with the database, and rows that point nowhere."""
        try:
            found = [
                str(row[0])
                for row in self._database.query(f"PRAGMA quick_check({TROUBLES_MAX})")
                if row[0] != "ok"
            ]
            for table, row_id, target, _ in self._database.query("PRAGMA foreign_key_check"):
                found.append(f"row {row_id} of table {table} points to no row of {target}")
        except IntegrityError as err:
            return [err.message]
        return found[:TROUBLES_MAX]

    def broken_chains(self) -> list[tuple[int, str, list[PointKey]]]:
        """Return (layer, what is wrong, who is above) of each chain that cannot be followed."""
        parents = dict(self._database.query("SELECT id, parent_id FROM layer"))
        verdicts: dict[int, tuple[int, str] | None] = {}
        for start in parents:
            path: list[int] = []
            at: int | None = start
            verdict: tuple[int, str] | None = None
            mine = set()
            while at is not None and at not in verdicts:
                if at in mine:
                    verdict = at, f"layer {at} is an ancestor of itself"
                    break
                mine.add(at)
                path.append(at)
                parent = parents[at]
                if parent is not None and parent not in parents:
                    verdict = at, f"the parent {parent} of layer {at} does not exist"
                    break
                at = parent
            else:
                verdict = verdicts[at] if at is not None else None
            verdicts |= dict.fromkeys(path, verdict)
        broken: dict[tuple[int, str], list[PointKey]] = {v: [] for v in verdicts.values() if v}
        for key, layer, _ in self.all_points():
            if layer not in verdicts:
                broken.setdefault((layer, f"layer {layer} does not exist"), []).append(key)
            elif (known := verdicts[layer]) is not None:
                broken[known].append(key)
        return [(layer, detail, points) for (layer, detail), points in broken.items()]


def chunk_end(size_bytes: int) -> int:
    """Return how many chunks a size touches."""
    return -(-size_bytes // CHUNK_SIZE_BYTES)


def _oldest_first(found: dict[int, None]) -> list[int]:
    return list(found)[::-1]
