"""Warm clones: volumes that were made before anybody asked for them.

A warm clone is an ordinary clone in the backend with a record of its own. To claim it is one commit
that deletes that record, compared, and puts the record of the volume, which keeps the clone's name
in the backend: nothing is renamed, and the backend is not asked. `stock` says how many to have;
`Keeper` makes and deletes them in the background, never in a request.

Invariants (docs/invariants.md):
1. INV-WARM-1 (must): a clone becomes at most one volume, and only while its image is READY.
2. INV-WARM-2 (must): a clone in the backend has a record from before it is made until it is gone:
   its own, or that of a volume.
3. INV-WARM-3 (must): nobody acts on a claimed volume before its clone was seen, or replaced.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from volcore.engine.pool import (
    LeavingNewer,
    Pool,
    drop,
    image_lock,
    now_ns,
    put,
    unchanged,
    volume_lock,
)
from volcore.engine.pools import Pools
from volcore.engine.stock import Shortage, Taken, ids
from volcore.errors import NotFoundError, OperationPendingError, Reason, VolcoreError
from volcore.model import names
from volcore.model.records import Image, Kind, State, Volume, WarmClone

PAUSE_S: Final = 0.2
"""Between two steps: requests go first, and a burst of them ends before its stock is refilled."""
LOOK_INTERVAL_S: Final = 10.0
PREFIX: Final = "warm-"
"""Of the names in the backend; the image's name and an id follow."""
_log = structlog.get_logger("volcore.engine")


def claim(
    pool: Pool,
    image: str,
    size_bytes: int,
    *,
    count: int,
    plan: Callable[[Image, Sequence[str]], list[Volume]],
) -> list[Volume] | None:
    """Make volumes of warm clones, all or none; None: make them in another way.

    One commit. Whether the clones are still there is looked at behind the answer, and until then
    the names stay locked: see `_confirm`.
    Concurrency: the caller holds the locks of the names and of the image.

    Args:
        pool: where.
        image: its name.
        size_bytes: of each volume; 0: that of the image.
        count: of volumes.
        plan: returns the records of the volumes; they have these names in the backend.

    Raises:
        UnavailableError: the outcome is unknown.
    """
    taken = pool.stock.take(image, size_bytes, count)
    if taken is None:
        return None
    volumes = plan(taken.image, [clone.backend_id for clone in taken.clones])
    end = [*map(put, volumes), unchanged(taken.image), *map(drop, taken.clones)]
    try:
        pool.catalog.commit(end)
    except OperationPendingError as err:
        _keep(pool, taken, err)
        return None
    except BaseException:
        pool.stock.doubt(taken.clones)
        raise
    pool.note_made(volumes)
    if pool.looks_for is not None:
        keys = [volume_lock(volume.name) for volume in volumes]
        release = pool.locks.keep(keys, [image_lock(image)])
        pool.behind.add(partial(_confirm, pool, volumes, taken.clones, release))
    return volumes


def load(pool: Pool) -> None:
    """Take over the clones that a server before has left; what it was making or deleting goes.

    Those of newer servers, or of their images, stay as they are.
    """
    lines: dict[tuple[str, int], list[WarmClone]] = {}
    images: dict[str, Image | None] = {}
    for clone in pool.list(WarmClone, wanted=lambda one: not one.added, leave_newer=True):
        if clone.image not in images:
            with LeavingNewer():
                images[clone.image] = pool.find(Image, clone.image)
        if clone.image not in images:
            continue
        image = images[clone.image]
        ready = image is not None and image.state is State.READY and image.id == clone.image_id
        if clone.state is State.READY and ready and pool.stock.count_max:
            lines.setdefault((clone.image, clone.size_bytes), []).append(clone)
        else:
            pool.stock.doom([clone])
    for (name, _), clones in lines.items():
        image = images[name]
        assert image is not None
        gone = _look_for(pool, ids(clones))()
        pool.stock.doom(clone for clone in clones if clone.backend_id in gone)
        pool.stock.adopt(image, [clone for clone in clones if clone.backend_id not in gone])


