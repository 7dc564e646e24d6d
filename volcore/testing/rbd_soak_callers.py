"""Who works on the pool during an rbd soak: callers of the server, clients of their volumes.

Each owns its volumes and knows what they must show. Snapshots are shared: anybody clones anybody's,
also one that is being deleted.
"""

import random
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from volcore.backends.rbd.opening import settled
from volcore.client import Client
from volcore.errors import NotFoundError, PreconditionError, Reason
from volcore.limits import BLOCK_SIZE_BYTES, MIB
from volcore.testing.rbd_judge import PIECE_BYTES, Disk
from volcore.testing.soak import repeated
from volcore.v1 import attachment_pb2, operation_pb2

POOL: Final = "pools/p/volumes"
IMAGES: Final = ("pools/p/images/gold", "pools/p/images/odd")
IMAGE_BYTES: Final = 8 * MIB
SIZE_BYTES_MAX: Final = 24 * MIB
STEP_BYTES: Final = MIB // 2
"""Distance of the blocks that are written."""
VOLUMES_MAX: Final = 5
SNAPSHOTS_MAX: Final = 4
BATCH: Final = 3
HISTORY: Final = 12
_READ_WRITE: Final = attachment_pb2.ACCESS_MODE_READ_WRITE


@dataclass
class Model:
    """A volume or foreign image as its owner knows it."""

    image: str
    """Name of the rbd image."""
    size_bytes: int
    tags: dict[int, int]
    snapshots: dict[str, tuple[str, Disk]] = field(default_factory=dict)
    """Name to the backend's name and content."""
    zeroed: set[int] = field(default_factory=set)
    """See `Disk.zeroed`."""
    history: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def frozen(self) -> Disk:
        """Return what it shows now."""
        return Disk(self.size_bytes, dict(self.tags))

    def disk(self) -> Disk:
        """Return what the judge shall find."""
        return Disk(self.size_bytes, dict(self.tags), dict(self.snapshots.values()), self.zeroed)


class World:
    """What all share: the count of operations, snapshots to clone, what went wrong."""

    def __init__(self, ioctx: Any, operations: int) -> None:
        self.ioctx = ioctx
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.gold: dict[str, Disk] = {}
        self.stopped = threading.Event()
        self._left = operations
        self._lock = threading.Lock()
        self._snapshots: dict[str, Disk] = {}

    @property
    def done(self) -> int:
        """Operations of callers that have begun."""
        with self._lock:
            return sum(self.counts.values())

    def take(self) -> bool:
        """Whether there is another operation to do."""
        with self._lock:
            self._left -= 1
            return self._left >= 0 and not self.failures

    def count(self, action: str) -> None:
        """Note an operation."""
        with self._lock:
            self.counts[action] += 1

    def fail(self, text: str) -> None:
        """Note a failure; everybody stops soon."""
        with self._lock:
            self.failures.append(text)

    def share(self, snapshot: str, disk: Disk) -> None:
        """Offer a snapshot to everybody."""
        with self._lock:
            self._snapshots[snapshot] = disk

    def withdraw(self, snapshot: str) -> None:
        """Take the offer back; somebody may be cloning it."""
        with self._lock:
            self._snapshots.pop(snapshot, None)

    def offers(self, snapshot: str) -> bool:
        """Whether its owner has not begun to delete it."""
        with self._lock:
            return snapshot in self._snapshots

    def any_snapshot(self, dice: random.Random) -> tuple[str, Disk] | None:
        """Return one that is offered."""
        with self._lock:
            return dice.choice(sorted(self._snapshots.items())) if self._snapshots else None


