"""Faults of a disk and its keeper, planted in the files of a pool that nobody has open."""
# ruff: noqa: S608 - SQL of our own words only

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_B: Final = 4096
_DATABASE_PAGE: Final = 2048
_TABLES: Final = ("layer", "volume", "snapshot", "page", "record", "sqlite_sequence")


@dataclass(frozen=True)
class Damage:
    """Where to do it, and with which luck."""

    dice: random.Random
    target: Path
    older: tuple[Path, ...]
    noted: frozenset[str]
    """Layer files with notes: recovery takes their bytes as they are (docs/formats/local.md)."""

    def layer(self) -> Path:
        """Return some layer file without notes."""
        files = sorted((self.target / "layers").iterdir())
        return self.dice.choice([path for path in files if path.name not in self.noted])

    def metadata(self) -> Path:
        """Return the database, its log or its witness."""
        files = [self.target / name for name in ("volcore.db", "volcore.db-wal", "witness")]
        return self.dice.choice([path for path in files if path.exists()])

    def any_file(self) -> Path:
        """Return a layer file, the database or its log."""
        return self.dice.choice([self.layer, self.metadata])()

    def data_page(self, path: Path) -> int:
        """Return the offset of some page that is not all zeroes, or 0."""
        raw = path.read_bytes()
        size = _page_bytes(path)
        used = [at for at in range(0, len(raw), size) if raw[at : at + size].strip(b"\0")]
        return self.dice.choice(used or [0])

    def old(self, name: str) -> Path | None:
        """Return an earlier version of the file; with an old witness too, a pool is just old."""
        if name == "witness":
            return None
        found = [copy / name for copy in self.older if (copy / name).exists()]
        return self.dice.choice(found) if found else None

    def named(self, path: Path) -> str:
        """Return the path for the report."""
        return str(path.relative_to(self.target))


def _page_bytes(path: Path) -> int:
    return _B if path.parent.name == "layers" else _DATABASE_PAGE


def _patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _flip(damage: Damage, path: Path) -> str:
    at = damage.data_page(path) + damage.dice.randrange(_page_bytes(path))
    raw = path.read_bytes()[at : at + 1] or b"\0"
    bit = damage.dice.randrange(8)
    _patch(path, at, bytes([raw[0] ^ (1 << bit)]))
    return f"{damage.named(path)} byte {at} bit {bit}"


def flip_layer(damage: Damage) -> str:
    """Flip a bit of a layer file."""
    return _flip(damage, damage.layer())


def flip_metadata(damage: Damage) -> str:
    """Flip a bit of the database or its log."""
    return _flip(damage, damage.metadata())


def cut(damage: Damage) -> str:
    """Cut a file."""
    path = damage.any_file()
    size = damage.dice.choice((0, damage.dice.randrange(path.stat().st_size + 1)))
    os.truncate(path, size)
    return f"{damage.named(path)} to {size}"


def grow(damage: Damage) -> str:
    """Append garbage to a file."""
    path = damage.any_file()
    count = damage.dice.choice((1, 512, _B, 3 * _B))
    with path.open("ab") as file:
        file.write(damage.dice.randbytes(count))
    return f"{damage.named(path)} by {count}"


def zero(damage: Damage) -> str:
    """Zero a range of a file."""
    path = damage.any_file()
    at = damage.data_page(path) + damage.dice.choice((0, 0, 512, 1000))
    count = damage.dice.choice((1, 512, _B, 8 * _B))
    _patch(path, at, bytes(max(0, min(count, path.stat().st_size - at))))
    return f"{damage.named(path)} from {at}, {count} bytes"


def misplace(damage: Damage) -> str:
    """Put one page of a file over another."""
    path = damage.any_file()
    source, target = damage.data_page(path), damage.data_page(path)
    _patch(path, target, path.read_bytes()[source : source + _page_bytes(path)])
    return f"{damage.named(path)} {source} over {target}"


def old_page(damage: Damage) -> str:
    """Put one page of a file back as it was earlier."""
    path = damage.any_file()
    old = damage.old(damage.named(path))
    if old is None:
        return "no old copy"
    at = damage.data_page(path)
    page = old.read_bytes()[at : at + _page_bytes(path)]
    _patch(path, at, page)
    return f"{damage.named(path)} {at} of {old.parts[-2:]}"


