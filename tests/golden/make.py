"""Write a golden store: `.venv/bin/python -m tests.golden.make NAME`, on the version to be frozen.

It makes NAME.tar.xz, a pool directory as a killed server left it, and NAME.json, what each of its
volumes and snapshots must read as. The memory backend, which does the same steps, says what that
is. A golden store is made once for each format version and never again: whoever changes the format
must still read what was written then. See README.md.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES

HERE = Path(__file__).parent
B, C = BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
SIZE = 2 * C + 5 * B
BACKGROUND_STEPS = 3


def pattern(first, count):
    """Blocks that compress well and are all different."""
    return b"".join(number.to_bytes(8, "little") * 512 for number in range(first, first + count))


class Both:
    """The backend to be frozen, and its judge."""

    def __init__(self, directory):
        self.backend = LocalBackend(LocalStore.open(directory))
        self.backend.open()
        self.judge = MemoryBackend()
        self.open = {}

    def __getattr__(self, name):
        def call(*args, **kwargs):
            for side in (self.judge, self.backend):
                getattr(side, name)(*args, **kwargs)

        return call

    def on(self, volume, name, *args, **kwargs):
        """Call a method of the volume's devices; the backend's one stays open."""
        if volume not in self.open:
            self.open[volume] = self.backend.open_device(volume, read_only=False)
        getattr(self.open[volume], name)(*args, **kwargs)
        with self.judge.open_device(volume, read_only=False) as device:
            getattr(device, name)(*args, **kwargs)

    def close(self, volume):
        self.open.pop(volume).close()


def build(directory):
    """Make the store; everything stays open. Return the judge's digests."""
    both = Both(directory)
    both.create("base", SIZE)
    both.on("base", "write", 0, pattern(1, 1024))
    both.on("base", "write", C + 7 * B, pattern(5000, 3))
    both.on("base", "write", 2 * C + 3 * B + 100, b"odd bytes")
    both.create_snapshot("base", "first")
    both.on("base", "write", 20 * B, pattern(6000, 10))
    both.on("base", "discard", 40 * B, 9 * B)
    both.on("base", "discard", C, C)
    both.create_snapshot("base", "second")
    both.clone("base", "first", "child", SIZE + 3 * B)
    both.on("child", "write", 25 * B + 5, pattern(7000, 1)[:-9])
    both.on("child", "write", SIZE + B, b"grown")
    both.on("child", "flush")
    both.clone("child", None, "grandchild", SIZE + C)
    both.on("grandchild", "write", 2 * C, pattern(7100, 40))
    both.create_snapshot("grandchild", "kept")
    both.on("grandchild", "write_zeroes", 2 * C + 10 * B, 5 * B, may_trim=False)
    both.on("grandchild", "write_zeroes", 0, 1000 * B)
    both.on("grandchild", "flush")
    # Layers that only one other layer refers to, at the bottom, in the middle and below the top.
    both.create("worn", SIZE)
    for step in range(4):
        both.on("worn", "write", step * 3 * B, pattern(8000 + 10 * step, 8))
        both.on("worn", "discard", C - (step + 1) * B, 2 * B)
        both.create_snapshot("worn", f"w{step}")
    both.on("worn", "write", C + B, pattern(8100, 2))
    both.clone("worn", "w3", "offspring", SIZE)
    both.delete_snapshot("worn", "w0")
    both.delete_snapshot("worn", "w2")
    both.close("child")
    both.resize("child", 2 * SIZE)
    both.delete("child")
    both.create("old", SIZE)
    both.on("old", "write", 0, pattern(9000, 6))
    both.create_snapshot("old", "past")
    both.on("old", "write", 0, pattern(9100, 6))
    both.close("old")
    both.revert("old", "past")
    both.on("old", "write", 5 * B, pattern(9200, 1))
    both.on("old", "flush")
    # Overwritten in place and never flushed: only notes tell which checksums not to believe.
    both.on("worn", "flush")
    both.on("worn", "write", C + B, pattern(9300, 1))
    both.on("old", "write", 5 * B + 17, b"not flushed")
    for _ in range(BACKGROUND_STEPS):  # leaves a merge half done
        both.backend.upkeep.step()
    return digests(both.judge)


def digests(backend):
    """Return size and SHA-256 of every volume and snapshot."""
    found = {}
    for volume in sorted(backend.walk()):
        for point in (None, *backend.describe(volume).snapshot_ids):
            with backend.open_device(volume, point, read_only=True) as device:
                digest = hashlib.sha256(device.read(0, device.size_bytes)).hexdigest()
                key = volume if point is None else f"{volume}@{point}"
                found[key] = {"size_bytes": device.size_bytes, "sha256": digest}
    return found


def pack(directory, archive):
    """Put the directory into an archive that is the same whenever and by whomever it is made."""

    def plain(info):
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:xz", preset=9) as tar:
        for path in sorted(directory.rglob("*")):
            tar.add(path, path.relative_to(directory), recursive=False, filter=plain)
    archive.write_bytes(raw.getvalue())


def main(name):
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "pool"
        child = os.fork()
        if not child:
            found = build(directory)
            (HERE / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            os._exit(0)  # as a killed server: nothing is flushed or closed
        assert os.waitpid(child, 0)[1] == 0
        pack(directory, HERE / f"{name}.tar.xz")


if __name__ == "__main__":
    main(sys.argv[1])
