"""How long a catalog takes to be rebuilt from what the rbd images carry, and whether it is equal.

Clones of one image, some with labels, snapshots and attachments, on a Ceph of the run's own
(memstore, one OSD). Both objects of volcore are deleted, then a server starts, rebuilds, exports;
the export is compared with that of before, and the pool is checked. Ends with 1 when they differ.

    .venv/bin/python -m benchmarks rebuild --volumes 10000
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.connection import ClusterOptions
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.omap import OmapCatalog
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.pool import Pool
from volcore.engine.rebuild import Rebuilt
from volcore.engine.views import CreateVolume
from volcore.limits import MIB
from volcore.model.records import AccessMode
from volcore.testing.cluster import CephCluster

SIZE_BYTES = 8 * MIB
OBJECTS = ("volcore_catalog", "volcore_directory")
BATCH = 100
EXTRA_EVERY = 10
"""Every so many volumes has labels, a snapshot and an attachment."""
TIMEOUT_S = 600.0


@contextmanager
def served(cluster: CephCluster, pool: str) -> Iterator[Engine]:
    """A server on the pool, which the next one follows."""
    with ExitStack() as undo:
        at = Cluster(ClusterOptions(conf_path=str(cluster.conf_path), user="volcore"))
        backend = RbdBackend(at, pool, direct=True)
        backend.open()
        undo.callback(backend.close)
        backend.wait_for_short_path()
        catalog = OmapCatalog(OmapObject.opened(at, pool, OBJECTS[0]))
        undo.enter_context(closing(catalog))
        engine = Engine(EngineSettings(server_id="bench"))
        undo.callback(engine.close, TIMEOUT_S)
        engine.add_pool("p", backend, catalog, None)
        yield engine


def fill(engine: Engine, count: int) -> None:
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE_BYTES))
    engine.snapshots.create("p", "v", "s")
    engine.images.publish("p", "gold", "v", "s")
    for start in range(0, count, BATCH):
        names = [f"vm-{number:05}" for number in range(start, min(start + BATCH, count))]
        engine.volumes.deploy("p", "gold", names)
        for name in names[::EXTRA_EVERY]:
            engine.volumes.update_labels("p", name, {"owner": name})
            engine.snapshots.create("p", name, "kept")
            engine.attachments.attach("p", name, "host-1", AccessMode.READ_WRITE)


def records(engine: Engine) -> list[bytes]:
    return b"".join(engine.exports.lines("p")).splitlines()[1:-1]


def carried(pool: Pool) -> None:
    assert pool.carrier is not None
    assert pool.carrier.flush(TIMEOUT_S)


def run(cluster: CephCluster, pool: str, count: int) -> bool:
    def timed(what: str, since_s: float) -> None:
        print(f"  {what:<44}{time.perf_counter() - since_s:8.1f} s", flush=True)

    begin_s = time.perf_counter()
    with served(cluster, pool) as engine:
        fill(engine, count)
        timed(f"{count} volumes deployed", begin_s)
        begin_s = time.perf_counter()
        carried(engine.pools.open("p"))
        timed("written behind the answers, the rest of it", begin_s)
        before = records(engine)
    with cluster._connect() as client, client.open_ioctx(pool) as ioctx:
        for name in OBJECTS:
            ioctx.remove_object(name)
    with served(cluster, pool) as engine:
        for attempt in ("rebuilt", "rebuilt again, nothing to do"):
            begin_s = time.perf_counter()
            *faults, end = engine.rebuild.run("p")
            timed(f"{attempt}: {end.record_count if isinstance(end, Rebuilt) else 0}", begin_s)
        is_equal = records(engine) == before and not faults
        begin_s = time.perf_counter()
        *faults, _ = engine.audit.run("p")
        timed(f"checked: {len(faults)} faults", begin_s)
    with served(cluster, pool) as engine:
        begin_s = time.perf_counter()
        carried(engine.pools.open("p"))
        timed("compared in the background of a start", begin_s)
    print(f"  {len(before)} records {'equal' if is_equal else 'DIFFERENT'}")
    return is_equal and not faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=1000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        CephCluster(Path(directory) / "ceph", store="memstore") as cluster,
    ):
        cluster.create_pool("rebuild")
        return 0 if run(cluster, "rebuild", options.volumes) else 1


if __name__ == "__main__":
    sys.exit(main())