def old_file(damage: Damage) -> str:
    """Put a whole file back as it was earlier."""
    path = damage.any_file()
    old = damage.old(damage.named(path))
    if old is None:
        return "no old copy"
    shutil.copyfile(old, path)
    return f"{damage.named(path)} of {old}"


def old_metadata(damage: Damage) -> str:
    """Put the database and its log back as they were earlier."""
    copy = damage.dice.choice(damage.older)
    for name in ("volcore.db", "volcore.db-wal", "volcore.db-shm"):
        (damage.target / name).unlink(missing_ok=True)
        if (copy / name).exists():
            shutil.copyfile(copy / name, damage.target / name)
    return copy.name


def swap(damage: Damage) -> str:
    """Swap two layer files."""
    one, other = damage.layer(), damage.layer()
    between = damage.target / "between"
    one.rename(between)
    if other.exists():
        other.rename(one)
    between.rename(other)
    return f"{one.name} {other.name}"


def delete(damage: Damage) -> str:
    """Delete a file."""
    path = damage.any_file()
    path.unlink()
    return damage.named(path)


def change_row(damage: Damage) -> str:
    """Change one value of one row; the row still looks like one."""
    with _rows(damage) as (database, table, key, names):
        name = damage.dice.choice(names)
        chosen = f"FROM {table} WHERE {_key(table)} = ?"
        (value,) = database.execute(f"SELECT {name} {chosen}", (key,)).fetchone()
        new: object = damage.dice.choice((0, 1, 2, 3, 4096))
        if isinstance(value, int):
            new = value ^ (1 << damage.dice.randrange(16))
        elif isinstance(value, bytes) and value:
            at = damage.dice.randrange(len(value))
            new = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        elif isinstance(value, str) and value:
            new = value[:-1] + chr(ord(value[-1]) ^ 1)
        change = f"UPDATE {table} SET {name} = ? WHERE {_key(table)} = ?"
        database.execute(change, (new, key))
        return f"{table}.{name} of {key} to {new!r:.40}"


def lose_row(damage: Damage) -> str:
    """Delete one row."""
    with _rows(damage) as (database, table, key, _):
        database.execute(f"DELETE FROM {table} WHERE {_key(table)} = ?", (key,))
        return f"{table} {key}"


def old_map(damage: Damage) -> str:
    """Put one page row back as it was earlier."""
    copy = damage.dice.choice(damage.older)
    with closing(sqlite3.connect(f"file:{copy / 'volcore.db'}?mode=ro", uri=True)) as old:
        rows = old.execute("SELECT * FROM page ORDER BY 1, 2").fetchall()
    with _database(damage) as database:
        known = {row[0] for row in database.execute("SELECT id FROM layer")}
        row = damage.dice.choice([row for row in rows if row[0] in known])
        marks = ", ".join("?" * len(row))
        database.execute(f"INSERT OR REPLACE INTO page VALUES ({marks})", row)
        return f"layer {row[0]} chunk {row[1]} of {copy.name}"


@contextmanager
def _database(damage: Damage) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(damage.target / "volcore.db")) as database:
        yield database
        database.commit()


@contextmanager
def _rows(damage: Damage) -> Iterator[tuple[sqlite3.Connection, str, object, list[str]]]:
    """Yield the database and a row of it: its table, its key, its columns."""
    with _database(damage) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        table = damage.dice.choice([name for name in _TABLES if (name,) in names])
        keys = database.execute(f"SELECT {_key(table)} FROM {table} ORDER BY 1").fetchall()
        columns = database.execute(f"PRAGMA table_info({table})").fetchall()
        yield database, table, damage.dice.choice(keys)[0], [row[1] for row in columns]


def _key(table: str) -> str:
    return {"volume": "volume_id", "record": "key"}.get(table, "rowid")


FAULTS: Final[dict[str, Callable[[Damage], str]]] = {
    fault.__name__: fault
    for fault in (
        flip_layer, flip_metadata, cut, grow, zero, misplace, old_page, old_file, old_metadata,
        swap, delete, change_row, lose_row, old_map,
    )
}  # fmt: skip


def plant(kind: str, damage: Damage) -> str:
    """Plant one fault; return what was done."""
    try:
        return FAULTS[kind](damage)
    except (sqlite3.Error, IndexError, OSError) as err:
        return f"not possible ({err})"  # after another fault there may be nothing left to damage
