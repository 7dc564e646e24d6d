"""An engine over a local pool in this process, and what the scenarios put into it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from volcore.backends.local import LocalBackend, LocalStore
from volcore.catalog.sqlite import SqliteCatalog
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.images import ImageSettings
from volcore.engine.views import CreateVolume, ImportRequest, SourceRef
from volcore.errors import VolcoreError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, DEPLOY_VOLUMES_MAX, MIB
from volcore.model.records import SourceKind, Volume

POOL = "p"
IMAGE = "golden"
IMAGE_MIB = 4


@dataclass(frozen=True, slots=True)
class Store:
    """The engine and its only pool."""

    engine: Engine
    backend: LocalBackend
    local: LocalStore

    def create(self, name: str, size_bytes: int) -> Volume:
        return self.engine.volumes.create(POOL, CreateVolume(name=name, size_bytes=size_bytes))

    def clone(self, kind: SourceKind, key: str, name: str) -> Volume:
        source = SourceRef(kind=kind, key=key)
        return self.engine.volumes.create(POOL, CreateVolume(name=name, source=source))

    def snapshot(self, volume: str, name: str) -> str:
        """Return the key of the new snapshot."""
        return self.engine.snapshots.create(POOL, volume, name).key

    def deploy(self, count: int, prefix: str) -> None:
        """Make `count` volumes of the image."""
        names = [f"{prefix}-{number:06}" for number in range(count)]
        for at in range(0, count, DEPLOY_VOLUMES_MAX):
            for result in self.engine.volumes.deploy(
                POOL, IMAGE, names[at : at + DEPLOY_VOLUMES_MAX]
            ):
                if isinstance(result, VolcoreError):
                    raise result

    def touch(self, volume: Volume, *, chunk_count: int, seed: int = 1) -> None:
        """Write one block in each of `chunk_count` chunks, spread evenly over the volume."""
        step = max(1, volume.size_bytes // CHUNK_SIZE_BYTES // chunk_count)
        data = random.Random(seed).randbytes(BLOCK_SIZE_BYTES)
        with self.backend.open_device(volume.backend_id, read_only=False) as device:
            for number in range(chunk_count):
                device.write(number * step * CHUNK_SIZE_BYTES, data)
            device.flush()


@contextmanager
def opened(directory: Path) -> Iterator[Store]:
    """Open a pool with a small image in it; `directory` exists."""
    source = directory / "golden.raw"
    source.write_bytes(random.Random(1).randbytes(IMAGE_MIB * MIB))
    local = LocalStore.open(directory / "pool")
    backend = LocalBackend(local)
    backend.open()
    settings = ImageSettings(directories=(directory,), spool_directory=directory)
    engine = Engine(EngineSettings(server_id="bench", images=settings))
    try:
        engine.add_pool(POOL, backend, SqliteCatalog(local.database), None)
        request = ImportRequest(name=IMAGE, format_name="raw", server_path=str(source))
        engine.images.import_image(POOL, request)
        yield Store(engine, backend, local)
    finally:
        engine.close(5)
        backend.close()
