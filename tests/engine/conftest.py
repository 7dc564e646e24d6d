"""An engine over one pool of each kind that needs nothing but this machine."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.images import ImageSettings
from volcore.engine.pool import Pool


@dataclass
class Bench:
    """An engine, and the pool `p` below it."""

    engine: Engine

    @property
    def pool(self) -> Pool:
        return self.engine.pools.open("p")


@pytest.fixture(params=["memory", "local"])
def bench(request, tmp_path) -> Iterator[Bench]:
    engine = Engine(EngineSettings(server_id="test", images=ImageSettings(directories=(tmp_path,))))
    if request.param == "memory":
        database = Database(None)
        backend = MemoryBackend()
    else:
        store = LocalStore.open(tmp_path / "pool")
        database, backend = store.database, LocalBackend(store)
    backend.open()
    engine.add_pool("p", backend, SqliteCatalog(database), None)
    yield Bench(engine)
    engine.close(5)
    backend.close()
