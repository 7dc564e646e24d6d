"""Sees every change of the files below a directory: a library that is preloaded into the process.

Compile it with `build`, start a Python process with `environment`, and in there use `Recorder`.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("recorder.c")
_HEAD: Final = struct.Struct("<BBHQQQQ")


class Kind(IntEnum):
    """What a record tells."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    PUNCH = 4
    EXTEND = 5
    SYNC_BEGIN = 6
    SYNC_END = 7
    DIR_BEGIN = 8
    DIR_END = 9
    UNLINK = 10
    RENAME = 11
    MARK = 12
    MKDIR = 13


@dataclass(frozen=True, slots=True)
class Record:
    """One change; `path` is relative to the directory. A sync's two records share `offset`."""

    kind: Kind
    sure: bool
    """Durable when the call returned (RWF_DSYNC)."""
    path: str
    inode: int
    offset: int
    length: int
    data: bytes


def build(directory: Path) -> Path:
    """Compile the library into `directory`."""
    library = directory / "recorder.so"
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]
    subprocess.run([*words, library, _SOURCE, "-ldl", "-lpthread"], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a process with the library."""
    return {**os.environ, "LD_PRELOAD": str(library)}


class Recorder:
    """The library in this process; records one directory at a time."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        assert hasattr(self._library, "recorder_start"), "start the process with environment()"

    def start(self, directory: Path, trace: Path) -> None:
        """Record changes of files that are opened from now on below `directory`."""
        code = self._library.recorder_start(os.fsencode(directory.resolve()), os.fsencode(trace))
        if code:
            raise OSError(code, os.strerror(code), str(trace))

    def mark(self, word: str) -> None:
        """Put a word between the changes."""
        data = word.encode()
        self._library.recorder_mark(data, ctypes.c_size_t(len(data)))

    def stop(self) -> None:
        """Record no more."""
        self._library.recorder_stop()


def records(trace: Path) -> Iterator[Record]:
    """Yield what was recorded, in the order in which it took effect."""
    raw = trace.read_bytes()
    at = 0
    while at < len(raw):
        kind, sure, path_length, inode, offset, length, data_length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        path = raw[at : at + path_length].decode()
        at += path_length
        data = raw[at : at + data_length]
        at += data_length
        yield Record(Kind(kind), bool(sure), path, inode, offset, length, data)
