"""Checks of VirtualBox VDI files. Layout: block/vdi.c of QEMU; integers are little-endian."""

import struct
import sys
from array import array
from typing import BinaryIO, Final

from volcore.images import refusals
from volcore.images.fileio import read_exactly
from volcore.limits import IMAGE_VIRTUAL_SIZE_BYTES_MAX

_HEADER: Final = struct.Struct("<64xIIII4x256xII20xQIIII16s16s16s16s")
"""magic, version, header size, type; map and data offset; disk size; block size, extra, block
counts (all, allocated); uuids (image, snapshot, link, parent)."""
_VERSION: Final = 0x0001_0001
_DYNAMIC: Final = 1
_FIXED: Final = 2
_BLOCK_BYTES: Final = 1 << 20
"""The only block size that QEMU reads."""
_BLOCKS_MAX: Final = IMAGE_VIRTUAL_SIZE_BYTES_MAX // _BLOCK_BYTES
_FREE: Final = 0xFFFF_FFFE
"""This and the number after it stand for blocks that are not in the file."""


def check(file: BinaryIO, file_size_bytes: int) -> int:
    """Return the size of the disk of a safe, whole VDI file.

    Raises:
        InvalidArgumentError: IMAGE_UNSAFE, IMAGE_CORRUPT.
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    (
        _, version, _, kind, map_offset, data_offset, size_bytes, block_bytes, _extra,
        block_count, allocated_count, _, _, link, parent,
    ) = _HEADER.unpack(read_exactly(file, 0, _HEADER.size, format_name="vdi"))  # fmt: skip
    if kind not in (_DYNAMIC, _FIXED) or any(link) or any(parent):
        raise refusals.unsafe(
            "the vdi file depends on another file; make a single file of it with VBoxManage "
            "clonemedium"
        )
    refusals.check_virtual_size(size_bytes)
    if (
        version != _VERSION
        or block_bytes != _BLOCK_BYTES
        or block_count > _BLOCKS_MAX
        or size_bytes > block_count * _BLOCK_BYTES
    ):
        raise refusals.corrupt(
            "the numbers in the header of the vdi file contradict each other; get the file again"
        )
    places = array("I", read_exactly(file, map_offset, 4 * block_count, format_name="vdi"))
    if sys.byteorder == "big":
        places.byteswap()
    stored_count = 1 + max((place for place in places if place < _FREE), default=-1)
    if data_offset + max(stored_count, allocated_count) * _BLOCK_BYTES > file_size_bytes:
        raise refusals.truncated("vdi")
    return int(size_bytes)
