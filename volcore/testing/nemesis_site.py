"""Where the nemesis works: three servers on a Ceph of three monitors and OSDs, and what can fail.

Each server, monitor and OSD is a host of its own, clients are two, the guest another one. A loop
stands for the service manager: it starts a server again whenever that has ended. A fourth server
has a local pool, for the guest that uses NBD.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from volcore.client import Client, ClientTls, RetryPolicy
from volcore.errors import VolcoreError
from volcore.testing.certificates import Authority
from volcore.testing.network import Network
from volcore.testing.server import RunningServer
from volcore.testing.wide_cluster import HOSTS as CEPH_HOSTS
from volcore.testing.wide_cluster import MONITORS, OSDS, WideCluster

SERVERS: Final = ("server-1", "server-2", "server-3")
CLIENTS: Final = ("client-1", "client-2")
GUEST: Final = "guest"
HOSTS: Final = (*CEPH_HOSTS, *SERVERS, *CLIENTS, GUEST)
PORT: Final = 7443
CEPH_POOL: Final = "nemesis"
PG_COUNT: Final = 16
RESTART_S: Final = 0.2
LOOK_S: Final = 2.0
TIED: Final = ("setpriv", "--pdeathsig", "KILL")
"""Before a command that is to end with the thread that started it."""


class Service(threading.Thread):
    """Starts a server, and again whenever it has ended, as a service manager does."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.codes: list[int] = []
        """Exit codes so far."""
        self._stopped = threading.Event()

    def run(self) -> None:
        """See the class."""
        while not self._stopped.is_set():
            self.server.spawn()
            self.codes.append(self.server.wait(None))
            self._stopped.wait(RESTART_S)

    def signal(self, kind: signal.Signals) -> None:
        """Send a signal to the server, if it runs just now."""
        with suppress(AssertionError, ProcessLookupError):
            os.kill(self.server.pid, kind)

    def stop(self) -> None:
        """End it for good."""
        self._stopped.set()
        for kind in (signal.SIGCONT, signal.SIGKILL):
            self.signal(kind)
        self.join(10)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that fails, and how it comes back."""

    kind: str
    target: str
    begin: Callable[[], None]
    end: Callable[[], None]


class Site:
    """All of it on a network of `HOSTS`; a context manager. Everything lies in `directory`.

    Without `direct`, clones are made through librbd, and no server spends half a minute on a proof.
    """

    def __init__(self, directory: Path, network: Network, *, direct: bool = True) -> None:
        self._undo = ExitStack()
        self.directory = directory
        self.network = network
        self.cluster = WideCluster(directory / "ceph", network)
        authority = Authority.make(directory / "tls")
        self.tls_directory = authority.client("caller")
        at = network.address
        names = ",".join(f"IP:{at(server)}" for server in SERVERS)
        files = authority.server(names=names)
        server_lines = (
            f'tls_certificate = "{files.certificate}"\ntls_key = "{files.key}"\n'
            f'tls_client_ca = "{files.client_ca}"\n'
        )
        lines = (
            f'backend = "rbd"\npool = "{CEPH_POOL}"\nceph_conf = "{self.cluster.conf_path}"\n'
            f'user = "volcore"\ndirect_clone = {str(direct).lower()}\n'
        )
        self.services = {
            name: Service(
                RunningServer(
                    directory / name,
                    lines,
                    wrapper=[*TIED, *network.on(name)],
                    listen=[f"{at(name)}:{PORT}"],
                    server_lines=server_lines,
                )
            )
            for name in SERVERS
        }
        self.local = Service(RunningServer(directory / "local", wrapper=TIED))
        self.endpoint = ",".join(f"{at(name)}:{PORT}" for name in SERVERS)

    def __enter__(self) -> Self:
        with self._undo:
            self._undo.enter_context(self.cluster)
            self.cluster.create_pool(CEPH_POOL, pg_count=PG_COUNT)
            for service in (*self.services.values(), self.local):
                self._undo.callback(service.stop)
                service.start()
            self._undo = self._undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def client(self) -> Client:
        """Return a client of all servers, on the host that is never cut off."""
        place = self.tls_directory
        tls = ClientTls(
            ca=place / "ca-cert.pem",
            certificate=place / "client-cert.pem",
            key=place / "client-key.pem",
        )
        return Client(self.endpoint, tls=tls)

    def leader(self) -> str | None:
        """Return the server that answers for the pool; None if none does."""
        for name, service in self.services.items():
            policy = RetryPolicy(tries_max=1)
            endpoint = service.server.endpoint
            with (
                suppress(VolcoreError),
                Client(endpoint, retry=policy, timeout_s=LOOK_S) as client,
            ):
                client.get_pool("pools/p")
                return name
        return None

    def fault(self, kind: str, dice: random.Random) -> Fault:
        """Return a fault of a kind; what it hits is drawn, most often the server with the pool."""
        host, _, what = kind.partition(" ")
        if host == "server":
            leader = self.leader() if dice.random() < 0.8 else None
            return self._of_server(kind, what, leader or dice.choice(SERVERS), dice)
        if host == "nbd":
            return self._signalled(kind, "local", self.local.signal, what)
        target = f"{host}-{dice.choice(MONITORS if host == 'mon' else OSDS)}"
        if what == "cut off":
            others = [one for one in CEPH_HOSTS if one != target]
            return self._cut(kind, [target], others if host == "osd" else others[: len(MONITORS)])
        if what == "restarted":
            return Fault(
                kind,
                target,
                lambda: self.cluster.stop_one(target),
                lambda: self.cluster.start_one(target),
            )
        if what == "killed":
            return Fault(
                kind,
                target,
                lambda: self.cluster.kill(target),
                lambda: self.cluster.start_one(target),
            )
        return self._signalled(kind, target, lambda one: self.cluster.signal(target, one), what)

    def _of_server(self, kind: str, what: str, server: str, dice: random.Random) -> Fault:
        monitors = [f"mon-{name}" for name in MONITORS]
        cuts: dict[str, Sequence[str]] = {
            "cut from monitors": monitors,
            "cut from an OSD": [f"osd-{dice.choice(OSDS)}"],
            "cut from Ceph": CEPH_HOSTS,
            "cut from half the clients": [dice.choice(CLIENTS)],
        }
        if what in cuts:
            return self._cut(kind, [server], cuts[what])
        return self._signalled(kind, server, self.services[server].signal, what)

    def _signalled(
        self, kind: str, target: str, send: Callable[[signal.Signals], None], what: str
    ) -> Fault:
        if what == "killed":
            return Fault(kind, target, lambda: send(signal.SIGKILL), lambda: None)
        assert what == "frozen", kind
        return Fault(kind, target, lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT))

    def _cut(self, kind: str, one: Sequence[str], others: Sequence[str]) -> Fault:
        pairs = [(a, b) for a in one for b in others if a != b]

        def begin() -> None:
            for pair in pairs:
                self.network.cut(*pair)

        def end() -> None:
            for pair in pairs:
                self.network.heal(*pair)

        return Fault(kind, "-".join(one), begin, end)


KINDS: Final = (
    "server killed", "server frozen", "server cut from monitors", "server cut from an OSD",
    "server cut from Ceph", "server cut from half the clients", "osd killed", "osd frozen",
    "osd restarted", "osd cut off", "mon killed", "mon frozen", "mon restarted", "mon cut off",
    "nbd killed", "nbd frozen",
)  # fmt: skip
"""Host and what happens to it."""
