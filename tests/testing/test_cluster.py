"""The test cluster is a real Ceph, gives least rights, and outlives nobody."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from volcore.testing import cluster
from volcore.testing.cluster import CephAccess, CephCluster, ClusterError, MissingPackagesError


def ceph(access: CephAccess, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-c", str(access.conf_path), *words], capture_output=True, text=True, timeout=60
    )


def daemons(conf_path: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if str(conf_path) in words and Path(words[0]).name.startswith("ceph-"):
            found.append(Path(words[0]).name)
    return sorted(found)


def wait_until_gone(conf_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while daemons(conf_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert daemons(conf_path) == []


def test_the_session_cluster_answers(ceph_cluster: CephAccess) -> None:
    assert ceph_cluster.status()["osdmap"]["num_up_osds"] >= 1
    answer = ceph(ceph_cluster, "ceph", "-s")
    assert answer.returncode == 0, answer.stderr
    assert "quorum" in answer.stdout


def test_a_pool_holds_rbd_images_and_goes(ceph_cluster: CephAccess) -> None:
    ceph_cluster.create_pool("volcore-test-once")
    try:
        made = ceph(ceph_cluster, "rbd", "create", "volcore-test-once/a", "--size", "16M")
        assert made.returncode == 0, made.stderr
        assert ceph(ceph_cluster, "rbd", "ls", "volcore-test-once").stdout == "a\n"
        with pytest.raises(ClusterError, match="exists already"):
            ceph_cluster.create_pool("volcore-test-once")
    finally:
        ceph_cluster.delete_pool("volcore-test-once")
    ceph_cluster.delete_pool("volcore-test-once")
    assert "volcore-test-once" not in ceph(ceph_cluster, "ceph", "osd", "pool", "ls").stdout


def test_the_service_user_reaches_pools_and_nothing_else(
    ceph_cluster: CephAccess, ceph_pool: str
) -> None:
    if not isinstance(ceph_cluster, CephCluster):
        pytest.skip("the users of a cluster that was handed to the run are not ours")
    user = ("--id", cluster.CLIENT)
    assert (
        ceph(ceph_cluster, "rbd", *user, "create", f"{ceph_pool}/b", "--size", "16M").returncode
        == 0
    )
    assert (
        ceph(ceph_cluster, "rados", *user, "-p", ceph_pool, "setomapval", "c", "k", "v").returncode
        == 0
    )
    assert "EACCES" in ceph(ceph_cluster, "ceph", *user, "osd", "pool", "create", "z").stderr
    assert "EACCES" in ceph(ceph_cluster, "ceph", *user, "auth", "ls").stderr


def test_beside_the_other_one_a_killed_osd_comes_back_and_stop_leaves_nothing(
    ceph_cluster: CephAccess, tmp_path: Path
) -> None:
    with CephCluster(tmp_path, store="bluestore") as own:
        own.create_pool("volumes")
        ceph(own, "rados", "-p", "volumes", "setomapval", "kept", "k", "v")
        own.restart_osd(0, hard=True)
        assert "v" in ceph(own, "rados", "-p", "volumes", "getomapval", "kept", "k").stdout
        assert daemons(own.conf_path) == ["ceph-mgr", "ceph-mon", "ceph-osd"]
        assert ceph_cluster.status()["osdmap"]["num_up_osds"] >= 1
        with pytest.raises(ClusterError, match="holds a cluster already"):
            CephCluster(tmp_path).start()
    assert daemons(own.conf_path) == []


def test_the_daemons_end_with_a_killed_starter(ceph_cluster: CephAccess) -> None:
    code = (
        "import time; from volcore.testing.cluster import CephCluster\n"
        "c = CephCluster(store='memstore'); c.start()\n"
        "print(c.conf_path, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        conf_path = Path(starter.stdout.readline().strip())
        assert daemons(conf_path) == ["ceph-mgr", "ceph-mon", "ceph-osd"]
        os.kill(starter.pid, signal.SIGKILL)
    wait_until_gone(conf_path, 10)
    deadline = time.monotonic() + 5
    while conf_path.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not conf_path.parent.exists()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingPackagesError, match=r"apt-get install .* ceph-mgr ceph-mon ceph-osd"
    ):
        CephCluster(tmp_path).start()
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_brings_a_cluster_up_and_down(
    ceph_cluster: CephAccess, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "volcore.testing.cluster"]
    up = subprocess.run(
        [*command, "up", str(tmp_path / "c"), "--store", "memstore"], capture_output=True, text=True
    )
    try:
        assert up.returncode == 0, up.stderr
        assert up.stdout == f"export CEPH_CONF={tmp_path / 'c' / 'ceph.conf'}\n"
        assert len(daemons(tmp_path / "c" / "ceph.conf")) == 3
    finally:
        subprocess.run([*command, "down", str(tmp_path / "c")], check=True)
    assert daemons(tmp_path / "c" / "ceph.conf") == []
