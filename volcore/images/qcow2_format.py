"""The layout of qcow2 files, and the checks that make one safe and whole enough to read.

Source: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst. All integers are
big-endian. Only the active state of the disk matters here; internal snapshots are skipped.
"""

import struct
import sys
from array import array
from dataclasses import dataclass
from enum import IntFlag
from typing import BinaryIO, Final

from volcore.images import refusals
from volcore.images.fileio import read_at, read_exactly
from volcore.limits import MIB

MAGIC: Final = b"QFI\xfb"
HEADER_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
HEADER_V3_MORE: Final = struct.Struct(">QQQII")
"""Features (incompatible, compatible, autoclear), refcount order, header length; follows V2's."""
HEADER_BYTES_V3: Final = HEADER_V2.size + HEADER_V3_MORE.size
COMPRESSION_OFFSET: Final = HEADER_BYTES_V3
CLUSTER_BITS_MIN: Final = 9
CLUSTER_BITS_MAX: Final = 21
L1_BYTES_MAX: Final = 32 * MIB
"""QEMU's own bound."""

OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
"""Version 3: the cluster reads as zeroes, whatever offset stands beside it."""

_EXTENSION: Final = struct.Struct(">II")
_EXTENSION_END: Final = 0
_EXTENSION_DATA_FILE: Final = 0x4441_5441
_EXTENSION_BACKING_FORMAT: Final = 0xE279_2ACA
_EXTENSION_ENCRYPTION: Final = 0x0537_BE77
_EXTENSIONS_MAX: Final = 64
_HEADER_REGION_BYTES: Final = 64 * 1024


class Feature(IntFlag):
    """Incompatible features."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION = 1 << 3
    EXTENDED_L2 = 1 << 4


_ACCEPTED: Final = Feature.DIRTY | Feature.COMPRESSION
"""Dirty concerns reference counts only, which a reader does not need."""
_CRYPT_METHODS: Final = {1: "AES", 2: "LUKS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """What a reader needs to know; only `read_header` makes it, after all checks."""

    version: int
    size_bytes: int
    cluster_bits: int
    l1_offset_bytes: int
    l1_entry_count: int
    zlib: bool
    """Compressed clusters are deflate; otherwise zstd."""

    @property
    def cluster_size_bytes(self) -> int:
        """Unit of allocation."""
        return 1 << self.cluster_bits

    @property
    def l2_entry_count(self) -> int:
        """Entries in one L2 table, which fills one cluster."""
        return self.cluster_size_bytes // 8

    @property
    def l2_span_bytes(self) -> int:
        """Bytes of the disk that one L2 table maps."""
        return self.l2_entry_count << self.cluster_bits


def read_header(file: BinaryIO) -> Qcow2Header:
    """Read and check the header.

    Raises:
        InvalidArgumentError: IMAGE_UNSAFE, IMAGE_CORRUPT, IMAGE_FORMAT_UNKNOWN.
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    region = read_at(file, 0, _HEADER_REGION_BYTES)
    if len(region) < HEADER_V2.size:
        raise refusals.truncated("qcow2")
    (
        _magic, version, backing_offset, _backing_length, cluster_bits, size_bytes, crypt_method,
        l1_entry_count, l1_offset_bytes, _refcounts, _refcount_clusters, _snapshots, _snapshots_at,
    ) = HEADER_V2.unpack_from(region)  # fmt: skip
    if version not in (2, 3):
        raise refusals.unknown(
            f"the file is qcow version {version}; convert it to qcow2 version 3 first"
        )
    if backing_offset:
        raise refusals.unsafe(
            "the qcow2 file has a backing file, so it is not a whole disk and may name any file on "
            "the server; flatten it with qemu-img convert -O qcow2"
        )
    if crypt_method:
        kind = _CRYPT_METHODS.get(crypt_method, "an unknown method")
        raise refusals.unsafe(f"the qcow2 file is encrypted ({kind}); decrypt it first")
    zlib, header_length = _check_features(region, version)
    if not CLUSTER_BITS_MIN <= cluster_bits <= CLUSTER_BITS_MAX:
        raise refusals.corrupt(
            f"the qcow2 header has clusters of 2^{cluster_bits} bytes, allowed are 2^9 to 2^21; "
            "make the image again"
        )
    _check_extensions(region, header_length)
    refusals.check_virtual_size(size_bytes)
    header = Qcow2Header(
        version=version,
        size_bytes=size_bytes,
        cluster_bits=cluster_bits,
        l1_offset_bytes=l1_offset_bytes,
        l1_entry_count=l1_entry_count,
        zlib=zlib,
    )
    _check_l1_place(header)
    return header


