"""The digest of a volume's content: the same bytes give the same word, whatever carried them.

`blake3-4m:` and 64 hexadecimal digits: BLAKE3 over the BLAKE3 of each 4 MiB chunk in order (the
last one padded with zeroes), followed by the size as 8 bytes little-endian. Chunks are hashed on
their own, so any number of threads can do it in any order, and holes cost nothing.
"""

from typing import Final

from blake3 import blake3

from volcore.limits import CHUNK_SIZE_BYTES
from volcore.model.extent import chunk_count

PREFIX: Final = "blake3-4m:"
CHUNK_DIGEST_BYTES: Final = 32
ZERO_CHUNK_DIGEST: Final = blake3(bytes(CHUNK_SIZE_BYTES)).digest()

_ZERO_RUN_CHUNKS: Final = 4096
_ZERO_RUN: Final = ZERO_CHUNK_DIGEST * _ZERO_RUN_CHUNKS


def chunk_digest(chunk: bytes | bytearray | memoryview) -> bytes:
    """Return the digest of one whole chunk; releases the GIL."""
    return blake3(chunk).digest()


class ContentDigest:
    """Puts the digests of chunks together; chunks that are never added are zeroes.

    *Concurrency*: `add` may be called from any thread; `result` after all of them.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._chunk_count = chunk_count(size_bytes)
        self._digests: dict[int, bytes] = {}

    def add(self, chunk_index: int, chunk_digest: bytes) -> None:
        """Note the BLAKE3 of one chunk; the last call for a chunk counts."""
        assert 0 <= chunk_index < self._chunk_count, "chunk outside of the content"
        assert len(chunk_digest) == CHUNK_DIGEST_BYTES, "a BLAKE3 has 32 bytes"
        self._digests[chunk_index] = chunk_digest

    def result(self) -> str:
        """Return the digest of the whole content. *Complexity*: O(chunks of the whole size)."""
        total = blake3()
        done = 0
        for index in sorted(self._digests):
            _add_zero_chunks(total, index - done)
            total.update(self._digests[index])
            done = index + 1
        _add_zero_chunks(total, self._chunk_count - done)
        total.update(self.size_bytes.to_bytes(8, "little"))
        return PREFIX + total.hexdigest()


def _add_zero_chunks(total: blake3, count: int) -> None:
    """Feed the digest of a zero chunk `count` times, many in one call."""
    while count > 0:
        step = min(count, _ZERO_RUN_CHUNKS)
        total.update(memoryview(_ZERO_RUN)[: step * CHUNK_DIGEST_BYTES])
        count -= step
