"""Where a guest moves: two hosts with addresses, and the servers of a pool that both reach.

On `local` one server, whose NBD exports the hosts reach over TCP and TLS; each host only what is
attached to it. On `rbd` two servers on a Ceph, which the hosts reach themselves.
"""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from volcore.cli.connection import blockdev, tls_object
from volcore.client import Client, RetryPolicy
from volcore.testing.certificates import Authority
from volcore.testing.cluster import CephCluster
from volcore.testing.nemesis_site import TIED, Service
from volcore.testing.network import HERE, Network
from volcore.testing.server import RunningServer
from volcore.v1.attachment_pb2 import Attachment

HOSTS: Final = ("host-a", "host-b")
SERVERS: Final = ("server-1", "server-2")
NBD_PORT: Final = 10809
RECONNECT_S: Final = 30
"""How long a guest waits for its disk to come back."""
START_S: Final = 60.0
_POOL: Final = "moves"
_MONITOR_PORT: Final = 3300
_LOOK_S: Final = 0.005
_READ_S: Final = 300.0
_PATIENT: Final = RetryPolicy(tries_max=200, delay_s_max=0.5)


class Site:
    """The servers of the pool `p` on a network of `HOSTS` and `SERVERS`; a context manager."""

    backend: ClassVar[str]
    refuses: ClassVar[bool]
    """Whether the server refuses the writes of who has no right to; else it is not in the path."""

    def __init__(self, directory: Path, network: Network) -> None:
        self.directory, self.network = directory, network
        self._undo = ExitStack()
        self._services: list[Service] = []

    def __enter__(self) -> Self:
        with self._undo:
            self._begin()
            for service in self._services:
                self._undo.callback(service.stop)
                service.start()
            self.wait_served()
            self._undo = self._undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def client(self) -> Client:
        """Return a client of all servers that waits until one of them is back."""
        endpoint = ",".join(service.server.endpoint for service in self._services)
        return Client(endpoint, retry=_PATIENT, timeout_s=120)

    def killer(self) -> Callable[[], None]:
        """Return what kills the server that has the pool now; it is started again."""
        service = self._leader()
        assert service is not None, "no server has the pool"
        return lambda: service.signal(signal.SIGKILL)

    def wait_served(self) -> None:
        """Wait until a server has the pool."""
        deadline_s = time.monotonic() + START_S
        while self._leader() is None:
            if time.monotonic() > deadline_s:
                said = "".join(service.server.log()[-2000:] for service in self._services)
                raise TimeoutError(f"no server has the pool after {START_S:.0f} s: {said}")
            time.sleep(0.05)

    def device(self, attachment: Attachment) -> dict[str, Any]:
        """Return the options of a QEMU block device."""
        return blockdev(attachment)

    def objects(self, attachment: Attachment) -> list[dict[str, Any]]:
        """Return the options of the QEMU objects that the block device refers to."""
        return []

    def words(self, attachment: Attachment) -> list[str]:
        """Return the same for a QEMU tool."""
        return [word for one in self.objects(attachment) for word in ("--object", json.dumps(one))]

    def read_all(self, attachment: Attachment, path: Path) -> None:
        """Copy the volume to a raw file, as the host that has it."""
        file = {"driver": "raw", "file": self.device(attachment)}
        words = [*self.network.on(attachment.host), "qemu-img", "convert", "-f", "raw", "-O", "raw"]
        words += [*self.words(attachment), f"json:{json.dumps(file)}", str(path)]
        subprocess.run(words, check=True, timeout=_READ_S)

    def writers_wrong(self, hosts: Sequence[str]) -> list[str]:
        """Return how the storage's own view differs from `hosts`, who wrote one after the other."""
        return []

    def _begin(self) -> None:
        raise NotImplementedError

    def _serve(self, name: str, pool_lines: str = "", nbd_lines: str = "") -> None:
        wrapper = [*TIED, *self.network.on(name)]
        place = self.directory / name
        server = RunningServer(place, pool_lines, wrapper=wrapper, nbd_lines=nbd_lines)
        self._services.append(Service(server))

    def _leader(self) -> Service | None:
        for service in self._services:
            with (
                suppress(grpc.RpcError),
                grpc.insecure_channel(service.server.endpoint) as channel,
            ):
                asking = health_pb2.HealthCheckRequest(service="pools/p")
                answer = health_pb2_grpc.HealthStub(channel).Check(asking, timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return service
        return None


class LocalSite(Site):
    """A local pool behind NBD over TLS."""

    backend = "local"
    refuses = True

    def _begin(self) -> None:
        authority = Authority.make(self.directory / "tls")
        self._files = {host: authority.client(host) for host in HOSTS}
        address = self.network.address(SERVERS[0])
        files = authority.server(names=f"IP:{address}")
        lines = {
            "tls_certificate": files.certificate,
            "tls_key": files.key,
            "tls_client_ca": files.client_ca,
            "tls_clients": "attached",
        }
        listen = f'listen = ["{address}:{NBD_PORT}"]\n'
        more = "".join(f'{key} = "{value}"\n' for key, value in lines.items())
        self._serve(SERVERS[0], nbd_lines=listen + more)

    def device(self, attachment: Attachment) -> dict[str, Any]:
        """See `Site.device`."""
        return {**super().device(attachment), "reconnect-delay": RECONNECT_S}

    def objects(self, attachment: Attachment) -> list[dict[str, Any]]:
        """See `Site.objects`."""
        return [tls_object(attachment, self._files[attachment.host])]


class _Cluster(CephCluster):
    """A Ceph that listens on an address of this host."""

    def __init__(self, directory: Path, address: str) -> None:
        listen = f"public addr = {address}\ncluster addr = {address}\n"
        super().__init__(
            directory, conf_lines="".join(f"[{kind}]\n{listen}" for kind in ("mon", "mgr", "osd"))
        )
        self._monitors = {"a": f"[v2:{address}:{_MONITOR_PORT}]"}


class RbdSite(Site):
    """A pool of a real Ceph; somebody looks all the time who has the image's exclusive lock."""

    backend = "rbd"
    refuses = False

    def _begin(self) -> None:
        cluster = _Cluster(self.directory / "ceph", self.network.address(HERE))
        self._undo.enter_context(cluster)
        cluster.create_pool(_POOL)
        self._conf_path = cluster.conf_path
        lines = f'backend = "rbd"\npool = "{_POOL}"\nceph_conf = "{cluster.conf_path}"\n'
        lines += 'user = "volcore"\ndirect_clone = false\n'
        for name in SERVERS:
            self._serve(name, lines)
        self._seen: list[str] = []
        self._watcher: threading.Thread | None = None
        self._stopped = threading.Event()
        self._undo.callback(self._stop_watching)

    def device(self, attachment: Attachment) -> dict[str, Any]:
        """See `Site.device`; the first one is watched from here on."""
        if self._watcher is None:
            image = attachment.rbd.image
            self._watcher = threading.Thread(target=self._watch, args=(image,), daemon=True)
            self._watcher.start()
        return super().device(attachment)

    def writers_wrong(self, hosts: Sequence[str]) -> list[str]:
        """See `Site.writers_wrong`: the lock went from host to host, and never back."""
        self._stop_watching()
        return [] if self._seen == list(hosts) else [f"the lock was of {self._seen}, not {hosts}"]

    def _watch(self, name: str) -> None:
        """Note each owner of the lock that is another one than before."""
        names = {self.network.address(host): host for host in HOSTS}
        import rados
        import rbd

        with (
            rados.Rados(conffile=str(self._conf_path), rados_id="admin") as cluster,
            cluster.open_ioctx(_POOL) as ioctx,
            rbd.Image(ioctx, name) as image,  # it asks for no lock, as it never writes
        ):
            while not self._stopped.wait(_LOOK_S):
                owners = [one["owner"].partition(":")[0] for one in image.lock_get_owners()]
                owner = " and ".join(names.get(address, address) for address in owners)
                if owner and self._seen[-1:] != [owner]:
                    self._seen.append(owner)

    def _stop_watching(self) -> None:
        self._stopped.set()
        if self._watcher is not None:
            self._watcher.join()


BACKENDS: Final[dict[str, type[Site]]] = {one.backend: one for one in (LocalSite, RbdSite)}
