"""Comparing what the short path makes with librbd's own on the cluster at hand, before any use.

One scratch image, two clones of it, one by librbd and one directly, through the same life: opened,
read through the parent, written, snapshot (one by librbd, one directly), written again, compared
with the snapshot, cloned from it and as it is, rolled back, flattened, removed, by librbd. After
each step headers, object maps, the parent's links, and the bytes of disk and snapshot must be
equal, but for ids and times. A second pair is larger than the parent, a third one blank. The
scratch images have rows nowhere; a row of the directory says that they may exist, from before the
first until after the last.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.clearing import Clearing
from volcore.backends.rbd.direct.facts import unusual_pool
from volcore.backends.rbd.direct.likeness import DifferenceError, Likeness, digest
from volcore.backends.rbd.direct.openers import Reminders
from volcore.backends.rbd.direct.plan import (
    Plan,
    header_object,
    listing,
    new_image_id,
    trashing,
)
from volcore.backends.rbd.direct.snapshotter import Outcome, Snapshotter, Source
from volcore.backends.rbd.direct.stock import Stock
from volcore.backends.rbd.direct.waves import Waves, Write, calling
from volcore.backends.rbd.directory import HIDDEN_PREFIX, Directory, Link
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.opening import settled
from volcore.errors import NotFoundError

SCHEME: Final = 3
"""Raised whenever what is written, or what is compared, changes."""
SCRATCH: Final = ".volcore-proof"
_PAIRS: Final = ((0, "a new clone (same size)"), (3, "a new clone (larger)"))
"""Objects by which a clone is larger than its parent."""
_BLANK: Final = len(_PAIRS)
"""Number of the pair of blank images."""
_PARENT_OBJECTS: Final = 5
_SNAPSHOT: Final = "q"
_HIDDEN: Final = f"{HIDDEN_PREFIX}child"
_CHILD: Final = ".child"
"""Suffix of a clone's clone."""
_NUMBERS_TIMEOUT_S: Final = 60.0
_CHILD_OPTIONS: Final = (
    ("rbd_default_data_pool", ""),
    ("rbd_default_stripe_unit", "0"),
    ("rbd_default_stripe_count", "0"),
    ("rbd_default_clone_format", "2"),
)
"""Settings of the connection that change what librbd makes."""


class StoppedError(Exception):
    """The pool is being closed."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two images that must be alike."""

    number: int

    @property
    def theirs(self) -> str:
        """Made by librbd."""
        return f"{SCRATCH}.theirs{self.number}"

    @property
    def ours(self) -> str:
        """Made directly."""
        return f"{SCRATCH}.ours{self.number}"

    @property
    def names(self) -> tuple[str, str]:
        return self.theirs, self.ours


