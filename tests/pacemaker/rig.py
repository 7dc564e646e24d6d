"""Three nodes on one machine: real Corosync and Pacemaker in namespaces, joined by a bridge.

A node is a namespace for network, mounts, processes, host name and IPC, in which /run, /dev/shm,
/var/log, /var/lib/pacemaker, /var/lib/corosync and /etc/corosync are its own. Its first process is
a shell; when that is killed, the kernel kills the whole node at once: a power cut. Nodes end with
the test, however that ends.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "volcore"
NODES = (1, 2, 3)
ADDRESS = "10.77.0.100"
CLIENT_ADDRESS = "10.77.0.200"
UP_S = 240

_NODE = r"""
set -e
place=$1 name=$2
mount --make-rprivate /
for path in etc/corosync run var/log var/lib/corosync var/lib/pacemaker; do
  mount --bind "$place/$path" "/$path"
done
mount -t tmpfs -o size=512m,mode=1777 tmpfs /dev/shm
mount --bind "$place/resource.d" /usr/lib/ocf/resource.d
install -d -m 750 -o hacluster -g haclient /run/crm
install -d /run/lock /run/resource-agents /var/log/corosync
install -d -m 770 -o hacluster -g haclient /var/log/pacemaker
hostname "$name"
corosync -f &
until corosync-cfgtool -s >/dev/null 2>&1; do sleep 0.1; done
PCMK_logfile=/var/log/pacemaker/pacemaker.log pacemakerd &
wait
"""

_COROSYNC = """\
totem {{
  version: 2
  cluster_name: volcore
  transport: knet
  crypto_cipher: none
  crypto_hash: none
}}
system {{
  sched_rr: no
}}
logging {{
  to_logfile: yes
  logfile: /var/log/corosync/corosync.log
  to_syslog: no
  to_stderr: no
}}
quorum {{
  provider: corosync_votequorum
}}
nodelist {{
{nodes}}}
"""
_COROSYNC_NODE = """\
  node {{
    nodeid: {n}
    name: node{n}
    ring0_addr: 10.77.0.{n}
  }}
"""


class Site:
    """The network, the nodes and the cluster; a context manager. Everything lies in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._prefix = f"vcp{os.getpid()}-"
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._make_network()
            for n in NODES:
                self._start(n)
            self.wait_until(self._is_whole, "three nodes online", UP_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for n in list(self._nodes):
            self.cut_power(n)
        for n in (*NODES, "client", "switch"):
            subprocess.run(["ip", "netns", "del", self.space(n)], check=False, capture_output=True)

    def space(self, name: object) -> str:
        """The network namespace of a node, of the client, or of the switch."""
        return f"{self._prefix}{name}"

    def in_client(self) -> list[str]:
        """Words before a command that is to run where clients are."""
        return ["ip", "netns", "exec", self.space("client")]

    def pid(self, n: int) -> int:
        """The first process of a node."""
        outer = self._nodes[n].pid
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])

    def on(self, n: int, *words: object, check: bool = True) -> str:
        """Run a command on a node; return its output."""
        enter = ["nsenter", "-t", str(self.pid(n)), "-m", "-u", "-i", "-n", "-p"]
        done = subprocess.run(
            [*enter, *map(str, words)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, (words, done)
        return done.stdout

    def cut_power(self, n: int) -> None:
        """Kill everything on a node at once."""
        node = self._nodes.pop(n)
        node.kill()  # and the kernel its child, and with that the whole node
        node.wait()

    def holder(self) -> int | None:
        """Return the node that has the address."""
        for n in self._nodes:
            if f" {ADDRESS}/" in self.on(n, "ip", "-o", "-4", "address", check=False):
                return n
        return None

    def server_pid(self, n: int) -> int | None:
        """Return the id, as seen from here, of the server of a node."""
        inside = set(_descendants(self._nodes[n].pid))
        for pid in inside:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"serve" in words and b"--config" in words:
                return pid
        return None

    def status(self) -> str:
        """What the cluster says of itself, and the ends of its logs."""
        n = next(iter(self._nodes))
        return self.on(n, "crm_mon", "-1", "-f", check=False)

    def wait_until(self, holds, what: str, timeout_s: float) -> float:
        """Wait until `holds()`; return the seconds that it took."""
        begin_s = time.monotonic()
        while not holds():
            assert time.monotonic() - begin_s < timeout_s, f"not {what}:\n{self.status()}"
            time.sleep(0.05)
        return time.monotonic() - begin_s

    def _make_network(self) -> None:
        def ip(*words: object) -> None:
            subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)

        switch = self.space("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        hosts = {n: f"10.77.0.{n}" for n in NODES} | {"client": CLIENT_ADDRESS}
        for name, address in hosts.items():
            space, port = self.space(name), f"p-{name}"
            ip("netns", "add", space)
            ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")

    def _start(self, n: int) -> None:
        place = self.directory / f"node{n}"
        for path in ("etc/corosync", "run", "var/log", "var/lib/corosync", "resource.d/volcore"):
            (place / path).mkdir(parents=True)
        subprocess.run(["cp", "-a", "/var/lib/pacemaker", place / "var/lib"], check=True)
        for provider in ("heartbeat", "pacemaker"):
            source = Path("/usr/lib/ocf/resource.d") / provider
            if source.exists():
                subprocess.run(["cp", "-a", source, place / "resource.d"], check=True)
        shutil.copy(ROOT / "share" / "ocf" / "volcore", place / "resource.d/volcore/volcore")
        nodes = "".join(_COROSYNC_NODE.format(n=one) for one in NODES)
        (place / "etc/corosync/corosync.conf").write_text(_COROSYNC.format(nodes=nodes))
        with (place / "out").open("wb") as out:
            self._nodes[n] = subprocess.Popen(
                ["ip", "netns", "exec", self.space(n), "setpriv", "--pdeathsig", "KILL",
                 "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc",
                 "--kill-child", "bash", "-c", _NODE, "node", place, f"node{n}"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def _is_whole(self) -> bool:
        text = self.on(1, "crm_mon", "-1", check=False)
        return "partition with quorum" in text and "[ node1 node2 node3 ]" in text


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
