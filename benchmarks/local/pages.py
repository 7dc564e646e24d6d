"""Layers with maps but without data: what 100 GiB leave in a store, without writing 100 GiB.

The one place of the benchmarks that knows how maps are stored. Checksums are random, so nothing
about them can be compressed away; data of these layers cannot be read.
"""

import os
from array import array
from collections.abc import Iterable

from benchmarks.local.stores import Store
from volcore.backends.local.pagecodec import Page
from volcore.kernels import chunkmap
from volcore.limits import CHUNK_BLOCKS
from volcore.model.records import Volume

ROWS_AT_ONCE = 1024
RUN_BLOCKS = 16
WHOLE = bytes([chunkmap.DATA]) * CHUNK_BLOCKS
HALF = (bytes([chunkmap.DATA]) * RUN_BLOCKS + bytes(RUN_BLOCKS)) * (CHUNK_BLOCKS // RUN_BLOCKS // 2)


def put(store: Store, volume: Volume, chunks: Iterable[int], states: bytes = WHOLE) -> None:
    """Make the chunks of the volume's top layer look written, block by block as `states` says."""
    point = store.local.layers.find_volume(volume.backend_id)
    assert point is not None
    rows: list[Page] = []
    for chunk in chunks:
        crcs = array("I", os.urandom(4 * CHUNK_BLOCKS))
        chunkmap.freeze(states, crcs)
        rows.append(Page(point.layer_id, chunk, states, crcs))
        if len(rows) == ROWS_AT_ONCE:
            store.local.layers.put_pages(rows)
            rows.clear()
    store.local.layers.put_pages(rows)
