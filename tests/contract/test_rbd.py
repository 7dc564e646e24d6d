"""The suite of all backends on a real Ceph pool."""

from collections.abc import Iterator

import pytest
from rbd_backend.pools import leftovers, new_backend, raw_pool

from volcore.backends.contract import ShortPathState, VolumeBackend
from volcore.backends.rbd import RbdBackend
from volcore.backends.rbd.opening import settled
from volcore.testing.backend_contract import BackendContract
from volcore.testing.cluster import CephAccess

pytestmark = pytest.mark.ceph


class TestRbd(BackendContract):
    direct = False

    @pytest.fixture(autouse=True)
    def _pool(self, ceph_cluster: CephAccess, ceph_module_pool: str) -> None:
        self.access, self.pool = ceph_cluster, ceph_module_pool

    @pytest.fixture
    def backend(self, _pool: None) -> Iterator[VolumeBackend]:
        backend = self.opened()
        yield backend
        backend.close()
        self.clean()

    def opened(self) -> RbdBackend:
        """With `direct`: once clones take the short path."""
        backend = new_backend(self.access, self.pool, direct=self.direct)
        backend.open()
        wanted = ShortPathState.ON if self.direct else ShortPathState.OFF
        assert backend.wait_for_short_path().state is wanted
        return backend

    def reopen(self, backend: VolumeBackend) -> VolumeBackend:
        backend.close()
        return self.opened()

    def peek(self, backend: VolumeBackend, volume_id: str, length_bytes: int) -> bytes:
        import rbd

        with (
            raw_pool(self.access, self.pool) as ioctx,
            settled(rbd.Image(ioctx, volume_id, read_only=True)) as image,
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


class TestRbdDirect(TestRbd):
    """The same with clones by the short path."""

    direct = True
