"""The short path of one pool: whether it may be used, images and snapshots made by it."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from volcore.backends.contract import ShortPath, ShortPathState
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.direct.clearing import Clearing
from volcore.backends.rbd.direct.cloner import Cloner, Source, StaleFactsError
from volcore.backends.rbd.direct.facts import Facts, FactsCache
from volcore.backends.rbd.direct.finishing import Finisher
from volcore.backends.rbd.direct.openers import Reminders
from volcore.backends.rbd.direct.proof import Proof, StoppedError, proof_key
from volcore.backends.rbd.direct.recovery import DirectRecovery
from volcore.backends.rbd.direct.siblings import Siblings
from volcore.backends.rbd.direct.snapshotter import Outcome, Snapshotter
from volcore.backends.rbd.direct.snapshotter import Source as SnapshotSource
from volcore.backends.rbd.direct.stock import LOW, Stock
from volcore.backends.rbd.direct.waves import Waves
from volcore.backends.rbd.directory import HIDDEN_PREFIX, Directory, Entry
from volcore.backends.rbd.header import Headers
from volcore.errors import VolcoreError

_ATTEMPTS: Final = 3
_STOCK_TIMEOUT_S: Final = 30.0
_LOG: Final = logging.getLogger(__name__)


class DirectPath:
    """Direct clones, blank images and snapshots of one pool; any thread."""

    def __init__(
        self,
        cluster: Cluster,
        ioctx: Any,
        directory: Directory,
        find: Callable[[str], Entry | None],
        alone: Callable[[str], AbstractContextManager[bool]],
        records_of: Callable[[str], Mapping[str, bytes]],
        *,
        order: int,
        features: int,
    ) -> None:
        """Use nothing yet: the path is off until `start`."""
        self.waves = Waves(ioctx)
        self._cluster = cluster
        self._directory = directory
        self._headers = headers = Headers(ioctx)
        self.recovery = DirectRecovery(self.waves, headers, directory)
        self._facts = FactsCache(ioctx, headers, find, features)
        self._order, self._features = order, features
        self._finisher = Finisher(self.waves, directory)
        self._cloner = Cloner(
            self.waves,
            directory,
            self.recovery,
            self._facts,
            self._finisher,
            records_of,
            order=order,
            features=features,
        )
        self._stock = Stock(ioctx, directory)
        self._clearing = Clearing(self.waves, directory, headers, alone)
        self._reminders = Reminders(self.waves)
        self._snapshotter = Snapshotter(
            self.waves,
            directory,
            headers,
            self._stock,
            self._clearing,
            self._reminders,
            features,
        )
        self._siblings = Siblings(
            self.waves,
            headers,
            self._snapshotter,
            find=find,
            alone=alone,
            ready=self._facts.choose_anew,
        )
        self._facts.on_full = self._siblings.ask
        self._state = ShortPath(state=ShortPathState.OFF, detail="not started")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> ShortPath:
        """Whether the path is used, and why not."""
        return self._state

    def refuse(self, why: str) -> None:
        """Leave the path off."""
        self._state = ShortPath(state=ShortPathState.OFF, detail=why)
        self._clean_up_only()

    def start(self) -> None:
        """Use the path if it was proven on this cluster already, else prove it in a thread."""
        try:
            key = proof_key(self._cluster, order=self._order, features=self._features)
        except VolcoreError as err:
            self._state = ShortPath(state=ShortPathState.REFUSED, detail=err.message)
            return
        self._stock.start()
        if self._directory.proof() == key and not self._directory.proving():
            self._state = ShortPath(state=ShortPathState.ON, detail=key)
            return
        self._state = ShortPath(state=ShortPathState.PROVING, detail=key)
        self._thread = threading.Thread(
            target=self._prove, args=(key,), name="volcore-proof", daemon=True
        )
        self._thread.start()

    def wait(self) -> ShortPath:
        """Return the state once it is decided, and the stock of numbers is filled."""
        if self._thread is not None:
            self._thread.join()
        if self._state.state is ShortPathState.ON:
            self._stock.wait(LOW, _STOCK_TIMEOUT_S)
        return self._state

    def close(self) -> None:
        """Stop proving, wait for the writes behind answers."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._siblings.close()
        self._stock.close()
        self.flush()
        self._clearing.close()
        self._reminders.close()
        self._finisher.close()

    def snapshot(
        self, volume_id: str, image_id: str, snapshot_id: str, *, attached: bool = False
    ) -> Outcome:
        """Make a snapshot of a volume that is closed in this process; see `Snapshotter.create`."""
        if self._state.state is not ShortPathState.ON:
            return Outcome.REFUSED
        source = SnapshotSource(
            volume_id=volume_id, image_id=image_id, snapshot_id=snapshot_id, attached=attached
        )
        return self._snapshotter.create(
            source, note=lambda facts: self._facts.made(volume_id, snapshot_id, facts)
        )

    def clone_live(
        self,
        volume_id: str,
        image_id: str,
        targets: Mapping[str, int],
        reserve: Callable[[], None],
        *,
        attached: bool = False,
    ) -> dict[str, VolcoreError] | None:
        """Make clones of a volume, closed in this process, as it is now; else as `clone`.

        Through one hidden snapshot, which goes to the trash at once: so all show the same instant.
        At most BATCH_MAX.
        """
        if self._state.state is not ShortPathState.ON:
            return None
        facts = self._facts.of_head(image_id, lambda above: self._stock.take(above=above))
        if not isinstance(facts, Facts):
            return None
        begun = False
        name = HIDDEN_PREFIX + next(iter(targets))
        snapshot = SnapshotSource(
            volume_id=volume_id,
            image_id=image_id,
            snapshot_id=name,
            attached=attached,
            size_bytes=facts.size_bytes,
        )

        def make_snapshot() -> Outcome:
            nonlocal begun
            begun = True
            return self._snapshotter.create_numbered(snapshot, facts.snap)

        try:
            source = Source(volume_id=volume_id, snapshot_id=name)
            return self._cloner.clone_hidden(source, facts, targets, reserve, make_snapshot)
        finally:
            self._facts.cloned_live(volume_id)
            if not begun:
                self._stock.put_back(facts.snap)

    def snapshot_by_librbd(self, image_id: str) -> None:
        """Note that librbd has made a snapshot: the next direct one needs a higher number.

        librbd tells those who watch, but not who is just opening the image.
        """
        self._reminders.add(image_id)
        if self._state.state is ShortPathState.ON:
            with suppress(VolcoreError):
                self._stock.used_elsewhere(self._headers.snap_seq(image_id))

    def give_back(self, snap: int) -> None:
        """Tell the monitors that a snapshot's number is not used any more; see `Stock`."""
        self._stock.give_back(snap)

    def settle_snapshots(self) -> None:
        """Delete what snapshots cut short have left."""
        self._snapshotter.settle()

    def clone(
        self,
        volume_id: str,
        snapshot_id: str,
        targets: Mapping[str, int],
        reserve: Callable[[], None],
    ) -> dict[str, VolcoreError] | None:
        """Make a clone for each (volume id: size); None: the short path is not for these.

        Returns the errors of those that failed. `reserve` as in `SupportsMakeMany`; it may be
        called more often. Precondition: the ids are claimed.

        Raises:
            NotFoundError: no such volume or snapshot.
        """
        if self._state.state is not ShortPathState.ON:
            return None
        source = Source(volume_id=volume_id, snapshot_id=snapshot_id)
        for _ in range(_ATTEMPTS):
            facts = self._facts.get(volume_id, snapshot_id)
            if not isinstance(facts, Facts):
                return None
            try:
                return self._cloner.clone(source, facts, targets, reserve)
            except StaleFactsError:
                continue
        return None

    def make_blank(
        self, targets: Mapping[str, int], reserve: Callable[[], None]
    ) -> dict[str, VolcoreError] | None:
        """Make a blank image for each (volume id: size), else as `clone`."""
        if self._state.state is not ShortPathState.ON or self._facts.pool_lately()[0]:
            return None
        return self._cloner.make_blank(targets, reserve)

    def settled(self, volume_id: str) -> None:
        """Return when no write to the row of that volume will come or is under way."""
        self._finisher.settled(volume_id)

    def flush(self) -> None:
        """Return when no write behind an answer is under way."""
        self._finisher.flush()
        self._clearing.flush()

    def forget(self, volume_id: str) -> None:
        """Forget what is known of a volume whose snapshots change."""
        self._facts.forget(volume_id)

    def unlinked(self, image_id: str) -> None:
        """Note that the last clone of one of an image's snapshots has gone."""
        self._facts.unlinked(image_id)

    def _proof(self) -> Proof:
        return Proof(
            self._cluster,
            self.waves,
            self._directory,
            self._stock,
            self._clearing,
            self._reminders,
            order=self._order,
            features=self._features,
            stop=self._stop,
        )

    def _clean_up_only(self) -> None:
        """Delete the scratch images of a proof that was cut short."""
        if self._directory.proving():
            self._proof().clean_up()

    def _prove(self, key: str) -> None:
        """Compare with librbd; the path is used from then on, or the reason is kept."""
        try:
            difference = self._proof().run()
            if not difference:
                self._directory.set_proof(key)
        except StoppedError:
            return
        except VolcoreError as err:
            difference = f"the comparison failed: {err}"
        if difference:
            _LOG.warning("images and snapshots are made through librbd only: %s", difference)
            self._state = ShortPath(state=ShortPathState.REFUSED, detail=difference)
        else:
            self._state = ShortPath(state=ShortPathState.ON, detail=key)
