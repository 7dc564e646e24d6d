"""The content digest: the definition, spelled out once more, is the judge."""

import pytest
from blake3 import blake3

from volcore.errors import CancelledError, Reason
from volcore.images.hashing import digest_device
from volcore.limits import CHUNK_SIZE_BYTES, TIB
from volcore.model.digest import ContentDigest

from .conftest import silent


def defined(data: bytes) -> str:
    total = blake3()
    for start in range(0, len(data), CHUNK_SIZE_BYTES):
        chunk = data[start : start + CHUNK_SIZE_BYTES].ljust(CHUNK_SIZE_BYTES, b"\0")
        total.update(blake3(chunk).digest())
    total.update(len(data).to_bytes(8, "little"))
    return "blake3-4m:" + total.hexdigest()


def test_known_answer():
    """Goal: the digest never changes, clients keep it. Method: 4 KiB of zeroes, frozen."""
    assert (
        ContentDigest(4096).result()
        == defined(bytes(4096))
        == "blake3-4m:70362f8705075ecf2f4693ea284d8b1a18c3fa19a0b5b63b29e3846a066ace71"
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_device(memory_blank, threads):
    """Goal: holes, data and a partial last chunk. Method: compare with the definition."""
    device = memory_blank(3 * CHUNK_SIZE_BYTES + 8192)
    assert digest_device(device, silent, threads) == defined(bytes(device.size_bytes))
    device.write(CHUNK_SIZE_BYTES + 4096, b"x" * 5000)
    device.write(3 * CHUNK_SIZE_BYTES + 8191, b"y")
    device.write(0, bytes(4096))  # data that is zeroes
    assert digest_device(device, silent, threads) == defined(device.read(0, device.size_bytes))


def test_huge_and_empty_is_quick():
    """Goal: O(chunks) with a small constant. Method: 16 TiB of nothing, well within a second."""
    assert ContentDigest(16 * TIB).result().startswith("blake3-4m:")


def test_cancel(memory_blank):
    """Goal: a cancel gets out. Method: progress raises."""

    def progress(done: int, total: int) -> None:
        raise CancelledError("stop", reason=Reason.CANCELLED)

    device = memory_blank(8 * CHUNK_SIZE_BYTES)
    device.write(0, b"x")
    with pytest.raises(CancelledError):
        digest_device(device, progress)