def proof_key(cluster: Cluster, *, order: int, features: int) -> str:
    """Return for what a proof holds: versions of OSDs and librbd, features, what we write."""
    versions = cluster.mon_command("versions").get("osd", {})
    found = {
        "osd": sorted(versions),
        "librbd": list(bindings().rbd.RBD().version()),
        "features": features,
        "order": order,
        "scheme": SCHEME,
    }
    text = json.dumps(found, sort_keys=True)
    words = " and ".join(sorted({" ".join(version.split()[:3]) for version in versions}))
    return f"{words}, features {features}, {hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Proof:
    """One comparison in one pool."""

    def __init__(
        self,
        cluster: Cluster,
        waves: Waves,
        directory: Directory,
        stock: Stock,
        clearing: Clearing,
        reminders: Reminders,
        *,
        order: int,
        features: int,
        stop: threading.Event,
    ) -> None:
        self._cluster = cluster
        self._waves = waves
        self._ioctx = waves.ioctx
        self._directory = directory
        self._headers = Headers(waves.ioctx)
        self._like = Likeness(waves.ioctx, self._headers)
        self._stock = stock
        self._snapshotter = Snapshotter(
            waves, directory, self._headers, stock, clearing, reminders, features
        )
        self._clearing = clearing
        self._order = order
        self._features = features
        self._stop = stop
        self._pool_id = int(waves.ioctx.get_pool_id())
        self._rbd = bindings().rbd

    def run(self) -> str:
        """Compare; return what differs, empty if nothing does.

        Raises:
            StoppedError: `stop` was set; the scratch images are gone.
        """
        for option, usual in _CHILD_OPTIONS:
            found = self._cluster.setting(option)
            if found != usual:
                return f"the Ceph configuration has {option} = {found!r}"
        unusual = unusual_pool(self._ioctx)
        if unusual:
            return unusual
        self._directory.set_proving(True)
        self.clean_up()
        self._directory.set_proving(True)
        try:
            self._compare_all()
        except DifferenceError as err:
            return str(err)
        finally:
            self.clean_up()
        return ""

    def clean_up(self) -> None:
        """Delete all scratch images; idempotent."""
        for suffix in ("theirs", "ours"):
            for number in range(_BLANK + 1):
                self._delete(f"{SCRATCH}.{suffix}{number}{_CHILD}")
                self._drop_dangling_links(f"{SCRATCH}.{suffix}{number}")
                self._delete(f"{SCRATCH}.{suffix}{number}")
        self._drop_dangling_links(SCRATCH)
        self._delete(SCRATCH)
        self._directory.set_proving(False)

    def _compare_all(self) -> None:
        """Raise DifferenceError at the first difference."""
        size_bytes = _PARENT_OBJECTS << self._order
        with translated("make a scratch image"):
            self._create(SCRATCH, size_bytes)
            with self._rbd.Image(self._ioctx, SCRATCH) as image:
                image.write(b"parent", 0)
                image.write(b"parent", 2 << self._order)
                image.create_snap("s")
        snap = self._headers.snaps(self._like.image_id(SCRATCH))[0]
        self._step()
        pairs = []
        for number, (more, what) in enumerate(_PAIRS):
            pair = _Pair(number)
            self._clone_both(pair, snap, size_bytes, size_bytes + (more << self._order))
            self._same(pair, snap, what)
            pairs.append(pair)
        blank = _Pair(_BLANK)
        self._create_both(blank, size_bytes)
        self._same(blank, snap, "a new image")
        pairs.append(blank)
        self._live(pairs, snap)

    def _clone_both(self, pair: _Pair, snap: int, overlap_bytes: int, size_bytes: int) -> None:
        """Make one clone through librbd, the other directly."""
        parent_id = self._like.image_id(SCRATCH)
        with translated("clone a scratch image"):
            self._rbd.RBD().clone(
                self._ioctx, SCRATCH, "s", self._ioctx, pair.theirs, self._features, self._order
            )
            if size_bytes > overlap_bytes:
                with self._rbd.Image(self._ioctx, pair.theirs) as image:
                    image.resize(size_bytes)
        self._headers.mark(self._like.image_id(pair.theirs), pair.theirs)
        self._step()
        self._write(self._plan(pair.ours, parent_id, snap, overlap_bytes, size_bytes))

    def _create_both(self, pair: _Pair, size_bytes: int) -> None:
        """Make one blank image through librbd, the other directly."""
        with translated("make a scratch image"):
            self._create(pair.theirs, size_bytes)
        self._headers.mark(self._like.image_id(pair.theirs), pair.theirs)
        self._step()
        self._write(self._plan(pair.ours, "", 0, 0, size_bytes))

    def _create(self, name: str, size_bytes: int) -> None:
        """Make a blank image through librbd."""
        self._rbd.RBD().create(
            self._ioctx, name, size_bytes, self._order, old_format=False, features=self._features
        )

    def _plan(
        self, name: str, parent_id: str, snap: int, overlap_bytes: int, size_bytes: int
    ) -> Plan:
        """Return what to write for a direct clone, or for a blank image if it has no parent."""
        return Plan(
            volume_id=name,
            link=Link(image_id=new_image_id(name), parent_id=parent_id, snap=snap),
            pool_id=self._pool_id,
            size_bytes=size_bytes,
            overlap_bytes=overlap_bytes,
            order=self._order,
            features=self._features,
        )

    def _write(self, plan: Plan, *more: list[Write]) -> None:
        """Do the writes of a direct image, and what follows them."""
        features = 0
        if plan.link.parent_id:
            rows = self._like.rows(header_object(plan.link.parent_id))
            features = int.from_bytes(rows["features"], "little")
        waves = [listing([plan])], plan.image(self._ioctx, parent_features=features), *more
        for wave in waves:
            codes = self._waves.run(wave)
            if any(codes):
                raise DifferenceError(f"the cluster refused the writes of an image: {codes}")
        self._step()

    def _live(self, pairs: list[_Pair], snap: int) -> None:
        """Let librbd use all images alike, and look after each step."""
        each = self._each
        steps: tuple[tuple[str, Callable[[list[_Pair]], None]], ...] = (
            ("reading", self._read),
            ("writing", each(lambda image: image.write(b"child", 1 << self._order))),
            ("copying up", each(lambda image: image.write(b"child", 100))),
            ("a snapshot", self._snapshot),
            ("writing after it", each(self._write_more)),
            ("a discard", each(lambda image: image.discard(0, 1 << self._order))),
            ("cloning the snapshot", each(self._clone_snapshot)),
            ("cloning it as it is", self._clone_live),
            ("deleting that clone", each(self._delete_child)),
            ("rolling back", each(lambda image: image.rollback_to_snap(_SNAPSHOT))),
            ("flattening", self._flatten),
            ("deleting the snapshot", each(lambda image: image.remove_snap(_SNAPSHOT))),
        )
        for what, step in steps:
            self._step()
            step(pairs)
            for pair in pairs:
                self._same(pair, snap, what)
                contents = [self._like.content(name) for name in pair.names]
                if contents[0] != contents[1]:
                    raise DifferenceError(f"after {what} the images have different bytes or diffs")
        links = self._like.rows(header_object(self._like.image_id(SCRATCH))).get(
            wire.children_key(snap)
        )
        if links not in (None, bytes(4)):
            raise DifferenceError("after flattening the parent still has links")

    def _read(self, pairs: list[_Pair]) -> None:
        """Read what the parent has, or what none has."""

        def read(image: Any) -> None:
            wanted = bytes(6) if image.get_name() in _Pair(_BLANK).names else b"parent"
            if image.read(0, 6) != wanted:
                raise DifferenceError("librbd reads other bytes through a direct image")

        self._each(read)(pairs)

    def _flatten(self, pairs: list[_Pair]) -> None:
        """Flatten the clones."""
        self._each(lambda image: image.flatten())([p for p in pairs if p.number != _BLANK])

    def _snapshot(self, pairs: list[_Pair]) -> None:
        """Make a snapshot of each image: of librbd's through librbd, of ours directly."""
        self._everywhere(
            [pair.theirs for pair in pairs], lambda image: image.create_snap(_SNAPSHOT)
        )
        for pair in pairs:
            self._snapshot_directly(pair.ours, _SNAPSHOT)

    def _snapshot_directly(self, name: str, snapshot_id: str) -> int:
        """Make a direct snapshot; return its number."""
        image_id = self._like.image_id(name)
        newest = self._headers.snap_seq(image_id)
        if not self._stock.wait(1, _NUMBERS_TIMEOUT_S, above=newest):
            raise DifferenceError("the monitors give no snapshot numbers")
        self._step()
        source = Source(volume_id=name, image_id=image_id, snapshot_id=snapshot_id)
        outcome = self._snapshotter.create(source)
        if outcome is not Outcome.MADE:
            raise DifferenceError(f"a direct snapshot was {outcome.value}")
        self._clearing.flush()
        return self._headers.snap_seq(image_id)

    def _clone_live(self, pairs: list[_Pair]) -> None:
        """Clone each image through a hidden snapshot that goes to the trash at once."""

        def by_librbd(image: Any) -> None:
            name = image.get_name()
            image.create_snap(_HIDDEN)
            self._rbd.RBD().clone(
                self._ioctx, name, _HIDDEN, self._ioctx, name + _CHILD, self._features, self._order
            )
            image.remove_snap(_HIDDEN)

        self._everywhere([pair.theirs for pair in pairs], by_librbd)
        for pair in pairs:
            snap = self._snapshot_directly(pair.ours, _HIDDEN)
            parent_id = self._like.image_id(pair.ours)
            child = pair.ours + _CHILD
            size_bytes = self._headers.size_bytes(parent_id)
            plan = self._plan(child, parent_id, snap, size_bytes, size_bytes)
            self._write(plan, [trashing(parent_id, snap)])

    def _delete_child(self, image: Any) -> None:
        """Delete the clone of a clone; librbd deletes the snapshot in the trash with it."""
        self._rbd.RBD().remove(self._ioctx, image.get_name() + _CHILD)

    def _write_more(self, image: Any) -> None:
        """Write where there is something, and where nothing was."""
        image.write(b"later", 1 << self._order)
        image.write(b"later", 3 << self._order)

    def _clone_snapshot(self, image: Any) -> None:
        """Let librbd clone the snapshot, read the clone, and delete it."""
        name = image.get_name()
        librbd = self._rbd.RBD()
        librbd.clone(
            self._ioctx, name, _SNAPSHOT, self._ioctx, name + _CHILD, self._features, self._order
        )
        with settled(self._rbd.Image(self._ioctx, name + _CHILD, read_only=True)) as child:
            found = digest(child)
        image.set_snap(_SNAPSHOT)
        if digest(image) != found:
            raise DifferenceError("a clone of a direct snapshot has other bytes")
        image.set_snap(None)
        librbd.remove(self._ioctx, name + _CHILD)

    def _each(self, step: Callable[[Any], object]) -> Callable[[list[_Pair]], None]:
        """Return what does one step to all images of pairs."""
        return lambda pairs: self._everywhere([name for pair in pairs for name in pair.names], step)

    def _everywhere(self, names: list[str], step: Callable[[Any], object]) -> None:
        """Do one step to all images at once: snapshots then share a proposal of the monitors."""
        raised: list[BaseException] = []

        def work(name: str) -> None:
            try:
                with (
                    translated(f"use {name}"),
                    self._rbd.Image(self._ioctx, name) as image,
                ):
                    step(image)
            except BaseException as err:  # raised below, in the caller's thread
                raised.append(err)

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def _same(self, pair: _Pair, snap: int, when: str) -> None:
        """Raise DifferenceError unless librbd's image and ours are stored alike."""
        theirs, ours = (self._like.stored(name) for name in pair.names)
        different = sorted(
            key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)
        )
        if different:
            raise DifferenceError(f"after {when} these differ: {', '.join(different)}")
        links = self._like.rows(header_object(self._like.image_id(SCRATCH))).get(
            wire.children_key(snap), b""
        )
        linked = [
            wire.child_spec(self._pool_id, self._like.image_id(n)) in links for n in pair.names
        ]
        if linked[0] != linked[1]:
            raise DifferenceError(f"after {when} the parent's links differ")

    def _links(self, snap: int) -> bytes:
        """Return the row with the clones of the first scratch image's snapshot."""
        rows = self._like.rows(header_object(self._like.image_id(SCRATCH)))
        return rows.get(wire.children_key(snap), b"")

    def _drop_dangling_links(self, name: str) -> None:
        """Delete links of a scratch image to clones of which nothing else is there."""
        image_id = self._headers.image_id(name)
        if image_id is None or not self._headers.exists(image_id):
            return
        header = header_object(image_id)
        for key, value in self._like.rows(header).items():
            if not key.startswith("snap_children_"):
                continue
            snap = int(key.removeprefix("snap_children_"), 16)
            for child_id in wire.children(value):
                if not self._headers.exists(child_id):
                    body = wire.child_link(self._pool_id, child_id, snap)
                    self._waves.run([calling(header, "child_detach", body)])

    def _delete(self, name: str) -> None:
        """Delete a scratch image with its snapshots, if there is one.

        Also one that librbd was deleting when its process died: that one has no name any more, and
        librbd finds it in its trash.
        """
        if self._headers.image_id(name) is not None:
            with (
                suppress(NotFoundError),
                translated(f"delete {name}"),
                self._rbd.Image(self._ioctx, name) as image,
            ):
                for snapshot in list(image.list_snaps()):
                    image.remove_snap_by_id(snapshot["id"])
        with suppress(NotFoundError), translated(f"delete {name}"):
            self._rbd.RBD().remove(self._ioctx, name)
        self._headers.delete_name(name)

    def _step(self) -> None:
        """Stop between two steps if the pool is being closed."""
        if self._stop.is_set():
            raise StoppedError
