"""Says what a local pool holds besides whole volumes, from its database and files alone."""

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

_LIVE = """
WITH RECURSIVE live(id) AS (
    SELECT top_layer FROM volume UNION SELECT layer FROM snapshot
    UNION SELECT parent_id FROM layer JOIN live USING (id) WHERE parent_id IS NOT NULL
) SELECT id FROM live
"""


def volumes(pool: Path) -> set[str]:
    """Return the ids of all volumes in a pool's directory."""
    with closing(sqlite3.connect(pool / "volcore.db")) as database:
        return {row[0] for row in database.execute("SELECT volume_id FROM volume")}


def leftovers(pool: Path, known: Collection[str] | None = None) -> list[str]:
    """Return layers that nothing leads to, their pages, and files without a layer.

    With `known` also the volumes that are there and not known, or known and not there.
    """
    with closing(sqlite3.connect(pool / "volcore.db")) as database:
        live = {row[0] for row in database.execute(_LIVE)}
        rows = {row[0] for row in database.execute("SELECT id FROM layer")}
        pages = {row[0] for row in database.execute("SELECT layer_id FROM page")}
    files = {int(path.stem) for path in (pool / "layers").iterdir()}
    return [
        *(
            f"volume {one}"
            for one in ([] if known is None else sorted(volumes(pool).symmetric_difference(known)))
        ),
        *(f"layer {row}" for row in rows - live),
        *(f"pages of layer {row}" for row in pages - rows),
        *(f"file of layer {number}" for number in files - rows),
    ]
