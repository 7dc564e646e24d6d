"""The Ceph cluster of a test run: one for the session, or the one that the caller names.

Hypothesis judges no test by its time: a shared machine pauses when it likes.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from volcore.testing.cluster import CephAccess, CephCluster, missing_packages

collect_ignore = ["openstack", "pacemaker"]  # make test-openstack and test-pacemaker name them

settings.register_profile(
    "volcore", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("volcore")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("volcore")
    group.addoption(
        "--ceph-conf",
        default=os.environ.get("VOLCORE_TEST_CEPH_CONF"),
        help="ceph.conf of a running cluster to test on, instead of starting one "
        "(default: VOLCORE_TEST_CEPH_CONF); pools named volcore-test-* come and go on it",
    )
    group.addoption(
        "--ceph-store",
        choices=["bluestore", "memstore"],
        default="bluestore",
        help="object store of the cluster that the run starts",
    )


LONG_FIRST = (
    "e2e", "packaging", "benchmarks", "crash", "rbd_backend", "stateful", "testing", "docs", "api",
)  # fmt: skip
"""Directories whose files take long, dearest first: short ones then fill the gaps at the end."""


def _turn(item: pytest.Item) -> int:
    directory = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONG_FIRST.index(directory) if directory in LONG_FIRST else len(LONG_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    for item in items:
        if {"ceph_cluster", "frail_cluster", "ceph_programs"} & set(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.ceph)


def pytest_sessionfinish() -> None:
    """Free the shared memory of servers that were killed and whose pools are gone."""
    for found in Path("/dev/shm").glob(f"volcore-{os.geteuid()}/*/pool"):
        if not Path(found.read_text().rstrip("\n")).exists():
            shutil.rmtree(found.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def ceph_conf_lines() -> str:
    """What ends the ceph.conf of the cluster that the run starts."""
    return ""


@pytest.fixture(scope="session")
def ceph_cluster(pytestconfig: pytest.Config, ceph_conf_lines: str) -> Iterator[CephAccess]:
    """A Ceph cluster; `conf_path` names its configuration, user `admin` owns it."""
    if conf := pytestconfig.getoption("--ceph-conf"):
        yield CephAccess(Path(conf))
        return
    _need_ceph()
    store = pytestconfig.getoption("--ceph-store")
    with CephCluster(store=store, conf_lines=ceph_conf_lines) as cluster:
        yield cluster


def _need_ceph() -> None:
    if missing := missing_packages():
        text = (
            f"no Ceph for these tests: apt-get install --no-install-recommends {' '.join(missing)}"
        )
        if os.environ.get("CI") or os.environ.get("VOLCORE_REQUIRE_CEPH"):
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture
def ceph_programs() -> None:
    """That Ceph is installed, for a test that starts its own."""
    _need_ceph()


@pytest.fixture
def frail_cluster(tmp_path: Path) -> Iterator[CephCluster]:
    """A Ceph cluster of this test, whose daemons it may stop (costs about 6 s)."""
    _need_ceph()
    with CephCluster(tmp_path / "ceph") as cluster:
        yield cluster


@pytest.fixture
def ceph_pool(ceph_cluster: CephAccess) -> Iterator[str]:
    """The name of a fresh rbd pool of this test (costs about 0.2 s)."""
    yield from _pool(ceph_cluster)


@pytest.fixture(scope="module")
def ceph_module_pool(ceph_cluster: CephAccess) -> Iterator[str]:
    """The name of a fresh rbd pool of this test module."""
    yield from _pool(ceph_cluster)


def _pool(cluster: CephAccess) -> Iterator[str]:
    name = f"volcore-test-{uuid.uuid4().hex[:10]}"
    cluster.create_pool(name)
    try:
        yield name
    finally:
        cluster.delete_pool(name)
