"""What the seal of a pool refuses, one case each; `test_corruption.py` draws thousands."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.catalog.sqlite import SqliteCatalog
from volcore.errors import IntegrityError, Reason
from volcore.limits import BLOCK_SIZE_BYTES, MIB

B = BLOCK_SIZE_BYTES


def opened(directory: Path) -> LocalBackend:
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    SqliteCatalog(backend._database)
    return backend


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool with two layers under `c`."""
    backend = opened(tmp_path / "pool")
    backend.create("v", 16 * MIB)
    with backend.open_device("v", read_only=False) as device:
        device.write(0, b"1" * 8 * B)
    backend.create_snapshot("v", "s")
    backend.clone("v", "s", "c", 16 * MIB)
    with backend.open_device("c", read_only=False) as device:
        device.write(4 * B, b"2" * B)
    backend._database.execute("INSERT INTO record VALUES ('k', 'key', x'00')")
    backend.close()
    return tmp_path / "pool"


def refused(pool: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        opened(pool)
    assert caught.value.reason == Reason.BAD_RECORD
    return str(caught.value)


def run(pool: Path, sql: str) -> None:
    with closing(sqlite3.connect(pool / "volcore.db")) as database:
        database.executescript(sql)
        database.commit()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE volume SET size_bytes = size_bytes * 2 WHERE volume_id = 'c'",
        "UPDATE volume SET top_layer = 1 WHERE volume_id = 'c'",
        "UPDATE layer SET parent_id = NULL WHERE id = 3",
        "UPDATE layer SET pages = pages + 1 WHERE id = 1",
        "DELETE FROM snapshot",
        "DELETE FROM volume WHERE volume_id = 'c'",
        "UPDATE record SET value = x'01'",
        "DELETE FROM seal WHERE name = 'volume'",
        "DELETE FROM seal",
        "DROP TABLE seal",
        "DROP TABLE snapshot",
        "UPDATE local_format SET version = 2",
        "DELETE FROM local_format",
    ],
)
def test_rows(pool: Path, sql: str) -> None:
    """Goal: INV-LOCAL-11. Method: change a row behind the server's back."""
    run(pool, sql)
    assert "damaged" in refused(pool)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM page WHERE layer_id = 3",
        "UPDATE page SET chunk_index = 1 WHERE layer_id = 3",
        "UPDATE page SET layer_id = 2 WHERE layer_id = 3",
    ],
)
def test_pages(pool: Path, sql: str) -> None:
    """Goal: a lost page shows no parent's data. Method: lose or move one; others still read."""
    run(pool, sql)
    backend = opened(pool)
    with pytest.raises(IntegrityError), backend.open_device("c", read_only=True) as device:
        device.read(4 * B, B)
    with backend.open_device("v", "s", read_only=True) as device:
        assert device.read(0, 8 * B) == b"1" * 8 * B
    backend.close()


@pytest.mark.parametrize("value", ["NULL", "'three'"])
def test_format_is_no_number(pool: Path, value: str) -> None:
    """Goal: a damaged page is found, whatever it holds. Method: a type the column does not allow.

    Soak of corruptions, seeds 63453 and 63982.
    """
    run(
        pool,
        "PRAGMA writable_schema = ON;"
        "UPDATE sqlite_master SET sql = 'CREATE TABLE local_format (version)'"
        " WHERE name = 'local_format'",
    )
    run(pool, f"UPDATE local_format SET version = {value}")
    assert "damaged" in refused(pool)


def test_schema_is_no_text(pool: Path) -> None:
    """Goal: damage in what SQLite quotes is damage. Method: a byte of a statement, not UTF-8.

    Soak of corruptions, seed 83724.
    """
    path = pool / "volcore.db"
    found = path.read_bytes()
    place = found.index(b"CREATE TABLE", found.index(b"local_format"))
    path.write_bytes(found[:place] + b"\xe5" + found[place + 1 :])
    assert "damaged" in refused(pool)


def test_lost_commits(pool: Path, tmp_path: Path) -> None:
    """Goal: a log that was lost is missed. Method: put the database back as it was."""
    shutil.copyfile(pool / "volcore.db", tmp_path / "old")
    backend = opened(pool)
    backend.create("w", MIB)
    backend.close()
    shutil.copyfile(tmp_path / "old", pool / "volcore.db")
    assert "commit" in refused(pool)
    os.unlink(pool / "volcore.db")
    assert "there are layers" in refused(pool)
    assert (pool / "layers" / "1.data").exists()


@pytest.mark.parametrize("content", [None, b"", b"x" * 20, b"x" * 21])
def test_no_witness(pool: Path, content: bytes | None) -> None:
    """Goal: an old copy cannot hide behind a lost witness. Method: lose or damage it."""
    os.unlink(pool / "witness")
    if content is not None:
        (pool / "witness").write_bytes(content)
    assert "witness" in refused(pool)


def test_undone_transactions_count_nothing(pool: Path) -> None:
    """Goal: no false alarm. Method: undo changes of all tables, replace rows, open again."""
    backend = opened(pool)
    for undo in (True, False):
        try:
            with backend._database.transaction():
                backend.create("w", MIB)
                backend.resize("w", 2 * MIB)
                backend._database.execute(
                    "INSERT OR REPLACE INTO record VALUES ('k', 'key', x'02')"
                )
                if undo:
                    raise InterruptedError
        except InterruptedError:
            pass
    with backend.open_device("c", read_only=False) as device:
        for number in range(3):
            device.write(4 * B, bytes([number]) * B, fua=True)
    backend.delete("w")
    backend.close()
    opened(pool).close()
