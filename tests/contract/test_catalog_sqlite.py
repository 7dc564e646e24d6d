from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from volcore.catalog import sqlite
from volcore.catalog.contract import Catalog
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.errors import IntegrityError, Reason
from volcore.model.records import Kind
from volcore.testing.catalog_contract import CatalogContract, put


class TestSqliteCatalog(CatalogContract):
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Iterator[Catalog]:
        database = Database(tmp_path / "catalog.db")
        yield SqliteCatalog(database)
        database.close()


class TestSqliteCatalogInMemory(CatalogContract):
    @pytest.fixture
    def catalog(self) -> Iterator[Catalog]:
        database = Database(None)
        yield SqliteCatalog(database)
        database.close()


def test_durable(tmp_path: Path) -> None:
    """Goal: what was committed is there after a restart. Method: open the file again."""
    database = Database(tmp_path / "catalog.db")
    SqliteCatalog(database).commit([put("a", b"1")])
    again = SqliteCatalog(Database(tmp_path / "catalog.db"))
    assert again.find(Kind.VOLUME, "a") == b"1"
    database.close()


def test_undone_transaction(tmp_path: Path) -> None:
    """Goal: an exception undoes all commits joined so far. Method: raise in the block."""
    database = Database(tmp_path / "catalog.db")
    catalog = SqliteCatalog(database)
    hooks: list[str] = []

    def change() -> None:
        catalog.commit([put("a", b"1")])
        database.after_commit(lambda: hooks.append("commit"))
        database.after_rollback(lambda: hooks.append("rollback"))
        assert database.inside()
        raise InterruptedError

    with pytest.raises(InterruptedError), catalog.transaction():
        change()
    assert not database.inside()
    assert hooks == ["rollback"]
    assert catalog.find(Kind.VOLUME, "a") is None
    database.close()


def test_damaged_file(tmp_path: Path) -> None:
    """Goal: a file that is no database is an IntegrityError. Method: write junk into it."""
    (tmp_path / "catalog.db").write_bytes(b"no database at all, but long enough" * 200)
    with pytest.raises(IntegrityError) as caught:
        SqliteCatalog(Database(tmp_path / "catalog.db"))
    assert caught.value.reason == Reason.BAD_RECORD


def test_what_is_remembered_is_what_was_committed() -> None:
    """Goal: memory never shows what was undone, nor hides what came.

    Method: look before, in and after transactions that end well or not, and from another thread.
    """
    database = Database(None)
    catalog = SqliteCatalog(database)
    assert catalog.find(Kind.VOLUME, "v") is None
    catalog.commit([put("v", b"1")])
    assert catalog.find(Kind.VOLUME, "v") == b"1"
    with suppress(KeyError), catalog.transaction():
        catalog.commit([put("v", b"2")])
        assert catalog.find(Kind.VOLUME, "v") == b"2"
        raise KeyError
    assert catalog.find(Kind.VOLUME, "v") == b"1"

    seen: list[bytes | None] = []
    with catalog.transaction():
        catalog.commit([put("v", b"3")])
        reader = Thread(target=lambda: seen.append(catalog.find(Kind.VOLUME, "v")))
        reader.start()
        reader.join(0.05)  # it may not look into the transaction
        assert catalog.find(Kind.VOLUME, "v") == b"3"
    reader.join()
    assert seen == [b"3"]
    assert catalog.find(Kind.VOLUME, "v") == b"3"
    database.close()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a pool with many records does not fill memory. Method: look at more than are kept."""
    monkeypatch.setattr(sqlite, "KNOWN_MAX", 8)
    database = Database(None)
    catalog = SqliteCatalog(database)
    for number in range(50):
        assert catalog.find(Kind.VOLUME, f"v{number}") is None
        assert len(catalog._known) <= 8
    database.close()
