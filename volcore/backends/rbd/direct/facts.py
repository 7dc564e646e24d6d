"""What is known of the parents of clones, so that a clone has nothing to look up.

Facts are read once, or kept when a snapshot is made, and used for AGE_S_MAX. The write itself
checks them: the parent's class method refuses a snapshot that is gone, and the features are
compared in the same operation. What the write cannot check (foreign metadata, mirroring) may be
that old.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import family, wire
from volcore.backends.rbd.direct.plan import header_object
from volcore.backends.rbd.directory import Entry
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import OWNER_KEY, RECORD_PREFIX, Headers
from volcore.backends.refusals import snapshot_missing, volume_missing
from volcore.errors import NotFoundError, VolcoreError
from volcore.limits import RBD_DEPTH_MAX

AGE_S_MAX: Final = 60.0
FACTS_MAX: Final = 10_000
_PAGE_ROWS: Final = 1000
_MIRROR_OFF: Final = 0
_USUAL_ROWS: Final = frozenset(
    {
        "access_timestamp",
        "create_timestamp",
        "features",
        "flags",
        f"metadata_{OWNER_KEY}",
        "modify_timestamp",
        "object_prefix",
        "op_features",
        "order",
        "parent",
        "size",
        "snap_seq",
    }
)
"""Rows of a header that mean nothing special."""
_USUAL_PREFIXES: Final = ("snapshot_", "snap_children_", RECORD_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A snapshot that can be cloned directly."""

    parent_id: str
    snap: int
    """The snapshot, or the sibling of it that takes the next clones."""
    size_bytes: int
    features: int
    """Of the parent, as its header has them; the first clone sets OPERATIONS."""
    depth: int
    """Ancestors of the parent."""
    load_time_s: float
    room: int = 0
    """Clones that the snapshot should still take; then another sibling is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What an image's header says; one read."""

    features: int
    size_bytes: int
    snap_seq: int
    has_parent: bool
    unusual: str
    """What keeps the image from being cloned directly; empty if nothing does."""


