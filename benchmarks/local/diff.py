"""What changed between two snapshots of a 1 TiB volume, 1 % of which was written between them.

in whole chunks   2,621 chunks rewritten, spread evenly over the volume
in 64 KiB runs    the same number of bytes as every other 64 KiB of 5,242 chunks
"""

from collections.abc import Iterator

from benchmarks.local import pages
from benchmarks.local.stores import Store, opened
from benchmarks.report import Figure
from benchmarks.sampling import Context, Turns
from volcore.limits import CHUNK_SIZE_BYTES, TIB
from volcore.model.records import Volume

MS_MAX = 10.0
STEP_CHUNKS = 25
"""Of these one is used before the first snapshot: 4 % of the volume."""


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    with opened(context.place("diff")) as store:
        size_bytes = context.size(TIB, TIB // 256)
        chunk_count = size_bytes // CHUNK_SIZE_BYTES
        volume = store.create("disk", size_bytes)
        pages.put(store, volume, range(0, chunk_count, STEP_CHUNKS))
        points = [_point(store, volume, "before")]
        pages.put(store, volume, range(0, chunk_count, 100))
        points.append(_point(store, volume, "whole"))
        pages.put(store, volume, range(0, chunk_count, 50), pages.HALF)
        points.append(_point(store, volume, "runs"))
        pairs = {"whole chunks": (points[0], points[1]), "64 KiB runs": (points[1], points[2])}
        turns = Turns().run(
            {
                name: lambda _, pair=pair: store.backend.diff(volume.backend_id, *pair)
                for name, pair in pairs.items()
            },
            rounds=context.size(10, 2),
            warm_up=1,
        )
        for name, pair in pairs.items():
            found = store.backend.diff(volume.backend_id, *pair)
            changed = sum(extent.length_bytes for extent in found)
            yield Figure(
                scenario="diff",
                name=f"1 TiB, {100 * changed / size_bytes:.1f} % changed in {name}",
                unit="ms",
                ours=turns.s(name).scaled(1e3),
                at_most=MS_MAX,
            )


def _point(store: Store, volume: Volume, name: str) -> str:
    """Return the backend's id of a new snapshot."""
    store.snapshot(volume.name, name)
    return store.engine.snapshots.get("p", volume.name, name).backend_id
