from collections.abc import Iterator
from pathlib import Path

import pytest

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
