"""An engine over one pool of each kind, a real Ceph included."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from rbd_backend.pools import new_backend, options

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.backends.rbd import Cluster
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.omap import OmapCatalog
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.images import ImageSettings
from volcore.engine.pool import Pool
from volcore.engine.views import NbdConnection
from volcore.nbd import ExportTable, NbdServer, TcpAddress


@dataclass
class Bench:
    """An engine, and the pool `p` below it."""

    engine: Engine

    @property
    def pool(self) -> Pool:
        return self.engine.pools.open("p")


def _stores(request, tmp_path):
    """Return a backend and a catalog of the kind that the test asks for."""
    if request.param == "memory":
        return MemoryBackend(), SqliteCatalog(Database(None))
    if request.param == "local":
        store = LocalStore.open(tmp_path / "pool")
        return LocalBackend(store), SqliteCatalog(store.database)
    access, pool = (request.getfixturevalue(name) for name in ("ceph_cluster", "ceph_pool"))
    catalog = OmapObject.opened(Cluster(options(access)), pool, "volcore_catalog")
    return new_backend(access, pool), OmapCatalog(catalog)


@pytest.fixture(params=["memory", "local", pytest.param("rbd", marks=pytest.mark.ceph)])
def bench(request, tmp_path) -> Iterator[Bench]:
    yield from new_bench(request, tmp_path)


def new_bench(request, tmp_path) -> Iterator[Bench]:
    settings = EngineSettings(server_id="test", images=ImageSettings(directories=(tmp_path,)))
    engine = Engine(settings)
    backend, catalog = _stores(request, tmp_path)
    backend.open()
    engine.add_pool("p", backend, catalog, None)
    yield Bench(engine)
    engine.close(5)
    catalog.close()
    backend.close()


@pytest.fixture
def served(bench) -> Iterator[Bench]:
    """The same, with an NBD server for the pools that need one."""
    exports = ExportTable()
    server = NbdServer(TcpAddress("127.0.0.1", 0), exports=exports)
    server.start()
    object.__setattr__(bench.pool, "exporter", TableExporter(exports, server))
    yield bench
    server.stop(5)


@dataclass
class TableExporter:
    """Offers volumes on one NBD server."""

    exports: ExportTable
    server: NbdServer

    def publish(self, name, opener, *, read_only, hosts, writable) -> None:
        if name not in self.exports.names():
            self.exports.publish(name, opener, read_only=read_only, writable=writable)

    def set_writable(self, name, writable) -> None:
        self.exports.set_writable(name, writable=writable, timeout_s=5)

    def connection(self, name) -> NbdConnection:
        return NbdConnection(uri=self.server.uris(name)[0], export_name=name)

    def expel(self, name) -> None:
        self.exports.expel(name)

    def withdraw(self, name) -> None:
        self.exports.withdraw(name, timeout_s=5)