class FactsCache:
    """Facts by (volume id, snapshot id); any thread."""

    def __init__(
        self, ioctx: Any, headers: Headers, find: Callable[[str], Entry | None], features: int
    ) -> None:
        """Read nothing yet.

        Args:
            ioctx: the pool.
            headers: of the pool.
            find: returns the row of a volume.
            features: those that volcore's images have; others are unusual.
        """
        self._ioctx = ioctx
        self._headers = headers
        self._find = find
        self._features = features
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str], Facts | str] = {}
        self._time_s: dict[tuple[str, str], float] = {}
        self._epoch = 0
        self._unsure: set[str] = set()
        """Parents whose features may have changed with their last clone."""
        self._pool = "not read yet"
        self._pool_time_s = -AGE_S_MAX
        self.on_full: Callable[[str, str], None] = lambda volume_id, snapshot_id: None
        """Called when a snapshot, with its siblings, has as many clones as it should."""

    def get(self, volume_id: str, snapshot_id: str) -> Facts | str:
        """Return the facts of a snapshot, or what is unusual about it.

        Raises:
            NotFoundError: no such volume or snapshot.
        """
        key = (volume_id, snapshot_id)
        with self._lock:
            found, epoch = self._found.get(key), self._epoch
            fresh = found is not None and time.monotonic() - self._time_s[key] < AGE_S_MAX
        # A parent as deep as is allowed is looked at again: it may have been flattened.
        if fresh and (isinstance(found, str) or (found and found.depth < RBD_DEPTH_MAX)):
            return self._sure(found)
        now_s = time.monotonic()
        found = self._load(volume_id, snapshot_id, now_s)
        self._keep(volume_id, snapshot_id, found, now_s, epoch=epoch)
        return found

    def of_head(self, image_id: str, take: Callable[[int], int | None]) -> Facts | str:
        """Return the facts that a snapshot made now would have; not kept.

        Args:
            image_id: the parent.
            take: returns the number of the snapshot, above a given one; None: there is none.

        Raises:
            NotFoundError: no such image.
        """
        header = self._header(image_id)
        unusual = header.unusual or self.pool_lately()[0]
        if unusual:
            return unusual
        depth = self._depth(image_id) if header.has_parent else 0
        snap = take(header.snap_seq)
        if snap is None:
            return "no snapshot number fits"
        return Facts(
            parent_id=image_id,
            snap=snap,
            size_bytes=header.size_bytes,
            features=header.features,
            depth=depth,
            load_time_s=time.monotonic(),
        )

    def made(self, volume_id: str, snapshot_id: str, facts: Facts) -> None:
        """Keep the facts of a snapshot that was just made; its first clone then reads nothing.

        Call while nobody can delete the snapshot yet. The header must have been found usual. What
        fails is left to whoever clones.
        """
        with suppress(VolcoreError):
            unusual, pool_time_s = self.pool_lately()
            if not unusual:
                time_s = min(facts.load_time_s, pool_time_s)
                self._keep(volume_id, snapshot_id, facts, time_s)

    def cloned(self, volume_id: str, snapshot_id: str, facts: Facts, count: int) -> None:
        """Note clones that were made with these facts, which the first of them may have changed."""
        with self._lock:
            known = self._found.get((volume_id, snapshot_id))
            if not isinstance(known, Facts) or known.snap != facts.snap:
                return
            room = known.room - count
            self._found[volume_id, snapshot_id] = replace(facts, room=room)
        if room <= 0 < known.room:
            self.on_full(volume_id, snapshot_id)

    def cloned_live(self, volume_id: str) -> None:
        """Note that a volume, as it is, may have got a clone, which its header shows."""
        with self._lock:
            self._epoch += 1
            for key, found in self._found.items():
                if key[0] == volume_id and isinstance(found, Facts):
                    self._found[key] = replace(found, features=found.features | wire.OPERATIONS)

    def unlinked(self, image_id: str) -> None:
        """Note that the last clone of one of an image's snapshots has gone."""
        with self._lock:
            if any(
                isinstance(one, Facts) and one.parent_id == image_id for one in self._found.values()
            ):
                self._unsure.add(image_id)

    def latest(self, volume_id: str, snapshot_id: str, facts: Facts) -> Facts:
        """Return what is known by now, or `facts`; reads nothing."""
        with self._lock:
            known = self._found.get((volume_id, snapshot_id))
        return known if isinstance(known, Facts) else facts

    def choose_anew(self, volume_id: str, snapshot_id: str) -> None:
        """Look which sibling takes the next clones; where all are full, not again for a while.

        Raises:
            NotFoundError: no such volume or snapshot.
        """
        with self._lock:
            epoch = self._epoch
        found = self._load(volume_id, snapshot_id, time.monotonic())
        if isinstance(found, Facts) and found.room <= 1:
            found = replace(found, room=family.CHILDREN_MAX)
        with self._lock:
            if epoch == self._epoch and (volume_id, snapshot_id) in self._found:
                self._found[volume_id, snapshot_id] = found
                self._time_s[volume_id, snapshot_id] = time.monotonic()

    def forget(self, volume_id: str) -> None:
        """Forget a volume's snapshots, also what is being read of them right now."""
        with self._lock:
            self._epoch += 1
            for key in [key for key in self._found if key[0] == volume_id]:
                del self._found[key]

    def pool_lately(self) -> tuple[str, float]:
        """Return what was unusual in the pool's settings when they were read, and when; lately."""
        with self._lock:
            found, time_s = self._pool, self._pool_time_s
        if time.monotonic() - time_s < AGE_S_MAX / 2:
            return found, time_s
        return self._read_pool()

    def _sure(self, found: Facts | str) -> Facts | str:
        """Return facts with the features that the parent has now, if those may have changed."""
        if isinstance(found, str) or found.parent_id not in self._unsure:
            return found
        self._unsure.discard(found.parent_id)
        header = self._header(found.parent_id)

        def sure(one: Facts) -> Facts | str:
            return header.unusual or replace(one, features=header.features)

        with self._lock:
            for other, one in self._found.items():
                if isinstance(one, Facts) and one.parent_id == found.parent_id:
                    self._found[other] = sure(one)
        return sure(found)

    def _keep(
        self,
        volume_id: str,
        snapshot_id: str,
        found: Facts | str,
        time_s: float,
        *,
        epoch: int | None = None,
    ) -> None:
        """Keep what was read at `time_s`, unless something was forgotten since `epoch`."""
        with self._lock:
            if epoch not in (None, self._epoch):
                return
            if len(self._found) >= FACTS_MAX:
                self._found.clear()
            self._found[volume_id, snapshot_id] = found
            self._time_s[volume_id, snapshot_id] = time_s

    def _load(self, volume_id: str, snapshot_id: str, now_s: float) -> Facts | str:
        """Read the facts of a snapshot."""
        entry = self._find(volume_id)
        if entry is None or not entry.image_id:
            raise volume_missing(volume_id)
        image_id = entry.image_id
        try:
            kin = family.look(self._ioctx, self._headers, image_id, snapshot_id)
        except NotFoundError as err:
            raise volume_missing(volume_id) from err
        if kin is None:
            raise snapshot_missing(volume_id, snapshot_id)
        header = self._header(image_id)
        unusual = header.unusual or self._read_pool()[0]
        if unusual:
            return unusual
        snap, room = kin.choose()
        return Facts(
            parent_id=image_id,
            snap=snap,
            size_bytes=kin.own.size_bytes,
            features=header.features,
            depth=self._depth(image_id) if header.has_parent else 0,
            load_time_s=now_s,
            room=room,
        )

    def _depth(self, image_id: str) -> int:
        """Return the count of ancestors; a read for each."""
        return self._headers.depth(image_id, depth_max=RBD_DEPTH_MAX)

    def _header(self, image_id: str) -> _Header:
        """Read an image's header."""
        name = header_object(image_id)
        with translated(f"read rbd image {image_id}"), bindings().rados.ReadOpCtx() as op:
            keys, _ = self._ioctx.get_omap_keys(op, "", _PAGE_ROWS)
            rows, _ = self._ioctx.get_omap_vals_by_keys(op, ("features", "size", "snap_seq"))
            self._ioctx.operate_read_op(op, name)
            names = [key for key, _ in keys]
            numbers = {key: int.from_bytes(value, "little") for key, value in rows}
        if len(names) == _PAGE_ROWS:
            names += omap_keys(self._ioctx, name, after=names[-1])
        features = numbers["features"]
        unusual = next((f"a row {key}" for key in names if not is_usual_row(key)), "")
        if (features & ~wire.OPERATIONS) != self._features:
            unusual = f"the features {features:#x}"
        return _Header(
            features=features,
            size_bytes=numbers["size"],
            snap_seq=numbers["snap_seq"],
            has_parent="parent" in names,
            unusual=unusual and f"the source's header has {unusual}",
        )

    def _read_pool(self) -> tuple[str, float]:
        """Return what is unusual in the pool's settings, and the time of the reading."""
        time_s = time.monotonic()
        found = unusual_pool(self._ioctx)
        with self._lock:
            self._pool, self._pool_time_s = found, time_s
        return found, time_s


def is_usual_row(key: str) -> bool:
    """Return whether a row of a header means nothing special for clones and snapshots."""
    return key in _USUAL_ROWS or key.startswith(_USUAL_PREFIXES)


def unusual_pool(ioctx: Any) -> str:
    """Return what in a pool's settings changes how clones are made; empty if nothing does."""
    with translated("read the pool's mirroring"):
        if bindings().rbd.RBD().mirror_mode_get(ioctx) != _MIRROR_OFF:
            return "the pool is mirrored"
    for key in omap_keys(ioctx, "rbd_info"):
        if key.startswith("metadata_conf_"):
            return f"the pool has a setting of its own, {key.removeprefix('metadata_conf_')}"
    return ""


def omap_keys(ioctx: Any, name: str, *, after: str = "") -> list[str]:
    """Return the keys of an object's rows behind `after`; none if there is no such object."""
    found: list[str] = []
    with suppress(NotFoundError), translated(f"read {name}"):
        while True:
            with bindings().rados.ReadOpCtx() as op:
                rows, _ = ioctx.get_omap_keys(op, found[-1] if found else after, _PAGE_ROWS)
                ioctx.operate_read_op(op, name)
                page = [key for key, _ in rows]
            if not page:
                break
            found += page
    return found
