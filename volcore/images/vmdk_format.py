"""Checks of VMware VMDK files: one sparse extent in one file, and nothing that names another.

Layout: block/vmdk.c of QEMU; integers are little-endian. QEMU opens other files from a VMDK in
three ways, and each is closed here: a file that is only a descriptor; a sparse header with capacity
0, which makes its descriptor count; and the line `parentFileNameHint`.
"""

import struct
import sys
from array import array
from typing import BinaryIO, Final

from volcore.images import refusals
from volcore.images.fileio import read_at, read_exactly
from volcore.limits import KIB, MIB

_HEADER: Final = struct.Struct("<4sIIQQQQIQQQ")
"""magic, version, flags, capacity, grain, descriptor place and length, entries per grain table,
redundant grain directory, grain directory, overhead; all but the first three in sectors."""
_MAGIC: Final = b"KDMV"
_SECTOR_BYTES: Final = 512
_AT_END: Final = (1 << 64) - 1
_FOOTER_FROM_END_BYTES: Final = 1024
_DESCRIPTOR_BYTES_MAX: Final = MIB
_DESCRIPTOR_BYTES_MIN: Final = 10 * KIB
"""QEMU looks for a parent in 20 sectors, whatever length the header states."""
_TABLE_ENTRIES_MAX: Final = 512
_GRAIN_SECTORS_MAX: Final = 2048
_TABLES_MAX: Final = 1 << 20
"""Twice what 16 TiB need with the sizes that everybody uses."""
_ACCESS: Final = ("rw ", "rdonly ", "noaccess ")
_COMPRESSED: Final = 1 << 16


def check(file: BinaryIO, file_size_bytes: int) -> int:
    """Return the size of the disk of a safe, whole VMDK file.

    Raises:
        InvalidArgumentError: IMAGE_UNSAFE, IMAGE_CORRUPT.
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    header = _HEADER.unpack(read_exactly(file, 0, _HEADER.size, format_name="vmdk"))
    if header[0] != _MAGIC:
        raise refusals.unsafe(
            "the vmdk file is only a descriptor that names other files; make a single file of it "
            "with qemu-img convert -O qcow2"
        )
    capacity, _grain, at, count = header[3:7]
    refusals.check_virtual_size(capacity * _SECTOR_BYTES)
    length = min(max(count * _SECTOR_BYTES, _DESCRIPTOR_BYTES_MIN), _DESCRIPTOR_BYTES_MAX)
    _check_descriptor(read_at(file, at * _SECTOR_BYTES, length))
    if header[9] == _AT_END:
        place = file_size_bytes - _FOOTER_FROM_END_BYTES
        footer = _HEADER.unpack(read_exactly(file, place, _HEADER.size, format_name="vmdk"))
        if footer[:7] != header[:7]:
            raise refusals.unsafe(
                "the header and the footer of the vmdk file contradict each other; make the file "
                "again"
            )
        header = footer
    _check_tables(file, header, file_size_bytes)
    return int(capacity) * _SECTOR_BYTES


def _check_descriptor(data: bytes) -> None:
    """Refuse everything but a single sparse extent."""
    if b"parentfilenamehint" in data.lower():
        raise refusals.unsafe(
            "the vmdk file has a parent file; make a single file of it with qemu-img convert -O "
            "qcow2"
        )
    text = data.split(b"\0")[0].decode("latin-1").lower()
    extents = [line for line in text.splitlines() if line.strip().startswith(_ACCESS)]
    words = extents[0].split() if len(extents) == 1 else []
    if words[2:3] != ["sparse"] or "/" in extents[0] or "\\" in extents[0] or ".." in extents[0]:
        raise refusals.unsafe(
            "the vmdk file is not a single sparse file (monolithicSparse or streamOptimized); make "
            "one of it with qemu-img convert -O qcow2"
        )


def _check_tables(file: BinaryIO, header: tuple[int, ...], file_size_bytes: int) -> None:
    """Refuse a file that ends before a grain that its tables name; QEMU would read zeroes there."""
    capacity, grain, flags, per_table, directory = (header[i] for i in (3, 4, 2, 7, 9))
    if (
        not 1 <= per_table <= _TABLE_ENTRIES_MAX
        or not 1 <= grain <= _GRAIN_SECTORS_MAX
        or capacity > _TABLES_MAX * grain * per_table
    ):
        raise refusals.corrupt(
            "the numbers in the header of the vmdk file contradict each other; get the file again"
        )
    table_count = -(-capacity // (grain * per_table))
    needed = 1 if flags & _COMPRESSED else grain
    last = 0
    for table in set(_read_numbers(file, directory, table_count)):
        if table:
            last = max(last, *_read_numbers(file, table, per_table))
    if last > 1 and (last + needed) * _SECTOR_BYTES > file_size_bytes:
        raise refusals.truncated("vmdk")


def _read_numbers(file: BinaryIO, sector: int, count: int) -> "array[int]":
    data = read_exactly(file, sector * _SECTOR_BYTES, count * 4, format_name="vmdk")
    numbers = array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