class Keeper:
    """Keeps the stocks of all pools at their marks, in one thread."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._closing = threading.Event()
        self._work = threading.Event()
        self._failed: dict[str, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._run, name="warm", daemon=True)

    def start(self) -> None:
        """Look after the stocks from now on; once."""
        self._thread.start()

    def close(self) -> None:
        """End after the step that is under way; idempotent."""
        self._closing.set()
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Note that a stock has changed."""
        self._work.set()

    def step(self, pool: Pool) -> bool:
        """Read a record again, make some clones, delete one; return whether there was any to do.

        What fails does not keep the rest from being done.

        Raises:
            VolcoreError: the first failure.
        """
        pool.stock.adjust()
        busy, failures = False, []
        for act in (_look_again, _make, _delete):
            try:
                busy = act(pool) or busy
            except VolcoreError as err:
                failures.append(err)
        if failures:
            raise failures[0]
        return busy

    def _run(self) -> None:
        while not self._closing.is_set():
            self._work.clear()
            busy = False
            for name in self._pools.names():
                busy = self._try(self._pools.open(name)) or busy
            if not busy:
                self._work.wait(LOOK_INTERVAL_S)
            self._closing.wait(PAUSE_S)

    def _try(self, pool: Pool) -> bool:
        """Do a step; after a failure the pool rests, and the same failure is logged once."""
        reason, until_s = self._failed.get(pool.name, ("", 0.0))
        if time.monotonic() < until_s:
            return False
        try:
            busy = self.step(pool)
        except VolcoreError as err:
            self._failed[pool.name] = err.reason, time.monotonic() + LOOK_INTERVAL_S
            if err.reason != reason:
                _log.warning(
                    "warm clones not kept", pool=pool.name, reason=err.reason, message=err.message
                )
            return False
        self._failed.pop(pool.name, None)
        return busy


def _look_again(pool: Pool) -> bool:
    """Read the record of a clone again that may have been claimed."""
    doubted = pool.stock.doubted()
    if doubted is None:
        return False
    try:
        found = pool.find(WarmClone, doubted.key)
    except VolcoreError:
        pool.stock.doubt([doubted])
        raise
    if found is not None:
        put_back = pool.stock.add if found.state is State.READY else pool.stock.doom
        put_back([found])
    return True


def _make(pool: Pool) -> bool:
    """Make some clones that are missing; what fails is deleted later."""
    shortage = pool.stock.shortage()
    if shortage is None:
        return False
    try:
        made, failures = _make_some(pool, shortage)
    except OperationPendingError:
        _see_image(pool, shortage.image)
        return True
    pool.stock.add(made)
    for err in failures:
        raise err
    return True


def _make_some(pool: Pool, shortage: Shortage) -> tuple[list[WarmClone], list[VolcoreError]]:
    """Make clones; return those that are there, READY, and why others are not."""
    clones = [_plan(shortage) for _ in range(shortage.count)]
    begin = [unchanged(shortage.image), *map(put, clones)]
    targets = {clone.backend_id: clone.size_bytes for clone in clones}
    ready = [clone.but(state=State.READY) for clone in clones]
    try:
        failed = _clone(pool, shortage.image, targets, lambda: pool.catalog.commit(begin))
        made = [
            both for both in zip(ready, clones, strict=True) if both[0].backend_id not in failed
        ]
        pool.catalog.commit([put(new, old) for new, old in made])
        gone = _look_for(pool, [new.backend_id for new, _ in made])()
    except BaseException:
        pool.stock.doom(clones)
        raise
    lost = failed.keys() | gone
    pool.stock.doom(clone for clone in ready if clone.backend_id in lost)
    return [clone for clone in ready if clone.backend_id not in lost], list(failed.values())


def _delete(pool: Pool) -> bool:
    """Delete a clone that nobody shall have, if it is still one."""
    doomed = pool.stock.doomed()
    if doomed is None:
        return False
    try:
        clone = pool.find(WarmClone, doomed.key)
        if clone is None:
            return True
        if clone.state is State.READY:
            deleting = clone.but(state=State.DELETING)
            pool.catalog.commit([put(deleting, clone)])
            clone = deleting
        with suppress(NotFoundError):
            pool.backend.delete(clone.backend_id)
        pool.catalog.commit([drop(clone)])
    except BaseException:
        pool.stock.doom([doomed])
        raise
    return True


