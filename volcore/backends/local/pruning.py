"""Which layers can go: questions about the rows, and the changes that take a layer out.

*Words*: a dead layer has no owner; nothing refers to it, its pages and its file are to be deleted.
A blank layer is frozen and has no pages: whoever refers to it may as well refer to its parent. A
pair is a layer to which nothing refers but one child, and that child.

Questions read what is committed; changes are made inside a transaction of the caller and check
again what they rely on.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from volcore.backends.local.layers import Layers

REFERRERS_MAX: Final = 256
"""Children or snapshots moved in one transaction: a millisecond."""
DEPTH_SOON: Final = 64
"""Pairs deeper than this are merged before others."""
_PAIRS: Final = """
SELECT lower.id, upper.id, upper.frozen,
 coalesce((SELECT volume_id FROM volume WHERE top_layer = upper.id), '')
FROM layer AS upper JOIN layer AS lower ON lower.id = upper.parent_id
WHERE lower.frozen = 1 AND lower.owner <> '' AND upper.owner <> ''
 AND (?1 IS NULL OR upper.id = ?1)
 AND NOT EXISTS (SELECT 1 FROM snapshot WHERE layer = lower.id)
 AND NOT EXISTS (SELECT 1 FROM layer AS other WHERE other.parent_id = lower.id
  AND other.id <> upper.id)
ORDER BY upper.depth > ?2 DESC, lower.id
"""
_BLANKS: Final = """
SELECT id, parent_id FROM layer WHERE frozen = 1 AND owner <> '' AND (?1 IS NULL OR id = ?1)
 AND pages = 0 AND NOT EXISTS (SELECT 1 FROM page WHERE layer_id = layer.id)
 AND (parent_id IS NOT NULL OR NOT EXISTS (SELECT 1 FROM snapshot WHERE layer = layer.id)
  AND 1 = (SELECT count(*) FROM (SELECT 1 FROM layer AS c WHERE c.parent_id = layer.id LIMIT 2)))
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer and the only one above it."""

    lower: int
    upper: int
    frozen: bool
    """The upper one too; else it is the top of `volume_id`."""
    volume_id: str


class Pruning:
    """Questions and changes over one connection."""

    def __init__(self, layers: Layers) -> None:
        """Use the connection of `layers`."""
        self.layers = layers
        self._database = layers.database

    # Questions

    def dead(self) -> list[int]:
        """Return the dead layers."""
        return [row[0] for row in self._database.query("SELECT id FROM layer WHERE owner = ''")]

    def blanks(self, layer_id: int | None = None) -> list[tuple[int, int | None]]:
        """Return (layer, parent) of the blank layers, or of `layer_id` if it is one.

        One without parent must have a single child, and no snapshot.
        """
        return self._database.query(_BLANKS, (layer_id,))

    def pairs(self, upper: int | None = None) -> list[Pair]:
        """Return the pairs, those of deep chains first; or that of `upper`, if there is one."""
        return [
            Pair(lower, above, bool(frozen), volume_id)
            for lower, above, frozen, volume_id in self._database.query(_PAIRS, (upper, DEPTH_SOON))
        ]

    # Changes

    def delete_pages(self, layer_id: int, chunks: Iterable[int]) -> None:
        """Delete the layer's pages for these chunks."""
        self._database.execute(
            "DELETE FROM page INDEXED BY page_states WHERE layer_id = ?"
            " AND chunk_index IN (SELECT value FROM json_each(?))",
            (layer_id, json.dumps(list(chunks))),
        )

    def delete_some_pages(self, layer_id: int, limit: int) -> int:
        """Delete up to `limit` pages of a dead layer; return how many."""
        return self._database.execute(
            "DELETE FROM page WHERE rowid IN (SELECT rowid FROM page WHERE layer_id = ? LIMIT ?)",
            (layer_id, limit),
        )

    def delete_layer(self, layer_id: int) -> None:
        """Delete the row of a dead layer without pages; its parent may be dead then."""
        rows = self._database.query(
            "SELECT parent_id FROM layer WHERE id = ? AND owner = ''", (layer_id,)
        )
        self.layers.clear_notes(layer_id)
        self._database.execute("DELETE FROM layer WHERE id = ? AND owner = ''", (layer_id,))
        self.layers.free([parent_id for (parent_id,) in rows if parent_id is not None])

    def bypass(self, layer_id: int, parent_id: int | None) -> bool:
        """Let some of those that refer to a blank layer refer to its parent instead.

        Returns whether nothing refers to it any more: then it is dead.
        """
        if (layer_id, parent_id) not in self.blanks(layer_id):
            return False
        depth = 0 if parent_id is None else self.layers.layer(parent_id).depth + 1
        moved = self._database.execute(
            "UPDATE layer SET parent_id = ?, depth = ? WHERE id IN"
            " (SELECT id FROM layer WHERE parent_id = ? LIMIT ?)",
            (parent_id, depth, layer_id, REFERRERS_MAX),
        )
        moved += self._database.execute(
            "UPDATE snapshot SET layer = ? WHERE seq IN"
            " (SELECT seq FROM snapshot WHERE layer = ? LIMIT ?)",
            (parent_id, layer_id, REFERRERS_MAX),
        )
        if moved >= REFERRERS_MAX:
            return False
        self._database.execute(
            "UPDATE layer SET owner = (SELECT owner FROM layer WHERE id = ?1) WHERE id = ?2"
            " AND NOT EXISTS (SELECT 1 FROM layer AS c WHERE c.parent_id = ?2 AND c.id <> ?1"
            "  AND c.owner <> (SELECT owner FROM layer WHERE id = ?1))"
            " AND NOT EXISTS (SELECT 1 FROM snapshot WHERE layer = ?2"
            "  AND volume_id <> (SELECT owner FROM layer WHERE id = ?1))",
            (layer_id, parent_id),
        )
        self._kill(layer_id)
        return True

    def thaw(self, pair: Pair) -> None:
        """Make the lower layer the volume's top; the upper one, on which nothing is, is dead."""
        self._database.execute(
            "UPDATE volume SET top_layer = ? WHERE volume_id = ?", (pair.lower, pair.volume_id)
        )
        self._database.execute(
            "UPDATE layer SET frozen = 0, owner = ? WHERE id = ?", (pair.volume_id, pair.lower)
        )
        self._kill(pair.upper)

    def correct_depth(self, layer_id: int) -> int:
        """Count the layer's ancestors, note that, and return it. *Complexity*: the depth."""
        depth = len(self.layers.chain(layer_id)) - 1
        self._database.execute("UPDATE layer SET depth = ? WHERE id = ?", (depth, layer_id))
        return depth

    def _kill(self, layer_id: int) -> None:
        self._database.execute(
            "UPDATE layer SET owner = '', parent_id = NULL, frozen = 1 WHERE id = ?", (layer_id,)
        )
