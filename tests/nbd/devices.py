"""A device that a test can watch, slow down and break, around a real one."""

import threading
from collections.abc import Callable

from volcore.backends.contract import BlockDevice
from volcore.kernels.datapath import DataPath
from volcore.model.extent import Extent


class WatchedDevice(BlockDevice):
    """Passes everything on; `before(method, offset_bytes)` may block or raise."""

    def __init__(self, inner: BlockDevice, before: Callable[[str, int], None] | None = None):
        self.inner = inner
        self.before = before or (lambda _method, _offset_bytes: None)
        self.calls: list[str] = []
        self.closed = False
        self.running = self.running_max = 0
        self._lock = threading.Lock()

    def _enter(self, method: str, offset_bytes: int = 0) -> None:
        assert not self.closed, "the device is used after it was closed"
        with self._lock:
            self.calls.append(method)
            self.running += 1
            self.running_max = max(self.running, self.running_max)
        try:
            self.before(method, offset_bytes)
        finally:
            with self._lock:
                self.running -= 1

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    @property
    def read_only(self) -> bool:
        return self.inner.read_only

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
        self._enter("read_into", offset_bytes)
        self.inner.read_into(offset_bytes, buffer)

    def write(
        self, offset_bytes: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> None:
        self._enter("write_fua" if fua else "write", offset_bytes)
        self.inner.write(offset_bytes, data, fua=fua)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._enter("discard", offset_bytes)
        self.inner.discard(offset_bytes, length_bytes)

    def write_zeroes(
        self, offset_bytes: int, length_bytes: int, *, may_trim: bool = True, fua: bool = False
    ) -> None:
        self._enter("write_zeroes" if may_trim else "write_zeroes_no_hole", offset_bytes)
        self.inner.write_zeroes(offset_bytes, length_bytes, may_trim=may_trim, fua=fua)

    def flush(self) -> None:
        self._enter("flush")
        self.inner.flush()

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        self._enter("extents", offset_bytes)
        return self.inner.extents(offset_bytes, length_bytes)

    def close(self) -> None:
        assert self.running == 0, "the device is closed in the middle of a request"
        self.closed = True
        self.inner.close()


class DecliningDevice(WatchedDevice):
    """Has a data path that declines everything: each request passes through the compiled loop."""

    def __init__(self, inner: BlockDevice, before: Callable[[str, int], None] | None = None):
        super().__init__(inner, before)
        self.data_path = DataPath(writable=not inner.read_only, dirty_chunks_max=1)
        self.data_path.size_bytes = inner.size_bytes

    def prepare(self, offset_bytes: int, length_bytes: int, *, write: bool) -> bool:
        return bool(offset_bytes % 8192)  # sometimes in vain


class NativeDevice(WatchedDevice):
    """Has the data path of a local device: what passes there cannot be watched."""

    def __init__(self, inner: BlockDevice, before: Callable[[str, int], None] | None = None):
        super().__init__(inner, before)
        self.data_path = inner.data_path

    def prepare(self, offset_bytes: int, length_bytes: int, *, write: bool) -> bool:
        return self.inner.prepare(offset_bytes, length_bytes, write=write)
