"""Goal: clone, snapshot, revert and delete cost the same whatever there is.

Method: count SQL statements and the steps of SQLite's machine, with many pages, ancestors,
snapshots and volumes and with few; no clock.
"""

from array import array
from contextlib import closing

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.local.pagecodec import Page
from volcore.errors import IntegrityError, Reason
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, GIB, TIB
from volcore.model.extent import Extent, ExtentKind

DEPTH = 300
VOLUMES = 2000
SNAPSHOTS = 50
CALLS = {
    "snapshot": lambda backend: backend.create_snapshot("v", "new"),
    "clone": lambda backend: backend.clone("v", "s", "new", 10 * TIB),
    "clone a volume": lambda backend: backend.clone("v", None, "new", 10 * TIB),
    "revert": lambda backend: backend.revert("v", "s"),
    "delete a snapshot": lambda backend: backend.delete_snapshot("v", "s"),
    "delete": lambda backend: backend.delete("v"),
    "create": lambda backend: backend.create("new", GIB),
    "resize": lambda backend: backend.resize("v", 10 * TIB),
}


class Counted:
    """Statements, and steps in tens."""

    def __init__(self, database):
        self._database = database
        self._connection = database._connection
        self.statements = self.steps = 0

    def __enter__(self):
        self._database._connection = self
        self._connection.set_progress_handler(self._step, 10)
        return self

    def __exit__(self, *_):
        self._database._connection = self._connection
        self._connection.set_progress_handler(None, 0)

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, *args):
        self.statements += 1
        return self._connection.execute(*args)

    def _step(self):
        self.steps += 1


def small(backend):
    backend.create("v", GIB)
    pages(backend, 1)
    backend.create_snapshot("v", "s")
    pages(backend, 1)


def large(backend):
    """10 TiB, deep, with many pages, among many volumes and clones."""
    backend.create("base", 10 * TIB)
    pages(backend, 1, "base")
    backend.create_snapshot("base", "s")
    with backend._database.transaction():
        for number in range(VOLUMES):
            backend.clone("base", "s", f"c{number}", 10 * TIB)
    above = "base"
    for number in range(DEPTH):
        pages(backend, 1, above)
        backend.clone(above, None, f"d{number}", 10 * TIB)
        above = f"d{number}"
    pages(backend, 1, above)
    backend.clone(above, None, "v", 10 * TIB)
    pages(backend, 3000)
    for number in range(SNAPSHOTS):
        backend.create_snapshot("v", f"s{number}")
        pages(backend, 1)
    backend.create_snapshot("v", "s")
    pages(backend, 3000)


def pages(backend, count, volume="v"):
    layer_id = backend._layers.find_volume(volume).layer_id
    crcs = array("I", bytes(4096))
    with backend._database.transaction():
        backend._layers.put_pages(
            [Page(layer_id, chunk, bytes([2]) * 1024, crcs) for chunk in range(count)]
        )


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    made = []
    for fill in (small, large):
        backend = LocalBackend(LocalStore.open(tmp_path_factory.mktemp("pool")))
        backend.open()
        backend.upkeep.wake = lambda: None  # what a thread would do afterwards
        fill(backend)
        made.append(backend)
    yield made
    for backend in made:
        backend.close()


def cost(backend, call):
    with pytest.raises(InterruptedError), Counted(backend._database) as counted:
        undone(backend, call)
    return counted


def undone(backend, call):
    with backend._database.transaction():
        call(backend)
        raise InterruptedError


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("is_open", [False, True])
def test_constant(pools, name, is_open):
    if is_open and name in {"revert", "delete"}:
        pytest.skip("refused while it is open")
    costs = []
    for backend in pools:
        device = backend.open_device("v", read_only=False) if is_open else None
        costs.append(cost(backend, CALLS[name]))
        if device is not None:
            device.close()
    assert costs[1].statements == costs[0].statements
    rows = SNAPSHOTS * 20 if name == "delete" else 0  # its snapshots' rows go with it
    assert costs[1].steps <= costs[0].steps + 60 + rows


def test_push_of_an_open_volume(pools):
    """A snapshot of an open volume looks at no chain."""
    counts = []
    for backend in pools:
        with backend.open_device("v", read_only=False) as device:
            device.write(0, b"x")
            with Counted(backend._database) as counted:
                backend.create_snapshot("v", "pushed")
            counts.append(counted)
            backend.delete_snapshot("v", "pushed")
    assert counts[1].statements == counts[0].statements
    assert counts[1].steps <= counts[0].steps + 60


def test_diff_reads_what_differs(tmp_path):
    """Goal: a diff costs what changed. Method: the same one among few pages, and among many."""
    backend = LocalBackend(LocalStore.open(tmp_path))
    backend.open()
    with closing(backend):
        for name in ("v", "w"):
            backend.create(name, TIB)
        pages(backend, 500)
        backend.create_snapshot("v", "one")
        with backend.open_device("v", read_only=False) as device:
            device.write(GIB, b"changed")
        backend.create_snapshot("v", "two")
        steps = []
        for count in (0, 3000):
            pages(backend, count, "w")
            backend.diff("v", "one", "two")  # proves the layers
            with Counted(backend._store.scanner.database) as counted:
                found = backend.diff("v", "one", "two")
            assert list(found) == [Extent(GIB, BLOCK_SIZE_BYTES, ExtentKind.DATA)]
            steps.append(counted.steps)
        assert steps[1] <= steps[0] + 5


def test_diff_keeps_no_writer_waiting(tmp_path):
    """Goal: what is committed meanwhile is neither held up nor seen. Method: within a view."""
    backend = LocalBackend(LocalStore.open(tmp_path))
    backend.open()
    with closing(backend):
        backend.create("v", GIB)
        backend.create_snapshot("v", "one")
        rows = backend._store.scanner
        with rows.database.view():
            assert rows.volume_ids() == ["v"]
            backend.create("w", GIB)
            assert rows.volume_ids() == ["v"]
        assert sorted(rows.volume_ids()) == ["v", "w"]
        assert not backend.diff("v", "one", None)


@pytest.mark.parametrize("bit", [0, 40, 8 * 12, 8 * 13, 8 * 200])
@pytest.mark.parametrize("version", [2, 4])
def test_diff_believes_no_damage(tmp_path, version, bit):
    """Goal: a diff misses nothing. Method: flip a bit of states, as each version has them."""
    backend = LocalBackend(LocalStore.open(tmp_path))
    backend.open()
    with closing(backend):
        backend.create("v", GIB)
        for chunk in (0, 1, 7):
            with backend.open_device("v", read_only=False) as device:
                device.write(chunk * CHUNK_SIZE_BYTES, b"a")
        backend.create_snapshot("v", "s")
        ((layer_id, states),) = backend._database.query(
            "SELECT layer_id, states FROM page WHERE chunk_index = 1"
        )
        states = bytearray(states if version == 4 else states[-256:])
        states[bit // 8] ^= 1 << bit % 8
        backend._database.execute(
            "UPDATE page SET states = ? WHERE chunk_index = 1", (bytes(states),)
        )
        for source, target in ((None, "s"), (None, None)):
            with pytest.raises(IntegrityError) as caught:
                backend.diff("v", source, target)
            assert caught.value.context["layer"] == str(layer_id)
            assert caught.value.reason == Reason.BAD_CHECKSUM
