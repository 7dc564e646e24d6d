"""A disk on which only what was synced is sure: rebuilds a directory as a power cut may leave it.

Fault model: when the power goes, each unsynced write survives wholly, not at all, or sector by
sector, whatever came before or after it; a new size, a punched hole, a name made or unlinked
likewise, but the changes of one name in their order. A sync makes sure what the same file had when
the sync began; a directory's sync does so for the names in it.
"""

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from volcore.testing.recorder import Kind, Record

PAGE: Final = 4096
_ZEROES: Final = bytes(PAGE)
_DIRECTORY: Final = -1
_CHANCES: Final = (0.0, 0.5, 1.0)
"""Shares of a file's unsynced changes that survive; all of one and none of another tell most."""


@dataclass(slots=True)
class FileImage:
    """The content of one file, by pages; what is missing is zeroes."""

    pages: dict[int, bytes] = field(default_factory=dict)
    size: int = 0

    def copy(self) -> "FileImage":
        """Return another with the same content."""
        return FileImage(dict(self.pages), self.size)

    def write(self, offset: int, data: bytes) -> None:
        """Write as pwrite does."""
        self.size = max(self.size, offset + len(data))
        for at, piece in pieces(offset, data, PAGE):
            page, start = divmod(at, PAGE)
            old = self.pages.get(page, _ZEROES)
            self.pages[page] = old[:start] + piece + old[start + len(piece) :]

    def truncate(self, size: int) -> None:
        """Cut or extend with zeroes."""
        if size < self.size:
            for page in [page for page in self.pages if (page + 1) * PAGE > size]:
                old = self.pages.pop(page)
                if page * PAGE < size:
                    self.pages[page] = old[: size - page * PAGE].ljust(PAGE, b"\0")
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """Zero a range that lies within the size or beyond."""
        if offset < self.size:
            self.write(offset, bytes(min(offset + length, self.size) - offset))

    def save(self, path: Path) -> None:
        """Make the file, with holes where there are zeroes only."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, self.size)
            for page, data in self.pages.items():
                keep = min(PAGE, self.size - page * PAGE)
                if keep > 0 and data != _ZEROES:
                    os.pwrite(fd, data[:keep], page * PAGE)
        finally:
            os.close(fd)

    @classmethod
    def load(cls, path: Path) -> "FileImage":
        """Take over a file."""
        image = cls()
        with path.open("rb") as file:
            while data := file.read(PAGE):
                if data.count(0) != len(data):
                    image.pages[image.size // PAGE] = data.ljust(PAGE, b"\0")
                image.size += len(data)
        return image


def pieces(offset: int, data: bytes, unit: int) -> Iterable[tuple[int, bytes]]:
    """Yield (offset, bytes) of `data`, cut where multiples of `unit` are."""
    end = offset + len(data)
    at = offset
    while at < end:
        stop = min(end, at - at % unit + unit)
        yield at, data[at - offset : stop - offset]
        at = stop


class SimulatedDisk:
    """One directory; feed it `Record`s in order, then ask for what a power cut leaves.

    `sector` tells from a file's name how much of a write is written wholly or not at all.
    """

    def __init__(self, base: Path, sector: Callable[[str], int]) -> None:
        """Begin with what is in `base`, all of it durable."""
        self._sector = sector
        self._files: list[FileImage] = []
        self._pending: list[list[tuple[int, Record]]] = []
        self._labels: list[str] = []
        """The name that each file had at first."""
        self._by_inode: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._durable_names: dict[str, int] = {}
        self._pending_names: dict[str, list[tuple[int, str, int | None]]] = {}
        self._begun: dict[int, int] = {}
        self._clock = 0
        for path in sorted(base.rglob("*")):
            name = str(path.relative_to(base))
            number = _DIRECTORY
            if path.is_file():
                number = self._add(name, path.stat().st_ino, FileImage.load(path))
            self._names[name] = self._durable_names[name] = number

    def _add(self, name: str, inode: int, image: FileImage) -> int:
        number = self._by_inode[inode] = len(self._files)
        self._files.append(image)
        self._pending.append([])
        self._labels.append(name)
        return number

    def feed(self, record: Record) -> None:
        """Take one change."""
        self._clock += 1
        kind = record.kind
        if kind in {Kind.WRITE, Kind.TRUNCATE, Kind.PUNCH, Kind.EXTEND}:
            self._pending[self._by_inode[record.inode]].append((self._clock, record))
        elif kind == Kind.CREATE:
            self._rename(record.path, self._add(record.path, record.inode, FileImage()))
        elif kind == Kind.MKDIR:
            self._rename(record.path, _DIRECTORY)
        elif kind == Kind.UNLINK:
            self._rename(record.path, None)
        elif kind == Kind.RENAME:
            moved = self._names[record.path]
            self._rename(record.path, None)
            self._rename(record.data.decode(), moved)
        elif kind in {Kind.SYNC_BEGIN, Kind.DIR_BEGIN}:
            self._begun[record.offset] = self._clock
        elif kind == Kind.SYNC_END:
            self._settle(self._by_inode[record.inode], self._begun.pop(record.offset))
        elif kind == Kind.DIR_END:
            self._settle_names(record.path, self._begun.pop(record.offset))

    def _rename(self, name: str, number: int | None) -> None:
        if number is None:
            del self._names[name]
        else:
            self._names[name] = number
        directory = os.path.dirname(name)
        self._pending_names.setdefault(directory, []).append((self._clock, name, number))

    def _settle(self, number: int, until: int) -> None:
        for clock, record in self._pending[number]:
            if clock < until:
                _apply(self._files[number], record)
        self._pending[number] = [item for item in self._pending[number] if item[0] >= until]

    def _settle_names(self, directory: str, until: int) -> None:
        changes = self._pending_names.pop(directory, [])
        for clock, name, number in changes:
            if clock < until:
                _put(self._durable_names, name, number)
        self._pending_names[directory] = [item for item in changes if item[0] >= until]

    def cut(self, target: Path, dice: random.Random, chance: float | None = None) -> None:
        """Write into the new directory `target` what a power cut at this instant may leave.

        Args:
            target: made here.
            dice: decides what survives.
            chance: of each unsynced change to survive; None draws one for every file.
        """
        names = dict(self._durable_names)
        for changes in self._pending_names.values():
            for name in dict.fromkeys(name for _, name, _ in changes):
                own = [number for _, other, number in changes if other == name]
                count = dice.randint(0, len(own)) if chance is None else round(chance * len(own))
                if count:
                    _put(names, name, own[count - 1])
        target.mkdir()
        for name in sorted(names):
            number = names[name]
            path = target / name
            if not path.parent.is_dir():
                continue
            if number == _DIRECTORY:
                path.mkdir(mode=0o700)
            elif not name.endswith("-shm"):  # SQLite makes it anew after a crash
                share = dice.choice(_CHANCES) if chance is None else chance
                self._survivor(number, dice, share).save(path)

    def _survivor(self, number: int, dice: random.Random, chance: float) -> FileImage:
        image = self._files[number]
        if not self._pending[number]:
            return image
        image = image.copy()
        unit = self._sector(self._labels[number])
        for _, record in self._pending[number]:
            if record.sure or chance == 1:
                _apply(image, record)
            elif record.kind == Kind.WRITE:
                for at, piece in pieces(record.offset, record.data, unit):
                    if dice.random() < chance:
                        image.write(at, piece)
            elif dice.random() < chance:
                _apply(image, record)
        return image


def _apply(image: FileImage, record: Record) -> None:
    if record.kind == Kind.WRITE:
        image.write(record.offset, record.data)
    elif record.kind == Kind.TRUNCATE:
        image.truncate(record.length)
    elif record.kind == Kind.PUNCH:
        image.punch(record.offset, record.length)
    else:
        image.truncate(max(image.size, record.length))


def _put(names: dict[str, int], name: str, number: int | None) -> None:
    if number is None:
        names.pop(name, None)
    else:
        names[name] = number
