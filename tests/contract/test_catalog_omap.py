"""The suite of all catalogs on the omap of a real Ceph pool."""

from collections.abc import Iterator

import pytest
from rbd_backend.pools import options

from volcore.backends.rbd import Cluster
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.contract import Catalog
from volcore.catalog.omap import OBJECT_NAME, OmapCatalog
from volcore.testing.catalog_contract import CatalogContract
from volcore.testing.cluster import CephAccess

pytestmark = pytest.mark.ceph


class TestOmap(CatalogContract):
    @pytest.fixture
    def catalog(self, ceph_cluster: CephAccess, ceph_pool: str) -> Iterator[Catalog]:
        self.cluster, self.pool = Cluster(options(ceph_cluster)), ceph_pool
        catalog = self.open()
        yield catalog
        catalog.close()

    def open(self) -> Catalog:
        return OmapCatalog(OmapObject.opened(self.cluster, self.pool, OBJECT_NAME))

    def another(self, catalog: Catalog) -> Catalog:
        del catalog
        return self.open()
