"""Zero detection: known answers, boundaries, native == pure, golden digest, misuse."""

import random
from array import array
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import native, oracle

LENGTHS = [0, 1, 7, 8, 9, 255, 256, 257, 511, 512, 513, 4095, 4096, 4097, 40_000]


@pytest.mark.parametrize("length", LENGTHS)
def test_zero_of_every_length(zero, length):
    assert zero.is_zero(bytes(length)) is True
    # Neighbours with data do not leak in, whatever the alignment.
    for skip in (1, 3, 31):
        framed = b"\xff" * skip + bytes(length) + b"\xff" * 64
        assert zero.is_zero(memoryview(framed)[skip : skip + length]) is True


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_one_bit_anywhere_is_seen(zero, length):
    data = bytearray(length)
    for at in sorted({0, length - 1, length // 2, *range(0, length, max(1, length // 40))}):
        data[at] = 1 << at % 8
        assert zero.is_zero(data) is False
        data[at] = 0


@pytest.mark.parametrize("block_size", [1, 3, 255, 256, 257, 512, 4095, 4096, 4097])
@pytest.mark.parametrize("block_count", [0, 1, 2, 9])
def test_blocks(zero, block_size, block_count):
    """Goal: each block is judged alone. Method: set the first or last byte of every other one."""
    data, out = bytearray(block_size * block_count), bytearray(b"\x55" * block_count)
    for index in range(0, block_count, 2):
        data[index * block_size + (block_size - 1) * (index % 4 // 2)] = 0x80
    assert zero.find_zero_blocks(data, block_size, out) == block_count // 2
    assert list(out) == [index % 2 for index in range(block_count)]


def test_golden_digest(zero):
    """Goal: freeze the results. The answer decides what is stored at all: it may never change."""
    rng, digest = random.Random(7), sha256()
    for block_size in (1, 8, 64, 100, 256, 1000):
        data = bytearray(64 * block_size)
        for _ in range(40):
            data[rng.randrange(len(data))] = rng.randrange(256)
        out = bytearray(64)
        count = zero.find_zero_blocks(data, block_size, out)
        digest.update(bytes([count]) + out)
    assert digest.hexdigest() == "da3a848848aff1690f5ccc9e5bbb5a0483a16b4887f042d35ecfc33f9c8a9aad"


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6),
    st.integers(0, 3001),
    st.integers(1, 600),
)
def test_native_equals_pure(marks, length, block_size):
    data = bytearray(3001)
    for at, value in marks:
        data[at] = value
    view = memoryview(data)[:length]
    assert native("zero").is_zero(view) == oracle("zero").is_zero(view)
    block_count = length // block_size
    outs = bytearray(block_count), bytearray(block_count)
    blocks = view[: block_count * block_size]
    counts = [
        each.find_zero_blocks(blocks, block_size, out)
        for each, out in zip((native("zero"), oracle("zero")), outs, strict=True)
    ]
    assert counts[0] == counts[1]
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    ("error", "name", "args"),
    [
        (TypeError, "is_zero", (None,)),
        (TypeError, "is_zero", ("0",)),
        (BufferError, "is_zero", (memoryview(bytes(8))[::2],)),
        (ValueError, "is_zero", (array("I", [0]),)),
        (ValueError, "find_zero_blocks", (bytes(5), 2, bytearray(2))),
        (ValueError, "find_zero_blocks", (bytes(4), 2, bytearray(1))),
        (ValueError, "find_zero_blocks", (bytes(4), 2, array("I", [0, 0]))),
        (ValueError, "find_zero_blocks", (b"", 0, bytearray())),
        (OverflowError, "find_zero_blocks", (b"", 2**63, bytearray())),
        (BufferError, "find_zero_blocks", (bytes(4), 2, bytes(2))),
        (BufferError, "find_zero_blocks", (bytes(4), 2, memoryview(bytearray(4))[::2])),
        (TypeError, "find_zero_blocks", (bytes(4), 2, None)),
    ],
)
def test_misuse_is_refused(zero, error, name, args):
    with pytest.raises(error):
        getattr(zero, name)(*args)
