"""A real single-machine Ceph cluster for tests, demos and benchmarks.

One monitor, one manager and N OSDs on loopback, in one directory, without systemd and without
touching `/etc/ceph`. Works as root and as an ordinary user.

Invariants:
    1. Only processes whose command line names this cluster's own `ceph.conf` are ever signalled,
       and through a pidfd, so a recycled process id is never hit.
    2. A cluster started with `tied=True` (the default) ends with the process that started it,
       however that process ends: a reaper waits on a pipe that only the starter holds open.
    3. Every wait has a bound.

This file imports nothing of volcore, so that the reaper can run it as a script.

As a command: `python -m volcore.testing.cluster up DIR` and `... down DIR`.
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.01
# Below the kernel's ephemeral range (32768 and up), so that no outgoing connection can sit on it.
MON_PORTS = range(20000, 32000)
# Debian's package for each program the cluster runs.
PROGRAM_PACKAGES = {
    "ceph-mon": "ceph-mon",
    "ceph-mgr": "ceph-mgr",
    "ceph-osd": "ceph-osd",
    "ceph-authtool": "ceph-common",
    "monmaptool": "ceph-base",
}
CLIENT = "volcore"
_MON_CAPS = 'profile rbd, allow command "osd blocklist" with blocklistop=rm'

_CONF = """\
[global]
fsid = {fsid}
mon host = {monitors}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {dir}/keys/$name.keyring,{dir}/keys/$type..keyring
run dir = {dir}/run
crash dir = {dir}/crash
admin socket =
log file = {dir}/log/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 4000
# A second's pause between map changes saves a real cluster work and costs a test run minutes.
paxos propose interval = 0.02
paxos min wait = 0.01
[mon]
mon data = {dir}/mon-$id
mon data avail warn = 2
mon data avail crit = 1
auth allow insecure global id reclaim = false
[mgr]
mgr data = {dir}/mgr
mgr stats period = 1
[osd]
osd data = {dir}/osd$id
osd objectstore = {store}
bluestore block size = 21474836480
memstore device bytes = 8589934592
osd memory target = 1073741824
osd client watch timeout = 5
osd class load list = *
osd class default list = *
[client]
log file = /dev/null
"""


class ClusterError(Exception):
    """The test cluster could not be started, used or stopped; the text says what to do."""


class MissingPackagesError(ClusterError):
    """Programs or bindings of Ceph are not installed."""


def missing_packages() -> list[str]:
    """Return the Debian packages that a cluster needs and this machine lacks, sorted."""
    missing = {
        package for program, package in PROGRAM_PACKAGES.items() if not shutil.which(program)
    }
    for module in ("rados", "rbd"):
        try:
            __import__(module)
        except ImportError:
            missing.add(f"python3-{module}")
    return sorted(missing)


class CephAccess:
    """What tests need of any Ceph cluster, their own or one that already runs: pools.

    *Concurrency*: each call opens and closes its own connection as `client.admin`.
    """

    def __init__(self, conf_path: Path) -> None:
        self.conf_path = conf_path

    def create_pool(self, name: str, *, pg_count: int = 8) -> None:
        """Create a pool for rbd and wait until all its placement groups serve requests.

        Raises:
            ClusterError: the pool exists, or does not serve within `START_TIMEOUT_S`.
        """
        import rbd

        with self._connect() as cluster:
            if cluster.pool_exists(name):
                raise ClusterError(f"pool {name!r} exists already; choose another name")
            self._command(
                cluster, "osd pool create", pool=name, pg_num=pg_count, pool_type="replicated"
            )
            cluster.wait_for_latest_osdmap()
            with cluster.open_ioctx(name) as pool:
                _wait_serving(pool, pg_count)
                # Without this the first image in the pool costs over a second.
                rbd.RBD().pool_init(pool, True)

    def delete_pool(self, name: str) -> None:
        """Delete a pool with all it holds. *Idempotent*: deleting what is gone succeeds."""
        with self._connect() as cluster:
            self._command(
                cluster, "osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True
            )

    def status(self) -> dict[str, Any]:
        """Return what `ceph status --format json` says."""
        with self._connect() as cluster:
            result: dict[str, Any] = json.loads(self._command(cluster, "status", format="json"))
            return result

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Any]:
        import rados

        cluster = rados.Rados(conffile=str(self.conf_path), rados_id="admin")
        try:
            cluster.connect(timeout=COMMAND_TIMEOUT_S)
            yield cluster
        except rados.Error as err:
            raise ClusterError(f"the cluster of {self.conf_path} answered: {err}") from err
        finally:
            cluster.shutdown()

    def _command(self, cluster: Any, prefix: str, **arguments: object) -> bytes:
        request = json.dumps({"prefix": prefix, **arguments})
        code, output, text = cluster.mon_command(request, b"", timeout=COMMAND_TIMEOUT_S)
        if code != 0:
            raise ClusterError(f"'ceph {prefix}' failed: {text or os.strerror(-code)}")
        return bytes(output)


class CephCluster(CephAccess):
    """A Ceph cluster of its own in `directory`; a context manager.

    Without a directory it makes a temporary one, which goes when the cluster stops. `conf_lines`
    end its `ceph.conf`: sections of their own, as specific ones go before `[osd]`.

    `client.admin` may do everything. `client.volcore` is what a server should run as: `profile rbd`
    on the monitor, with the right to unblock hosts, and on the pools made by `create_pool`. In a
    pool, that profile reads, writes and runs object classes, so a catalog in it needs no further
    right. Both keys are found through `conf_path` alone. A client has new rights when it connects.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        osd_count: int = 1,
        store: Literal["bluestore", "memstore"] = "bluestore",
        tied: bool = True,
        conf_lines: str = "",
    ) -> None:
        self._temporary = directory is None
        directory = directory or Path(tempfile.mkdtemp(prefix="volcore-ceph-"))
        self.directory = directory.absolute()
        super().__init__(self.directory / "ceph.conf")
        self.osd_count = osd_count
        self._store = store
        self._tied = tied
        self._conf_lines = conf_lines
        self._monitors = {"a": f"[v2:127.0.0.1:{_free_port()}]"}
        self._reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Create the cluster in the directory and wait until its OSDs are up and it answers.

        Raises:
            MissingPackagesError: Ceph is not installed; the text is the command to install it.
            ClusterError: the directory holds a cluster, or a daemon did not come up.
        """
        if missing := missing_packages():
            raise MissingPackagesError(
                "a test cluster needs Ceph: apt-get install --no-install-recommends "
                + " ".join(missing)
            )
        if self.conf_path.exists():
            raise ClusterError(
                f"{self.directory} holds a cluster already; choose a fresh directory"
            )
        try:
            self._write_files()
            if self._tied:
                self._start_reaper()
            self._start_daemons()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every daemon of this cluster: SIGTERM, then SIGKILL after `STOP_TIMEOUT_S`.

        *Idempotent*. The files stay if the caller named the directory.
        """
        stop_daemons(self.conf_path)
        if self._reaper is not None:
            reaper, self._reaper = self._reaper, None
            reaper.communicate(timeout=STOP_TIMEOUT_S + 5)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def restart_osd(self, index: int, *, hard: bool = False) -> None:
        """End one OSD and start it again; return when all OSDs are up."""
        since = self._osd_epochs()[index]
        stop_daemons(self.conf_path, daemon=("ceph-osd", str(index)), hard=hard)
        self._run("ceph-osd", "-i", str(index))
        _wait_until(
            lambda: self._osd_epochs().get(index, since) > since, f"osd.{index} is not up again"
        )

    def create_pool(self, name: str, *, pg_count: int = 8) -> None:
        """Create a pool as `CephAccess.create_pool` does and give `client.volcore` rights on it."""
        super().create_pool(name, pg_count=pg_count)
        with self._connect() as cluster:
            pools = [pool for pool in cluster.list_pools() if pool != "device_health_metrics"]
            osd_caps = ", ".join(f"profile rbd pool={pool}" for pool in pools)
            self._command(
                cluster,
                "auth caps",
                entity=f"client.{CLIENT}",
                caps=["mon", _MON_CAPS, "osd", osd_caps],
            )

    def _write_files(self) -> None:
        for name in ("mgr", "run", "log", "crash", "keys"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "keys").chmod(0o700)
        fsid, monitors = str(uuid.uuid4()), ",".join(self._monitors.values())
        text = _CONF.format(fsid=fsid, monitors=monitors, dir=self.directory, store=self._store)
        self.conf_path.write_text(text + self._conf_lines)
        profile_osd = {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"}
        entities = {
            "mon.": {"mon": "allow *"},
            "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
            "mgr.x": {"mon": "allow profile mgr", "osd": "allow *"},
            f"client.{CLIENT}": {"mon": _MON_CAPS},
            **{f"osd.{index}": profile_osd for index in range(self.osd_count)},
        }
        for entity, caps in entities.items():
            self._write_key(entity, caps)
        combined = "".join(path.read_text() for path in (self.directory / "keys").iterdir())
        (self.directory / "keys" / "all.keyring").write_text(combined)  # the directory is ours only
        words = [word for pair in self._monitors.items() for word in ("--addv", *pair)]
        self._run("monmaptool", "--create", "--fsid", fsid, *words, str(self.directory / "monmap"))

    def _write_key(self, entity: str, caps: dict[str, str]) -> None:
        path = self.directory / "keys" / f"{entity}.keyring"
        flags = [word for room, right in caps.items() for word in ("--cap", room, right)]
        self._run("ceph-authtool", "--create-keyring", str(path), "--gen-key", "-n", entity, *flags)

    def _start_daemons(self) -> None:
        for name in self._monitors:
            self._run("ceph-mon", "--mkfs", "-i", name, "--monmap", str(self.directory / "monmap"),
                      "--keyring", str(self.directory / "keys" / "all.keyring"))  # fmt: skip
            self._run("ceph-mon", "-i", name)
        self._run("ceph-mgr", "-i", "x")
        with self._connect() as cluster:
            uuids = [str(uuid.uuid4()) for _ in range(self.osd_count)]
            for osd_uuid in uuids:
                self._command(cluster, "osd new", uuid=osd_uuid)
        for index, osd_uuid in enumerate(uuids):
            (self.directory / f"osd{index}").mkdir()
            self._run("ceph-osd", "-i", str(index), "--mkfs", "--osd-uuid", osd_uuid)
            self._run("ceph-osd", "-i", str(index))

    def _start_reaper(self) -> None:
        verb = "reap-and-delete" if self._temporary else "reap"
        self._reaper = subprocess.Popen(
            [sys.executable, "-P", "-S", __file__, verb, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_ready(self) -> None:
        """Return when all OSDs are up and their capacity is known, which takes the manager."""
        with self._connect() as cluster:

            def ready() -> bool:
                stat = json.loads(self._command(cluster, "osd stat", format="json"))
                space = json.loads(self._command(cluster, "df", format="json"))["stats"]
                return bool(stat["num_up_osds"] == self.osd_count and space["total_bytes"] > 0)

            _wait_until(ready, f"not all OSDs are up (see {self.directory / 'log'})")

    def _osd_epochs(self) -> dict[int, int]:
        """Return for each OSD that is up the map epoch since which it is."""
        with self._connect() as cluster:
            dump = json.loads(self._command(cluster, "osd dump", format="json"))
        return {osd["osd"]: osd["up_from"] for osd in dump["osds"] if osd["up"]}

    def _before(self, _program: str, _arguments: tuple[str, ...]) -> list[str]:
        return []  # where it shall run: here

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._before(program, arguments), program, *arguments]
        if program not in ("monmaptool", "ceph-authtool"):
            command += ["-c", str(self.conf_path)]
        try:
            subprocess.run(
                command,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CEPH_ARGS": ""},
                timeout=START_TIMEOUT_S,
            )
        except subprocess.CalledProcessError as err:
            output = err.stdout.decode(errors="replace").strip()[-2000:]
            raise ClusterError(f"{program} ended with {err.returncode}: {output}") from err
        except subprocess.TimeoutExpired as err:
            raise ClusterError(f"{program} is not ready after {START_TIMEOUT_S:.0f} s") from err


def stop_daemons(
    conf_path: Path, *, daemon: tuple[str, str] | None = None, hard: bool = False
) -> None:
    """End the daemons whose command line names `conf_path`, all or one (program, id), and wait.

    OSDs go before the monitor, which they tell that they leave.

    Raises:
        ClusterError: one survived SIGKILL for `STOP_TIMEOUT_S`.
    """
    programs = ("ceph-osd", "ceph-mgr", "ceph-mon") if daemon is None else (daemon[0],)
    for program in programs:
        # Again until none is left: one may just be turning itself into a daemon.
        for _ in range(10):
            wanted = daemon[1] if daemon is not None else None
            found = list(own_daemons(str(conf_path), program, wanted))
            if not found:
                break
            _end(found, hard=hard)


def own_daemons(conf_path: str, program: str, wanted: str | None) -> Iterator[int]:
    """Yield an open pidfd for each process of `program` that was started with `conf_path`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            handle = os.pidfd_open(int(entry.name))
        except ProcessLookupError:
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            words = []
        mine = Path(words[0] if words else "").name == program and conf_path in words
        if mine and (wanted is None or words[words.index("-i") + 1] == wanted):
            yield handle
        else:
            os.close(handle)


def _end(handles: Sequence[int], *, hard: bool) -> None:
    poller = select.poll()
    left = set(handles)
    for handle in handles:
        poller.register(handle, select.POLLIN)
    for kind in (signal.SIGKILL,) if hard else (signal.SIGTERM, signal.SIGKILL):
        for handle in left:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, kind)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while left and (wait_s := deadline - time.monotonic()) > 0:
            for handle, _ in poller.poll(wait_s * 1000):
                poller.unregister(handle)
                left.discard(handle)
    for handle in handles:
        os.close(handle)
    if left:
        raise ClusterError(f"{len(left)} daemons of the test cluster survived SIGKILL")


def _wait_serving(pool: Any, pg_count: int) -> None:
    """Return when every placement group of a pool answers.

    A read of an object waits until the group of the object is active. Sixteen names per group miss
    one with a probability of about e^-16.
    """
    for completion in [pool.aio_stat(f"probe.{n}", lambda *_: None) for n in range(16 * pg_count)]:
        _wait_until(completion.is_complete, "a placement group does not serve")
        completion.wait_for_complete_and_cb()  # it must outlive its callback


def _wait_until(ready: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(f"{complaint} after {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)


def _free_port() -> int:
    for port in random.sample(MON_PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ClusterError(f"no free port among 200 of {MON_PORTS.start}-{MON_PORTS.stop - 1}")


def _reap(directory: Path, *, delete: bool) -> None:
    """Wait until the starter closes our input, by will or by death, then end the daemons."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stop_daemons(directory / "ceph.conf")
    if delete:
        shutil.rmtree(directory, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A real single-machine Ceph cluster.")
    parser.add_argument("verb", choices=["up", "down", "reap", "reap-and-delete"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--osds", type=int, default=1, help="number of OSDs")
    parser.add_argument("--store", choices=["bluestore", "memstore"], default="bluestore")
    parser.add_argument("--pool", default="volumes", help="pool to create")
    chosen = parser.parse_args(arguments)
    directory = chosen.directory.absolute()
    try:
        if chosen.verb == "up":
            cluster = CephCluster(directory, osd_count=chosen.osds, store=chosen.store, tied=False)
            cluster.start()
            cluster.create_pool(chosen.pool)
            sys.stdout.write(f"export CEPH_CONF={cluster.conf_path}\n")
        elif chosen.verb == "down":
            stop_daemons(directory / "ceph.conf")
        else:
            _reap(directory, delete=chosen.verb == "reap-and-delete")
    except ClusterError as err:
        sys.stderr.write(f"{err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
