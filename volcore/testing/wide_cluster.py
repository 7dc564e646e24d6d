"""A real Ceph of three monitors and three OSDs, each on a host of its own, with two copies of all.

What `cluster.py` starts on loopback, spread over a `Network`. Its daemons can be killed, frozen,
stopped and started one by one.
"""

import os
import signal
import time
from pathlib import Path
from typing import Final

from volcore.testing.cluster import CephCluster, ClusterError, own_daemons, stop_daemons
from volcore.testing.network import Network

MONITORS: Final = ("a", "b", "c")
OSDS: Final = ("0", "1", "2")
HOSTS: Final = (*(f"mon-{name}" for name in MONITORS), *(f"osd-{name}" for name in OSDS))
PORT: Final = 3300
_WHOLE_S: Final = 120.0
_POLL_S: Final = 0.1
# Two copies, one is enough: one of three OSDs is always in trouble. An OSD that is cut off often is
# not to end for that.
_MONITOR: Final = """\
[mon.{name}]
public addr = {address}
osd pool default size = 2
mon osd reporter subtree level = osd
"""
_MANAGER: Final = """\
[mgr.x]
public addr = {address}
"""
_OSD: Final = """\
[osd.{name}]
public addr = {address}
cluster addr = {address}
crush location = root=default host=host{name}
osd memory target = 939524096
osd max markdown count = 1000
"""


class WideCluster(CephCluster):
    """The cluster in `directory`, on the hosts `HOSTS` of `network`; a context manager."""

    def __init__(self, directory: Path, network: Network) -> None:
        at = network.address
        lines = [_MONITOR.format(name=name, address=at(f"mon-{name}")) for name in MONITORS]
        lines += [_MANAGER.format(address=at(f"mon-{MONITORS[0]}"))]
        lines += [_OSD.format(name=name, address=at(f"osd-{name}")) for name in OSDS]
        super().__init__(directory, osd_count=len(OSDS), conf_lines="".join(lines))
        self._monitors = {name: f"[v2:{at(f'mon-{name}')}:{PORT}]" for name in MONITORS}
        self._network = network

    def signal(self, host: str, kind: signal.Signals) -> None:
        """Send a signal to the daemon of a host."""
        for handle in own_daemons(str(self.conf_path), *_daemon(host)):
            signal.pidfd_send_signal(handle, kind)
            os.close(handle)

    def kill(self, host: str) -> None:
        """End the daemon of a host with SIGKILL and wait until it is gone."""
        stop_daemons(self.conf_path, daemon=_daemon(host), hard=True)

    def stop_one(self, host: str) -> None:
        """End the daemon of a host with SIGTERM."""
        stop_daemons(self.conf_path, daemon=_daemon(host))

    def start_one(self, host: str) -> None:
        """Start the daemon of a host again. *Idempotent*."""
        program, name = _daemon(host)
        found = list(own_daemons(str(self.conf_path), program, name))
        for handle in found:
            os.close(handle)
        if not found:
            self._run(program, "-i", name)

    def problems(self) -> str:
        """Return what is not as it should be: monitors, OSDs, copies; empty if all is well."""
        status = self.status()
        quorum = status["quorum_names"]
        states = {one["state_name"]: one["count"] for one in status["pgmap"]["pgs_by_state"]}
        bad = {name: count for name, count in states.items() if name != "active+clean"}
        if len(quorum) < len(MONITORS) or status["osdmap"]["num_up_osds"] < len(OSDS) or bad:
            return f"monitors {quorum}, {status['osdmap']['num_up_osds']} OSDs up, {bad}"
        return ""

    def wait_whole(self) -> float:
        """Wait until nothing is missing; return the seconds.

        Raises:
            ClusterError: it takes too long.
        """
        began_s = time.monotonic()
        while problems := self.problems():
            if time.monotonic() - began_s > _WHOLE_S:
                raise ClusterError(f"the cluster is not whole again: {problems}")
            time.sleep(_POLL_S)
        return time.monotonic() - began_s

    def _before(self, program: str, arguments: tuple[str, ...]) -> list[str]:
        kind = {"ceph-mon": "mon", "ceph-osd": "osd"}.get(program)
        if program == "ceph-mgr":
            return self._network.on(f"mon-{MONITORS[0]}")
        if kind is None:
            return []
        return self._network.on(f"{kind}-{arguments[arguments.index('-i') + 1]}")


def _daemon(host: str) -> tuple[str, str]:
    """Return program and id of the daemon of a host."""
    kind, _, name = host.partition("-")
    return f"ceph-{kind}", name