def _keep(pool: Pool, taken: Taken, err: OperationPendingError) -> None:
    """Put clones back that a refused commit did not claim."""
    kind = err.context.get("kind")
    if kind == Kind.WARM_CLONE:
        pool.stock.doubt(taken.clones)
        return
    pool.stock.add(taken.clones)
    if kind == Kind.IMAGE:
        _see_image(pool, taken.image)


def _confirm(
    pool: Pool,
    volumes: Sequence[Volume],
    clones: Sequence[WarmClone],
    release: Callable[[], None],
) -> Callable[[], None]:
    """Look for the clones of volumes that were claimed; what is gone is replaced.

    Nobody can have used them yet, since the names are locked until `release` is called: so another
    clone is as good, and the volume stays what its caller was told.
    """
    looking = _look_for(pool, ids(clones))

    def end() -> None:
        gone = looking()
        if gone:
            _log.error(
                "warm clones were deleted around volcore", pool=pool.name, names=sorted(gone)
            )
        for volume, clone in zip(volumes, clones, strict=True):
            if clone.backend_id in gone:
                _replace(pool, volume, clone)
        release()

    return end


def _replace(pool: Pool, volume: Volume, lost: WarmClone) -> None:
    """Give a volume another clone in one commit; what is left of the lost one goes later.

    Idempotent, as long as the volume is locked.
    """
    lost = lost.but(state=State.DELETING)
    if pool.find(Volume, volume.name) == volume:
        clone = _another(pool, volume)
        replaced = volume.but(backend_id=clone.backend_id, revision=volume.revision)
        try:
            pool.catalog.commit([put(replaced, volume), drop(clone), put(lost)])
        except BaseException:
            pool.stock.doubt([clone])
            raise
    pool.stock.doom([lost])


def _another(pool: Pool, volume: Volume) -> WarmClone:
    """Take a clone for a volume out of the stock, or make one; it is there."""
    assert volume.source is not None
    image = pool.image(volume.source.name)
    while taken := pool.stock.take(image.name, volume.size_bytes, 1):
        if not _look_for(pool, ids(taken.clones))():
            return taken.clones[0]
        pool.stock.doom(taken.clones)
    shortage = Shortage(image=image, size_bytes=volume.size_bytes, count=1)
    made, failures = _make_some(pool, shortage)
    for err in failures:
        raise err
    if not made:
        raise OperationPendingError(
            f"a clone for volume {volume.name!r} was deleted as soon as it was made; repeat",
            reason=Reason.OPERATION_PENDING,
            retryable=True,
        )
    return made[0]


def _see_image(pool: Pool, image: Image) -> None:
    """Note what became of an image whose record has changed."""
    found = pool.find(Image, image.name)
    if found is None or found.id != image.id or found.state is not State.READY:
        pool.stock.forget(image.id)
    else:
        pool.stock.saw(found)


def _plan(shortage: Shortage) -> WarmClone:
    """Return the record of a clone to be made."""
    record_id = names.new_id()
    return WarmClone(
        image=shortage.image.name,
        id=record_id,
        image_id=shortage.image.id,
        backend_id=names.backend_id(PREFIX + shortage.image.name, record_id),
        size_bytes=shortage.size_bytes,
        state=State.CREATING,
        create_time_ns=now_ns(),
    )


def _clone(
    pool: Pool, image: Image, targets: Mapping[str, int], begin: Callable[[], None]
) -> dict[str, VolcoreError]:
    """Make clones; return the errors of those that failed."""
    source = image.backend_volume_id, image.backend_snapshot_id
    if pool.makes_many is not None:
        return pool.makes_many.clone_many(*source, targets, reserve=begin)
    begin()
    failed: dict[str, VolcoreError] = {}
    for target_id, size_bytes in targets.items():
        try:
            pool.backend.clone(*source, target_id, size_bytes)
        except VolcoreError as err:
            failed[target_id] = err
    return failed


def _look_for(pool: Pool, volume_ids: Sequence[str]) -> Callable[[], set[str]]:
    """Start to look for volumes; return what waits, and returns which are gone for certain."""
    if pool.looks_for is None:
        return set
    try:
        waiting = pool.looks_for.look_for(volume_ids)
    except VolcoreError:
        return set

    def wait() -> set[str]:
        try:
            return waiting()
        except VolcoreError:
            return set()

    return wait
