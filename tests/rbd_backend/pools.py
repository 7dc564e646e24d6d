"""Opening backends on test pools, and looking at pools around the code under test."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from volcore.backends.rbd import Cluster, RbdBackend, lease
from volcore.backends.rbd.connection import ClusterOptions
from volcore.backends.rbd.direct import openers
from volcore.errors import Reason, UnavailableError
from volcore.limits import MIB
from volcore.testing.cluster import CephAccess, CephCluster
from volcore.testing.device_contract import put
from volcore.testing.rbd_judge import looked

GOLD_SIZE_BYTES = 8 * MIB
POOL_OBJECTS = {"rbd_directory", "rbd_info", "rbd_trash", "volcore_catalog", "volcore_directory"}


def options(access: CephAccess, **changes: Any) -> ClusterOptions:
    """The rights of a real server where the cluster is the run's own."""
    user = "volcore" if isinstance(access, CephCluster) else "admin"
    return ClusterOptions(**({"conf_path": str(access.conf_path), "user": user} | changes))


def new_backend(access: CephAccess, pool: str, **changes: Any) -> RbdBackend:
    """A backend with a connection of its own, not yet open: rights on a new pool need a new one."""
    return RbdBackend(Cluster(options(access)), pool, **changes)


@contextmanager
def opened(access: CephAccess, pool: str, **changes: Any) -> Iterator[RbdBackend]:
    backend = new_backend(access, pool, **changes)
    backend.open()
    with closing(backend):
        yield backend


def make_gold(backend: RbdBackend, size_bytes: int = GOLD_SIZE_BYTES) -> None:
    """Make the volume `gold` with a snapshot `s`."""
    backend.create("gold", size_bytes)
    put(backend, "gold", 0, b"gold")
    backend.create_snapshot("gold", "s")


@contextmanager
def raw_pool(access: CephAccess, pool: str) -> Iterator[Any]:
    """The pool as `client.admin` sees it, through the bindings alone."""
    import rados

    with (
        rados.Rados(
            conffile=str(access.conf_path),
            rados_id="admin",
            conf={"rbd_default_clone_format": "2"},
        ) as cluster,
        cluster.open_ioctx(pool) as ioctx,
    ):
        yield ioctx


def leftovers(access: CephAccess, pool: str) -> set[str]:
    """Objects of the pool beyond those that every pool has and the data of deleted snapshots.

    Those are trimmed by the OSDs later; an object of them has no head any more.
    """
    with raw_pool(access, pool) as ioctx:
        return {
            item.key
            for item in ioctx.list_objects()
            if item.key not in POOL_OBJECTS and has_head(ioctx, item.key)
        }


def has_head(ioctx: Any, name: str) -> bool:
    """Whether the object exists now, not only for old snapshots."""
    import rados

    try:
        ioctx.stat(name)
    except rados.ObjectNotFound:
        return False
    return True


def story_of(access: CephAccess, pool: str, backend: RbdBackend, volume_id: str) -> str:
    """What the pool has of an image: snapshots, object maps, clones of its objects; for a human."""
    session = backend._session()
    entry = session.directory.find(volume_id)
    assert entry is not None
    image_id = entry.image_id
    lines = [f"{one}" for one in session.headers.snapshots(image_id)]
    with raw_pool(access, pool) as ioctx:
        names = sorted(item.key for item in ioctx.list_objects() if image_id in item.key)
        for name in dict.fromkeys(names):
            if name.startswith("rbd_object_map"):
                lines.append(f"{name} {ioctx.read(name)[-20:].hex()}")
            elif name.startswith("rbd_data"):
                command = ["rados", "-c", str(access.conf_path), "-p", pool, "listsnaps", name]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines.append(done.stdout)
    return "\n".join(lines)


def client_counters(path: Path) -> dict[str, int]:
    """What librados counts of its requests, asked over its admin socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b'{"prefix": "perf dump", "format": "json"}\0')
        with client.makefile("rb") as file:
            length = int.from_bytes(file.read(4), "big")
            return dict(json.loads(file.read(length))["objecter"])


def least_cost(at: Path, act: Callable[[int], object], *, attempts: int = 5) -> tuple[int, int]:
    """Reads and writes of the cheapest of some acts, as the client counts them.

    What goes on beside them, now and then and for some ms, is not theirs: hence a while apart.
    """
    found = []
    for attempt in range(attempts):
        time.sleep(0.1)
        before = client_counters(at)
        act(attempt)
        after = client_counters(at)
        found.append((after["op_r"] - before["op_r"], after["op_w"] - before["op_w"]))
    return min(found)


def wait_quiet(at: Path) -> None:
    """Return when the client has sent nothing for a while, as after a proof that it cleans up."""
    last = None
    while (now := client_counters(at)["op"]) != last:
        last = now
        time.sleep(0.1)


def wait_finished(backend: RbdBackend) -> None:
    """Return when no last row of a volume is waiting to be written, nor about to be."""
    finisher = backend._session().direct._finisher
    finisher.flush()
    while finisher._thread is not None and not finisher._idle:
        time.sleep(0.01)


@contextmanager
def counted(access: CephAccess, pool: str, directory: Path) -> Iterator[tuple[RbdBackend, Path]]:
    """A backend with the short path, and its client's admin socket; no lease or reminder counts."""
    at = directory / "client.asok"
    conf = directory / "ceph.conf"
    conf.write_text(access.conf_path.read_text() + f"\n[client]\nadmin socket = {at}\n")
    chosen = options(access, conf_path=str(conf))
    backend = RbdBackend(Cluster(chosen), pool, direct=True, lock=True)
    with (
        patch.multiple(lease, LEASE_S=3600, RENEW_S=1800),
        patch.object(openers, "REMINDERS_S", ()),
    ):
        backend.open()
        with closing(backend):
            backend.wait_for_short_path()
            yield backend, at


@contextmanager
def recovery_cut(session: Any, allowed: int) -> Iterator[None]:
    """Let recovery of the short path do so many writes; the one behind them raises."""
    run, left = session.direct.recovery._run, iter(range(allowed))

    def limited(write: Any, *accepted: int) -> int:
        if next(left, None) is None:
            raise UnavailableError("cut", reason=Reason.CLUSTER_UNREACHABLE)
        return int(run(write, *accepted))

    with patch.object(session.direct.recovery, "_run", limited):
        yield


def check_object_maps(access: CephAccess, pool: str, image: str) -> None:
    """Let `rbd object-map check` look at the maps of an image and of its snapshots."""
    with raw_pool(access, pool) as ioctx:
        import rbd

        with rbd.Image(ioctx, image) as opened_image:
            snapshots = [one["name"] for one in opened_image.list_snaps() if not one["namespace"]]
            for snapshot in (None, *snapshots):
                opened_image.set_snap(snapshot)
                assert not opened_image.flags(), (image, snapshot)
    for spec in (image, *(f"{image}@{snapshot}" for snapshot in snapshots)):
        words = ["--pool", pool, "object-map", "check", "--no-progress", spec]
        done = looked(["rbd", "--conf", str(access.conf_path)], *words)
        assert done.returncode == 0, (spec, done.stderr)
        assert "rror" not in done.stderr, (spec, done.stderr)
