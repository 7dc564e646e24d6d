"""Export: a device as a stream of pieces of a file, raw or qcow2; nothing temporary.

Holes and blocks of zeroes are left out of raw pieces. A qcow2 file needs its tables before its
data, so they are computed from the extents alone: a cluster is in the file when any part of it is
DATA, even if it turns out to be zeroes. `qcow2_writer` knows the layout.
"""

from collections.abc import Iterator
from typing import Final

from volcore.backends.contract import BlockDevice
from volcore.images.qcow2_writer import CLUSTER_BYTES, Qcow2Layout
from volcore.kernels.zero import is_zero
from volcore.limits import CHUNK_SIZE_BYTES, FRAME_BYTES_MAX, GIB
from volcore.model.extent import ExtentKind

Piece = tuple[int, bytes]
"""Offset in the file, bytes; ascending, what no piece covers is zeroes."""

_WINDOW_BYTES: Final = 64 * GIB
assert FRAME_BYTES_MAX % CLUSTER_BYTES == 0
assert _WINDOW_BYTES % CHUNK_SIZE_BYTES == 0


def export_raw(device: BlockDevice) -> Iterator[Piece]:
    """Yield the content in pieces of at most FRAME_BYTES_MAX.

    *Concurrency*: nobody may write to the device meanwhile.

    Raises:
        IntegrityError: while iterating, a block fails its checksum.
    """
    for start, end in _data_runs(device, 1):
        for offset_bytes in range(start, end, FRAME_BYTES_MAX):
            data = device.read(offset_bytes, min(FRAME_BYTES_MAX, end - offset_bytes))
            if not is_zero(data):
                yield offset_bytes, data


def export_qcow2(device: BlockDevice) -> tuple[int, Iterator[Piece]]:
    """Return the size of a qcow2 file with this content, and the file in pieces.

    *Complexity*: memory for one number per run of data and per L2 table. *Concurrency*: nobody may
    write to the device until the last piece.

    Raises:
        IntegrityError: while iterating, a block fails its checksum.
    """
    layout = Qcow2Layout(device.size_bytes, list(_data_runs(device, CLUSTER_BYTES)))
    return layout.file_size_bytes, _qcow2_pieces(device, layout)


def _qcow2_pieces(device: BlockDevice, layout: Qcow2Layout) -> Iterator[Piece]:
    yield from layout.metadata()
    position = layout.data_offset_bytes
    for start, end in layout.runs:
        for offset_bytes in range(start, end, FRAME_BYTES_MAX):
            length = min(FRAME_BYTES_MAX, end - offset_bytes)
            inside = min(length, device.size_bytes - offset_bytes)
            data = device.read(offset_bytes, inside)
            if not is_zero(data) or offset_bytes + length == layout.runs[-1][1]:
                yield position, data + bytes(length - inside)
            position += length


def _data_runs(device: BlockDevice, unit_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield ascending, separate (start, end) of data, widened to whole units."""
    run: tuple[int, int] | None = None
    for window in range(0, device.size_bytes, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, device.size_bytes - window)
        for extent in device.extents(window, length):
            if extent.kind is not ExtentKind.DATA:
                continue
            start = extent.offset_bytes // unit_bytes * unit_bytes
            end = -(-extent.end_bytes // unit_bytes) * unit_bytes
            if run and start <= run[1]:
                run = (run[0], max(run[1], end))
            else:
                if run:
                    yield run
                run = (start, end)
    if run:
        yield run