def read_l1(file: BinaryIO, header: Qcow2Header, file_size_bytes: int) -> "array[int]":
    """Return the offsets of the L2 tables that map the disk, 0 for none; all lie in the file.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, a table lies beyond the end or at an odd place.
    """
    count = -(-header.size_bytes // header.l2_span_bytes)
    entries = read_table(file, header.l1_offset_bytes, count)
    offsets = array("Q", (entry & OFFSET_MASK for entry in entries))
    cluster = header.cluster_size_bytes
    if any(offset % cluster for offset in offsets):
        raise refusals.corrupt(
            "a mapping table of the qcow2 file is misplaced; repair it with qemu-img check -r all"
        )
    last = max(offsets, default=0)
    if last and last + cluster > file_size_bytes:
        raise refusals.truncated("qcow2")
    return offsets


def read_table(file: BinaryIO, offset_bytes: int, entry_count: int) -> "array[int]":
    """Return `entry_count` big-endian 64-bit numbers.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, the file ends before.
    """
    table = array("Q", read_exactly(file, offset_bytes, entry_count * 8, format_name="qcow2"))
    if sys.byteorder == "little":
        table.byteswap()
    return table


def _check_features(region: bytes, version: int) -> tuple[bool, int]:
    """Return whether compression is zlib, and the length of the header."""
    if version == 2:
        return True, HEADER_V2.size
    if len(region) < HEADER_BYTES_V3:
        raise refusals.truncated("qcow2")
    incompatible, _, _, _, header_length = HEADER_V3_MORE.unpack_from(region, HEADER_V2.size)
    if incompatible & Feature.DATA_FILE:
        raise refusals.unsafe(
            "the qcow2 file keeps its data in an external data file; make a single file of it with "
            "qemu-img convert -O qcow2"
        )
    if incompatible & Feature.CORRUPT:
        raise refusals.corrupt(
            "the qcow2 file is marked as corrupt; repair it with qemu-img check -r all"
        )
    if unknown := incompatible & ~_ACCEPTED:
        raise refusals.unsafe(
            f"the qcow2 file uses incompatible features ({unknown:#x}) that are not accepted; "
            "convert it with qemu-img convert -O qcow2"
        )
    if HEADER_BYTES_V3 <= header_length <= _HEADER_REGION_BYTES and header_length > len(region):
        raise refusals.truncated("qcow2")
    if not HEADER_BYTES_V3 <= header_length <= len(region) or header_length % 8:
        raise refusals.corrupt("the qcow2 header has an impossible length; make the image again")
    compression = 0
    if incompatible & Feature.COMPRESSION:
        compression = region[COMPRESSION_OFFSET] if header_length > COMPRESSION_OFFSET else -1
        if compression not in (0, 1):
            raise refusals.unsafe(
                "the qcow2 file uses an unknown compression; convert it with qemu-img convert -O "
                "qcow2"
            )
    return compression == 0, header_length


def _check_extensions(region: bytes, position: int) -> None:
    """Refuse header extensions that name another file, even where no feature bit uses them."""
    for _ in range(_EXTENSIONS_MAX):
        if position + _EXTENSION.size > len(region):
            return
        kind, length = _EXTENSION.unpack_from(region, position)
        if kind == _EXTENSION_END:
            return
        if kind in (_EXTENSION_DATA_FILE, _EXTENSION_BACKING_FORMAT, _EXTENSION_ENCRYPTION):
            raise refusals.unsafe(
                "the qcow2 header names another file or a key; make a single plain file of it with "
                "qemu-img convert -O qcow2"
            )
        position += _EXTENSION.size + -(-length // 8) * 8
    raise refusals.corrupt("the qcow2 header has too many extensions; make the image again")


def _check_l1_place(header: Qcow2Header) -> None:
    """Refuse an L1 table that is too short for the disk, too long, or misplaced."""
    needed = -(-header.size_bytes // header.l2_span_bytes)
    if (
        header.l1_entry_count < needed
        or header.l1_entry_count * 8 > L1_BYTES_MAX
        or header.l1_offset_bytes % header.cluster_size_bytes
        or header.l1_offset_bytes == 0
    ):
        raise refusals.corrupt(
            "the qcow2 header and its mapping table contradict each other; repair it with qemu-img "
            "check -r all"
        )
