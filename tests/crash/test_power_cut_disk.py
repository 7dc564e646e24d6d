"""Power cuts of a real filesystem; `scripts/soak disk` cuts 200 times."""

import json
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.errors import BackendIOError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
from volcore.testing.real_disk import PausableDisk, obstacle


def cut(filesystem: str, *words: str) -> dict[str, Any]:
    if reason := obstacle(filesystem):
        pytest.skip(reason)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "volcore.testing.power_cut_disk",
            "--filesystem",
            filesystem,
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    if "losetup failed" in done.stderr or "mount failed" in done.stderr:
        pytest.skip(f"no loop mounts here: {done.stderr.splitlines()[-1]}")
    assert done.returncode in {0, 1}, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_random_instants(filesystem: str) -> None:
    """Goal: INV-BE-1 on real filesystems. Method: copy the stopped disk, mount, open, read all."""
    outcome = cut(filesystem, "--instants", "5")
    assert outcome["failures"] == []
    assert outcome["instants"] == 5
    assert outcome["flushes"] > 10
    assert outcome["snapshots_checked"] > 0


def test_lost_syncs_are_seen() -> None:
    """Goal: the cuts can fail. Method: a server whose syncs do nothing."""
    assert cut("ext4", "--instants", "10", "--plant", "no-sync")["failures"]


def test_refused_writes_leave_no_false_damage(tmp_path: Path) -> None:
    """Goal: after a failed sync each block is old or new, also once memory has forgotten it.

    Method: a real disk refuses an overwrite; the volume is opened again, then the page cache is
    dropped: the kernel keeps what it could not write, and calls it clean.
    """
    if reason := obstacle("ext4"):
        pytest.skip(reason)
    old, new = (word.ljust(BLOCK_SIZE_BYTES, b".") for word in (b"OLD", b"REFUSED"))
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(PausableDisk(tmp_path, "ext4"))
        except OSError as err:
            pytest.skip(f"no loop mounts here: {err}")
        directory = disk.mount / "pool"
        backend = stack.enter_context(closing(LocalBackend(LocalStore.open(directory))))
        backend.open()
        backend.create("v", CHUNK_SIZE_BYTES)
        with backend.open_device("v", read_only=False) as device:
            device.write(0, old * 8)
            device.flush()
        device = backend.open_device("v", read_only=False)
        device.write(0, new * 8)
        with disk.refusing(), pytest.raises(BackendIOError):
            device.flush()
        device.close()
        with backend.open_device("v", read_only=False) as device:
            device.flush()
        backend.close()
        subprocess.run(
            ["sync", "-f", disk.mount], check=False, timeout=60
        )  # tells of the EIO again
        Path("/proc/sys/vm/drop_caches").write_text("1")
        backend = stack.enter_context(closing(LocalBackend(LocalStore.open(directory))))
        with backend.open_device("v", read_only=True) as device:
            found = {device.read(at * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES) for at in range(8)}
        assert found <= {old, new}
