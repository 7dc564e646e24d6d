"""Goal: an index that lost an entry loses nobody's writes without a word.

Method: the index that keeps pages apart is put back as it was before a page was added, as a disk
does that takes a write and forgets it. The index that is proven still has the page.
"""

import sqlite3
from contextlib import closing

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.errors import IntegrityError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES

B, C = BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
INDEX = "sqlite_autoindex_page_1"


def opened(place):
    backend = LocalBackend(LocalStore.open(place))
    backend.open()
    return backend


def write(backend, at, byte):
    with backend.open_device("v", read_only=False) as device:
        device.write(at, byte * B)


def read(backend, at, snapshot=None):
    with backend.open_device("v", snapshot, read_only=True) as device:
        return device.read(at, B)


def index_page(place, content=None):
    """The only page of the index in the database file; with `content`, replaced by that."""
    path = place / "volcore.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = database.execute("PRAGMA page_size").fetchone()
        where = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (number,) = database.execute(where, (INDEX,)).fetchone()
    with path.open("r+b") as file:
        file.seek((number - 1) * size)
        if content is None:
            return file.read(size)
        file.write(content)
        return content


@pytest.fixture
def pool(tmp_path):
    """A pool whose index lacks the page of chunk 1: an `a` is there, and a `b` in chunk 0."""
    place = tmp_path / "pool"
    with closing(opened(place)) as backend:
        backend.create("v", 4 * C)
        write(backend, 0, b"b")
    before = index_page(place)
    with closing(opened(place)) as backend:
        write(backend, C, b"a")
    assert index_page(place) != before
    index_page(place, before)
    return place


def test_read(pool):
    """What the page says is read, the head's and a snapshot's; a diff has it."""
    with closing(opened(pool)) as backend:
        backend.create_snapshot("v", "s")
        assert read(backend, C) == read(backend, C, "s") == b"a" * B
        assert [extent.offset_bytes for extent in backend.diff("v", None, "s")] == [0, C]


def test_write_over_it(pool):
    """A second page for the chunk is an error, for whoever asks; never the older of the two."""
    with closing(opened(pool)) as backend:
        try:
            write(backend, C + B, b"c")
        except IntegrityError:
            return
    with closing(opened(pool)) as backend:
        with pytest.raises(IntegrityError):
            read(backend, C)
        with pytest.raises(IntegrityError):
            backend.diff("v", None, None)
        assert read(backend, 0) == b"b" * B


@pytest.mark.parametrize("where", [C, 2 * C])
def test_merge(pool, where):
    """Layers are merged with the page, or not at all."""
    with closing(opened(pool)) as backend:
        backend.create_snapshot("v", "one")
        write(backend, where + B, b"c")
        backend.create_snapshot("v", "two")
        write(backend, 3 * C, b"d")
        backend.delete_snapshot("v", "one")
        backend.delete_snapshot("v", "two")
        for _ in range(20):
            backend.upkeep.step()
        try:
            found = read(backend, C), read(backend, where + B), read(backend, 3 * C)
        except IntegrityError:
            return
        assert found == (b"a" * B, b"c" * B, b"d" * B)


def test_delete(pool):
    """The volume can be deleted, and the pool serves the others from the next start on."""
    with closing(opened(pool)) as backend:
        backend.create("other", C)
        backend.delete("v")
    with closing(opened(pool)) as backend:
        assert list(backend.walk()) == ["other"]


def test_delete_what_lost_its_pages(tmp_path):
    """The same for one whose pages are gone, index and all, past the triggers."""
    with closing(opened(tmp_path)) as backend:
        backend.create("other", C)
        backend.create("v", 4 * C)
        write(backend, C, b"a")
    with closing(sqlite3.connect(tmp_path / "volcore.db")) as database:
        database.execute("DELETE FROM page")
        database.commit()
    with closing(opened(tmp_path)) as backend:
        backend.delete("v")
    with closing(opened(tmp_path)) as backend:
        assert list(backend.walk()) == ["other"]
