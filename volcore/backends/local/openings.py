"""What is open in a pool, as far as the background work has to deal with it."""

from collections.abc import Callable, Collection, Mapping

from volcore.backends.local.chunkstore import ChunkStore
from volcore.backends.local.layers import PointRow
from volcore.backends.local.pruning import Pair, Pruning
from volcore.backends.local.recovery import settle
from volcore.backends.local.store import LocalStore

VolumeKey = tuple[str, str | None]
"""A volume, or a snapshot of one."""


class Openings:
    """The open volumes and snapshots of a backend.

    *Concurrency*: any thread; the registry changes under the database's lock only. What looks at it
    without asks about layers that no new chain can have.
    """

    def __init__(
        self,
        store: LocalStore,
        opened: Mapping[VolumeKey, ChunkStore],
        busy: Collection[str],
        freeze: Callable[[str, PointRow], int],
    ) -> None:
        """Watch `opened`; leave the tops of `busy` volumes alone; `freeze` as the backend does."""
        self._store = store
        self._opened = opened
        self._busy = busy
        self._freeze = freeze
        self._pruning = Pruning(store.layers)

    def with_layer(self, layer_id: int) -> list[VolumeKey]:
        """Return what is open with the layer in its chain."""
        return [key for key, chunks in list(self._opened.items()) if layer_id in chunks.chain]

    def is_open(self, volume_id: str) -> bool:
        """Tell whether the volume is open."""
        return (volume_id, None) in self._opened

    def follow(self, key: VolumeKey) -> None:
        """Let something open follow the rows; nothing happens if it was closed or is broken.

        Its changes become durable, and its writers wait for that.
        """
        with self._store.database.transaction():
            chunks = self._opened.get(key)
            if chunks is not None and not chunks.broken:
                chunks.durability.hold()

    def freeze_top(self, pair: Pair) -> bool:
        """Freeze the upper layer of a pair if it still is the volume's top."""
        with self._store.database.transaction():
            point = self._paired(pair)
            return point is not None and self._freeze(pair.volume_id, point) == pair.upper

    def thaw_top(self, pair: Pair) -> bool:
        """Make the lower layer of a pair the volume's top, if nothing is on the upper one."""
        layers = self._store.layers
        with self._store.database.transaction():
            if self._paired(pair) is None or not layers.is_blank(pair.upper):
                return False
            chunks = self._opened.get((pair.volume_id, None))
            if chunks is None:
                settle(self._store, pair.volume_id, pair.upper)
            else:
                chunks.durability.hold()
            if not layers.is_blank(pair.upper):  # what memory had is there now
                return False
            self._pruning.thaw(pair)
            return True

    def _paired(self, pair: Pair) -> PointRow | None:
        """Return the head of the pair's volume, if it is one still and may be changed."""
        if pair.volume_id in self._busy or pair not in self._pruning.pairs(pair.upper):
            return None
        return self._store.layers.find_volume(pair.volume_id)
