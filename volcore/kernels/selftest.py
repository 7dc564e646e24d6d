"""Known-answer test of the kernels in use, run when a daemon starts; takes about a millisecond.

A kernel that computes wrongly (a bad build, a broken CPU) must not touch data.
"""

import struct
from array import array

from volcore.errors import IntegrityError, Reason
from volcore.kernels import chunkmap, crc32c, extents, mapscan, select, zero

_BLOCK_SIZE_BYTES = 512
_MIXED_HEAD = bytes.fromhex("20e2a8ea060000000000000003")
_STRIPES = {"object_size_bytes": 1 << 22, "stripe_unit_bytes": 1 << 16, "stripe_count": 4}


def run_self_test() -> None:
    """Compare every kernel with known answers.

    *Idempotent*. *Concurrency*: any thread, any time.

    Raises:
        IntegrityError: a kernel computes wrongly; refuse service (BAD_CHECKSUM).
    """
    _check_crc32c()
    _check_zero()
    _check_chunkmap()
    _check_mapscan()
    _check_extents()


def _expect(kernel: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise IntegrityError(
            f"The kernel {kernel} ({select.kernel_name()}) gave {actual!r}, "
            f"not {expected!r}; do not use this build on this machine.",
            reason=Reason.BAD_CHECKSUM,
            kernel=kernel,
        )


def _check_crc32c() -> None:
    # RFC 3720 B.4, then every length of loop that the implementations have.
    _expect("crc32c", crc32c.crc32c(bytes(32)), 0x8A9136AA)
    _expect("crc32c", crc32c.crc32c(bytes(range(32))), 0x46DD794E)
    data = bytes((7 * at + (at >> 8)) & 0xFF for at in range(4 * _BLOCK_SIZE_BYTES + 3))
    _expect("crc32c", crc32c.crc32c(data), 0xA404431F)
    blocks, out = data[: 4 * _BLOCK_SIZE_BYTES], array("I", bytes(16))
    crc32c.crc32c_blocks(blocks, _BLOCK_SIZE_BYTES, out)
    _expect("crc32c_blocks", list(out), [0x0BE03192, 0x980359FB, 0x4A04E9EC, 0x2E8F5469])
    _expect("find_bad_block", crc32c.find_bad_block(blocks, _BLOCK_SIZE_BYTES, out), -1)
    target, copied = bytearray(len(blocks)), array("I", bytes(16))
    crc32c.copy_crc32c_blocks(target, blocks, _BLOCK_SIZE_BYTES, copied)
    _expect("copy_crc32c_blocks", (bytes(target), copied), (blocks, out))
    out[2] ^= 1
    _expect("find_bad_block", crc32c.find_bad_block(blocks, _BLOCK_SIZE_BYTES, out), 2)
    combined = crc32c.crc32c_combine(crc32c.crc32c(b"1234"), crc32c.crc32c(b"56789"), 5)
    _expect("crc32c_combine", combined, 0xE3069283)


def _check_zero() -> None:
    data, flags = bytearray(4 * _BLOCK_SIZE_BYTES), bytearray(4)
    data[_BLOCK_SIZE_BYTES], data[3 * _BLOCK_SIZE_BYTES - 1] = 1, 128
    _expect("find_zero_blocks", zero.find_zero_blocks(data, _BLOCK_SIZE_BYTES, flags), 2)
    _expect("find_zero_blocks", flags, b"\1\0\0\1")
    _expect("is_zero", [zero.is_zero(data), zero.is_zero(bytes(1000))], [False, True])


def _check_chunkmap() -> None:
    top, bottom = bytearray(16), bytearray(16)
    chunkmap.mark(top, 2, 3, chunkmap.DATA)
    chunkmap.mark(top, 5, 2, chunkmap.ZERO)
    chunkmap.mark(bottom, 0, 12, chunkmap.DATA)
    crcs_top, crcs_bottom = array("I", range(16)), array("I", range(100, 116))
    owners, crcs = array("H", [chunkmap.UNRESOLVED] * 16), array("I", bytes(64))
    chunkmap.overlay(owners, crcs, top, crcs_top, 0)
    open_count = chunkmap.overlay(owners, crcs, bottom, crcs_bottom, 1)
    _expect("overlay", (open_count, crcs.tolist()[3:8]), (4, [3, 4, 0, 0, 107]))
    runs = [(1, 1, 1), (2, 3, 0), (5, 2, 0xFFFE), (7, 5, 1), (12, 3, 0xFFFE)]
    _expect("resolve_runs", chunkmap.resolve_runs(owners, 1, 14), runs)
    _expect("freeze", chunkmap.freeze(top, crcs_top), (3, 2))
    _expect("diff", chunkmap.diff(bytearray(16), top), 5)
    chunkmap.merge(bottom, crcs_bottom, top, crcs_top)
    states = [(0, 5, 1), (5, 2, 2), (7, 5, 1), (12, 4, 0)]
    _expect("merge", chunkmap.state_runs(bottom, 0, 16), states)
    _expect("merge", crcs_bottom.tolist()[1:8], [101, 2, 3, 4, 0, 0, 107])
    packed = chunkmap.pack(top, crcs_top)
    _expect("pack", packed, (bytes([0x50, 0x29, 0, 0]), struct.pack("<3I", 2, 3, 4)))
    chunkmap.unpack(*packed, bottom, crcs_bottom)
    _expect("unpack", (bottom, crcs_bottom), (top, crcs_top))


def _check_mapscan() -> None:
    uniform = bytes.fromhex("09a4758b050000000000000002")
    mixed = _MIXED_HEAD + bytes([0x64]) * 256
    chunks, states = mapscan.read_states(uniform + mixed, 7)
    _expect("read_states", array("Q", chunks).tolist(), [5, 6])
    expected = bytes([chunkmap.ZERO]) * 1024 + bytes([0, 1, 2, 1]) * 256
    _expect("read_states", states, expected)
    kinds = bytearray(1024) + expected[1024:]
    mapscan.fill(kinds, array("Q", [1]), expected[:1024], 0)
    _expect("fill", kinds, bytes(1024) + bytes([2, 1, 2, 1]) * 256)


def _check_extents() -> None:
    mapped = extents.map_extents((1 << 40) + 1000, 100_000, **_STRIPES)
    _expect("map_extents", mapped, [(262144, 1000, 64536, 0), (262145, 0, 35464, 64536)])
    _expect("object_to_image", extents.object_to_image(262145, 0, **_STRIPES), (1 << 40) + 65536)
    merged = extents.merge_extents([(0, 10, 1), (5, 2, 2), (20, 5, 1), (10, 10, 1)])
    _expect("merge_extents", merged, [(0, 5, 1), (5, 2, 2), (7, 18, 1)])
    table = extents.of_blocks(array("Q", [1, 2]), bytes([0, 1, 1, 2] * 2), 512, 8000)
    rows = [2560, 1024, 1, 3584, 512, 2, 4608, 1024, 1, 5632, 512, 2]
    _expect("of_blocks", array("Q", table).tolist(), rows)