class Worker(threading.Thread):
    """A thread whose failure ends the soak."""

    def __init__(self, world: World, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.world = world
        self.dice = random.Random(f"{seed}-{name}")  # noqa: S311 - a history, no secret
        self.models: dict[str, Model] = {}
        self.recent: deque[str] = deque(maxlen=HISTORY)
        self._serial = 0

    def run(self) -> None:
        """See the class."""
        try:
            self.work()
        except Exception as err:  # a thread's failure belongs into the report
            at = traceback.extract_tb(err.__traceback__)[-1]
            context = getattr(err, "context", "")
            self.world.fail(
                f"{self.name}: {type(err).__name__}: {err} {context} (line {at.lineno} of "
                f"{Path(at.filename).name}); it did: {'; '.join(self.recent)}"
            )

    def work(self) -> None:
        """Work until the soak ends."""
        raise NotImplementedError

    def fresh(self, stem: str) -> str:
        """Return a name that was never used."""
        self._serial += 1
        return f"{stem}{self.name}-{self._serial}"

    def note(self, action: str, name: str) -> None:
        """Write down what is about to happen, for the report of a failure."""
        self.recent.append(f"{action} {name}")
        if name in self.models:
            self.models[name].history.append(action)


class Caller(Worker):
    """Calls the server, and is the client of its own volumes."""

    def __init__(self, world: World, number: int, seed: int, client: Client) -> None:
        super().__init__(world, f"c{number}", seed)
        self._client = client
        self._few: tuple[tuple[Callable[[], None], int], ...] = (
            (self._create, 3), (self._deploy, 8), (self._batch, 2), (self._clone, 12),
        )  # fmt: skip
        self._many: tuple[tuple[Callable[[str], None], int], ...] = (
            (self._write, 16), (self._read, 8), (self._look, 5), (self._snapshot, 14),
            (self._unsnapshot, 8), (self._resize, 5), (self._revert, 5), (self._flatten, 4),
            (self._clone_live, 3), (self._delete_volume, 10),
        )  # fmt: skip

    def work(self) -> None:
        """See `Worker.work`."""
        while self.world.take():
            few = self._few if len(self.models) < VOLUMES_MAX else ()
            many = self._many if self.models else ()
            total = sum(weight for _, weight in (*few, *many))
            at = self.dice.randrange(total)
            for new, weight in few:
                at -= weight
                if at < 0:
                    self.world.count(new.__name__.strip("_"))
                    new()
                    break
            else:
                for act, weight in many:
                    at -= weight
                    if at < 0:
                        self.world.count(act.__name__.strip("_"))
                        act(self.dice.choice(sorted(self.models)))
                        break

    def _create(self) -> None:
        name, size_bytes = self.fresh("blank"), self.dice.choice((4, 8, 12)) * MIB
        self.note("create", name)
        made = repeated(lambda: self._client.create_volume(_path(name), size_bytes=size_bytes))
        self.models[name] = Model(made.backend_name, size_bytes, {})

    def _deploy(self) -> None:
        image, name = self.dice.choice(IMAGES), self.fresh("one")
        self.note(f"deploy {image}", name)
        size_bytes = self.dice.choice((0, 0, IMAGE_BYTES + 4 * MIB))
        made = repeated(
            lambda: self._client.create_volume(_path(name), image=image, size_bytes=size_bytes)
        )
        self._keep(name, made, self.world.gold[image])

    def _batch(self) -> None:
        image, names = self.dice.choice(IMAGES), [self.fresh("many") for _ in range(BATCH)]
        self.note(f"deploy {image} to", " ".join(names))

        def act() -> list[Any]:
            results = self._client.deploy_volumes(image, names)
            for result in results:
                if isinstance(result, Exception):
                    raise result
            return list(results)

        for name, made in zip(names, repeated(act), strict=True):
            self._keep(name, made, self.world.gold[image])

    def _clone(self) -> None:
        found = self.world.any_snapshot(self.dice)
        if found is None:
            return
        (snapshot, disk), name = found, self.fresh("clone")
        size_bytes = self.dice.choice((0, 0, SIZE_BYTES_MAX))
        self.note(f"clone {snapshot} to", name)
        try:
            made = repeated(
                lambda: self._client.create_volume(
                    _path(name), snapshot=snapshot, size_bytes=size_bytes
                )
            )
        except NotFoundError:
            assert not self.world.offers(snapshot), f"{snapshot} is not found"
            return  # its owner was faster
        except PreconditionError as err:
            if err.reason != Reason.DEPTH_LIMIT:
                raise
            return
        self._keep(name, made, disk)

    def _clone_live(self, source: str) -> None:
        name = self.fresh("live")
        self.note(f"clone volume {source} to", name)
        try:
            made = repeated(lambda: self._client.create_volume(_path(name), volume=_path(source)))
        except PreconditionError as err:
            if err.reason != Reason.DEPTH_LIMIT:
                raise
            self._flatten(source)
            return
        self._keep(name, made, self.models[source].frozen())

    def _keep(self, name: str, made: Any, disk: Disk) -> None:
        assert made.size_bytes >= disk.size_bytes, (name, made.size_bytes)
        self.models[name] = Model(made.backend_name, made.size_bytes, dict(disk.tags))

    def _write(self, name: str) -> None:
        """Attach, write as a client does, now and then snapshot in the middle, detach."""
        import rbd

        self.note("write", name)
        model = self.models[name]
        repeated(lambda: self._client.attach_volume(_path(name), "h", access_mode=_READ_WRITE))
        with rbd.Image(self.world.ioctx, model.image) as image:
            for _ in range(self.dice.randrange(1, 6)):
                self._change(image, model)
            if self.dice.random() < 0.2:
                self._snapshot(name)
                self._change(image, model)
            image.flush()
        repeated(lambda: self._client.detach_volume(_path(name), "h"))

    def _change(self, image: Any, model: Model) -> None:
        offset = self.dice.randrange(model.size_bytes // STEP_BYTES) * STEP_BYTES
        choice = self.dice.random()
        if choice < 0.8:
            tag = self.dice.randrange(1, 256)
            image.write(bytes([tag]) * BLOCK_SIZE_BYTES, offset)
            model.tags[offset] = tag
        elif choice < 0.9:
            image.write_zeroes(offset, BLOCK_SIZE_BYTES)
            model.zeroed.add(offset // PIECE_BYTES)
            model.tags.pop(offset, None)
        else:
            offset -= offset % PIECE_BYTES
            length = min(PIECE_BYTES, model.size_bytes - offset)
            image.discard(offset, length)
            if length < PIECE_BYTES:
                model.zeroed.add(offset // PIECE_BYTES)
            for at in range(offset, offset + PIECE_BYTES, STEP_BYTES):
                model.tags.pop(at, None)

    def _read(self, name: str) -> None:
        """Read some blocks of the volume, and of a snapshot, as another client does."""
        import rbd

        self.note("read", name)
        model = self.models[name]
        with settled(rbd.Image(self.world.ioctx, model.image, read_only=True)) as image:
            self._check(image, name, model.frozen())
            if model.snapshots:
                backend_name, disk = self.dice.choice(sorted(model.snapshots.items()))[1]
                image.set_snap(backend_name)
                self._check(image, f"{name}@{backend_name}", disk)

    def _check(self, image: Any, name: str, disk: Disk) -> None:
        assert image.size() == disk.size_bytes, (name, image.size(), disk.size_bytes)
        for _ in range(4):
            offset = self.dice.randrange(disk.size_bytes // STEP_BYTES) * STEP_BYTES
            found = image.read(offset, BLOCK_SIZE_BYTES)
            tag = disk.tags.get(offset, 0)
            assert found == bytes([tag]) * BLOCK_SIZE_BYTES, (name, offset, tag, found[:8])

    def _look(self, name: str) -> None:
        self.note("look", name)
        model = self.models[name]
        found = repeated(lambda: self._client.get_volume(_path(name)))
        assert found.size_bytes == model.size_bytes, (name, found.size_bytes)
        listed = repeated(lambda: list(self._client.list_snapshots(_path(name))))
        names = {one.name.rpartition("/")[2] for one in listed}
        assert names == set(model.snapshots), (name, names, set(model.snapshots))

    def _snapshot(self, name: str) -> None:
        model = self.models[name]
        if len(model.snapshots) >= SNAPSHOTS_MAX:
            self._unsnapshot(name)
        snapshot = self.fresh("s")
        self.note(f"snapshot {snapshot}", name)
        path, disk = f"{_path(name)}/snapshots/{snapshot}", model.frozen()
        made = repeated(lambda: self._client.create_snapshot(path))
        model.snapshots[snapshot] = (made.backend_name, disk)
        self.world.share(path, disk)

    def _unsnapshot(self, name: str) -> None:
        model = self.models[name]
        if not model.snapshots:
            return
        snapshot = self.dice.choice(sorted(model.snapshots))
        self.note(f"delete snapshot {snapshot}", name)
        path = f"{_path(name)}/snapshots/{snapshot}"
        self.world.withdraw(path)
        repeated(lambda: self._client.delete_snapshot(path))
        del model.snapshots[snapshot]

    def _resize(self, name: str) -> None:
        model = self.models[name]
        size_bytes = min(model.size_bytes + 4 * MIB, SIZE_BYTES_MAX)
        self.note(f"resize to {size_bytes}", name)
        repeated(lambda: self._client.resize_volume(_path(name), size_bytes))
        model.size_bytes = size_bytes

    def _revert(self, name: str) -> None:
        model = self.models[name]
        if not model.snapshots:
            return
        snapshot = self.dice.choice(sorted(model.snapshots))
        self.note(f"revert to {snapshot}", name)
        path = f"{_path(name)}/snapshots/{snapshot}"
        repeated(lambda: self._client.revert_volume(_path(name), path))
        disk = model.snapshots[snapshot][1]
        model.size_bytes, model.tags = disk.size_bytes, dict(disk.tags)

    def _flatten(self, name: str) -> None:
        self.note("flatten", name)
        started = repeated(lambda: self._client.flatten_volume(_path(name)))
        ended = repeated(lambda: self._client.wait_operation(started.name))
        assert ended.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED, ended

    def _delete_volume(self, name: str) -> None:
        self.note("delete", name)
        model = self.models[name]
        for snapshot in model.snapshots:
            self.world.withdraw(f"{_path(name)}/snapshots/{snapshot}")
        repeated(lambda: self._client.delete_volume(_path(name), force=True))
        del self.models[name]

    def delete_all(self) -> None:
        """Delete what is left of the caller's volumes."""
        for name in sorted(self.models):
            self._delete_volume(name)


def _path(name: str) -> str:
    return f"{POOL}/{name}"
