"""The suite of all backends on a real Ceph pool."""

from collections.abc import Iterator

import pytest
from rbd_backend.pools import leftovers, new_backend, raw_pool

from volcore.backends.contract import VolumeBackend
from volcore.testing.backend_contract import BackendContract
from volcore.testing.cluster import CephAccess

pytestmark = pytest.mark.ceph


class TestRbd(BackendContract):
    @pytest.fixture(autouse=True)
    def _pool(self, ceph_cluster: CephAccess, ceph_module_pool: str) -> None:
        self.access, self.pool = ceph_cluster, ceph_module_pool

    @pytest.fixture
    def backend(self, _pool: None) -> Iterator[VolumeBackend]:
        backend = new_backend(self.access, self.pool)
        backend.open()
        yield backend
        backend.close()
        self.clean()

    def reopen(self, backend: VolumeBackend) -> VolumeBackend:
        backend.close()
        again = new_backend(self.access, self.pool)
        again.open()
        return again

    def peek(self, backend: VolumeBackend, volume_id: str, length_bytes: int) -> bytes:
        import rbd

        with (
            raw_pool(self.access, self.pool) as ioctx,
            rbd.Image(ioctx, volume_id, read_only=True) as image,
        ):
            return image.read(0, length_bytes)

    def clean(self) -> None:
        """Every test ends with an empty pool: delete all, and see that nothing is left."""
        backend = new_backend(self.access, self.pool)
        backend.open()
        for volume_id in list(backend.walk()):
            backend.delete(volume_id)
        backend.collect()
        backend.close()
        assert leftovers(self.access, self.pool) == set()
