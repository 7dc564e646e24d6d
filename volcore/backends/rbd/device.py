"""Block access to an open rbd image.

librbd's cache is off (`connection.py`), so a write that returned is on the OSDs; requests go down
in pieces that librbd spreads over objects by itself. Measured on 2 cores against one bluestore OSD:
one synchronous 4 MiB request at a time moves as much as 16 asynchronous ones of 1 MiB.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from volcore.backends.contract import BlockDevice
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.extents import device_extents
from volcore.backends.refusals import check_range, device_closed, read_only
from volcore.errors import BackendIOError, Reason
from volcore.limits import MIB
from volcore.model.extent import Extent

PIECE_BYTES_MAX: Final = 16 * MIB
"""Largest request to librbd: bounds the copies that the bindings make."""
ZERO_PIECE_BYTES_MAX: Final = 1024 * MIB
"""librbd takes at most 2 GiB at once."""
_THICK: Final = 1
"""RBD_WRITE_ZEROES_FLAG_THICK_PROVISION."""


class RbdDevice(BlockDevice):
    """See `BlockDevice`; `check` refuses changes when this server lost its right to the pool."""

    def __init__(
        self,
        image: Any,
        *,
        volume_id: str,
        read_only: bool,
        check: Callable[[], None],
        on_close: Callable[["RbdDevice"], None],
    ) -> None:
        self._image = image
        self._volume_id = volume_id
        self._read_only = read_only
        self._check = check
        self._on_close = on_close
        self._idle = threading.Condition()
        self._active = 0
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """See `BlockDevice.size_bytes`."""
        with self._using("read the size"):
            return int(self._image.size())

    @property
    def read_only(self) -> bool:
        """See `BlockDevice.read_only`."""
        return self._read_only

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
        """See `BlockDevice.read_into`."""
        with memoryview(buffer).cast("B") as target, self._using("read"):
            self._check_range(offset_bytes, len(target))
            for at, length in _pieces(len(target), PIECE_BYTES_MAX):
                data = self._image.read(offset_bytes + at, length)
                if len(data) != length:
                    raise BackendIOError(
                        f"volume {self._volume_id} gave {len(data)} of {length} bytes at"
                        f" {offset_bytes + at}",
                        reason=Reason.BACKEND_IO,
                    )
                target[at : at + length] = data

    def write(
        self, offset_bytes: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> None:
        """See `BlockDevice.write`; durable at return with and without `fua`."""
        del fua
        with memoryview(data).cast("B") as source, self._changing("write"):
            self._check_range(offset_bytes, len(source))
            for at, length in _pieces(len(source), PIECE_BYTES_MAX):
                whole = isinstance(data, bytes) and length == len(source)
                self._image.write(
                    data if whole else source[at : at + length].tobytes(), offset_bytes + at
                )

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BlockDevice.discard`.

        Not librbd's discard: that one leaves what does not fill its granularity as it was.
        """
        self._zero(offset_bytes, length_bytes, 0)

    def write_zeroes(
        self, offset_bytes: int, length_bytes: int, *, may_trim: bool = True, fua: bool = False
    ) -> None:
        """See `BlockDevice.write_zeroes`."""
        del fua
        self._zero(offset_bytes, length_bytes, 0 if may_trim else _THICK)

    def _zero(self, offset_bytes: int, length_bytes: int, flags: int) -> None:
        """Zero a range in pieces."""
        with self._changing("zero"):
            self._check_range(offset_bytes, length_bytes)
            for at, length in _pieces(length_bytes, ZERO_PIECE_BYTES_MAX):
                self._image.write_zeroes(offset_bytes + at, length, flags)

    def flush(self) -> None:
        """See `BlockDevice.flush`."""
        with self._using("flush"):
            if not self._read_only:
                self._image.flush()

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """See `BlockDevice.extents`. Complexity: one request per chunk of the range."""
        with self._using("list extents"):
            self._check_range(offset_bytes, length_bytes)
            return device_extents(self._image, offset_bytes, length_bytes)

    def close(self) -> None:
        """See `BlockDevice.close`; waits for calls of other threads."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._active == 0)
        self._on_close(self)

    @contextmanager
    def _changing(self, doing: str) -> Iterator[None]:
        """Wrap a call that changes the volume."""
        if self._read_only:
            raise read_only(self._volume_id)
        self._check()
        with self._using(doing):
            yield

    @contextmanager
    def _using(self, doing: str) -> Iterator[None]:
        """Keep the image open for one call, and translate its errors."""
        with self._idle:
            if self._closed:
                raise device_closed(self._volume_id)
            self._active += 1
        try:
            with translated(f"{doing} volume {self._volume_id}"):
                yield
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()

    def _check_range(self, offset_bytes: int, length_bytes: int) -> None:
        """Raise unless the range lies within the present size."""
        check_range(
            self._volume_id,
            offset_bytes=offset_bytes,
            length_bytes=length_bytes,
            size_bytes=int(self._image.size()),
        )


def _pieces(length_bytes: int, piece_bytes_max: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of consecutive pieces."""
    for at in range(0, length_bytes, piece_bytes_max):
        yield at, min(piece_bytes_max, length_bytes - at)
