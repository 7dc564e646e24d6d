"""The server process: puts the rooms together, runs them, and takes them apart again.

The only module that knows concrete backends and catalogs. Order of a start: sockets (so that a
second server is refused before it touches anything), health NOT_SERVING, NBD, pools with their
recovery, then calls are let in. A stop goes the other way round.
"""

import asyncio
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from typing import Final

import structlog
import uvloop

from volcore.api.server import ApiServer
from volcore.backends.contract import BlockDevice, VolumeBackend
from volcore.catalog.contract import Catalog
from volcore.config import Config, LocalPool, PoolConfig, RbdPool
from volcore.config_reference import Listen
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.images import ImageSettings
from volcore.engine.reach import summary
from volcore.engine.schedule import ScrubSettings
from volcore.engine.views import NbdConnection
from volcore.errors import (
    ConflictError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.kernels.selftest import run_self_test
from volcore.nbd import ExportTable, NbdServer, TcpAddress, TlsPolicy, UnixAddress, uri
from volcore.observability.logs import set_up_logs
from volcore.systemd import Supervisor

WITHDRAW_S: Final = 10.0
"""How long detaching waits for requests of NBD clients."""
HAND_OVER_S: Final = 10.0
"""How long a hand-over waits for the source's writes to end; the guest stands still meanwhile."""
LAST_WAIT_S: Final = 5.0
"""How long threads that are still in the storage after the grace may take to come back."""
DESCRIPTORS_MAX: Final = 65_536
"""Descriptors that are asked for, where the system allows more."""
_log = structlog.get_logger("volcore.daemon")


def serve(config: Config) -> int:
    """Run the server until SIGTERM or SIGINT; a second one ends it at once.

    Returns:
        The exit code: 0, or 1 when something did not end in its time.

    Raises:
        VolcoreError: it cannot start; the message has one sentence for each thing in the way.
    """
    if not __debug__:
        raise PreconditionError(
            "volcore checks itself with assertions; start Python without -O",
            reason=Reason.WRONG_STATE,
        )
    set_up_logs(level=config.log.level, format=config.log.format)
    run_self_test()
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config))


def _raise_descriptor_limit() -> None:
    """Take the descriptors that the system allows: clients and layer files need one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(config: Config) -> int:
    stop = _stop_on_signals()
    settings = EngineSettings(
        server_id=f"{socket.gethostname()}:{os.getpid()}",
        images=ImageSettings(
            directories=config.server.image_directories,
            spool_directory=config.server.spool_directory,
        ),
        scrub=ScrubSettings(
            interval_s=config.scrub.interval_h * 3600,
            bytes_per_s_max=config.scrub.max_rate_bytes,
            heal=config.scrub.heal,
        ),
    )
    engine = Engine(settings)
    api = ApiServer(engine, call_threads=config.server.call_threads)
    storage = Storage(engine, config)
    clean = True
    supervisor = Supervisor(config.notify_socket, config.watchdog_s)
    ready = asyncio.Event()
    telling = asyncio.create_task(
        supervisor.keep_told(
            status=lambda: summary(engine.lookout.seen()) if ready.is_set() else "opening pools",
            ready=ready.is_set,
            gets_on=api.gets_on,
        )
    )
    try:
        addresses = _listen(api, config)
        await api.start()
        await asyncio.to_thread(storage.open)
        await api.open()
        engine.start()
        _log.info("ready", addresses=addresses, nbd=storage.nbd_addresses, pid=os.getpid())
        supervisor.tell("READY=1")
        ready.set()
        await stop.wait()
        _log.info("stopping", grace_s=config.server.shutdown_grace_s)
        telling.cancel()
        supervisor.tell("STOPPING=1", "STATUS=finishing calls that have begun")
        await api.stop(config.server.shutdown_grace_s)
    except BaseException:
        await api.stop(0)
        raise
    finally:
        telling.cancel()
        engine.close(LAST_WAIT_S)
        clean = await asyncio.to_thread(api.close, LAST_WAIT_S)
        clean = await asyncio.to_thread(storage.close) and clean
        _log.info("stopped", clean=clean)
    return 0 if clean else 1


class Storage:
    """The pools and the NBD server of one process."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config
        self._nbd: NbdServer | None = None
        self._undo = ExitStack()
        self._clean = True

    @property
    def nbd_addresses(self) -> list[str]:
        """Where NBD clients are served."""
        return [] if self._nbd is None else self._nbd.uris("")

    def open(self) -> None:
        """Open everything; blocks for as long as recovery takes.

        Raises:
            VolcoreError: of the class of the first failure, with a sentence for each one.
        """
        exporter = self._open_nbd()
        failures = []
        for pool in self._config.pools:
            try:
                backend, catalog = self._open_pool(pool)
                warm = pool.warm_clones if isinstance(pool, RbdPool) else 0
                self._engine.add_pool(
                    pool.name,
                    backend,
                    catalog,
                    exporter,
                    warm_clones_max=warm,
                    trash_retention_s=pool.trash_retention_s,
                )
            except VolcoreError as err:
                failures.append((pool, err))
        if failures:
            first = failures[0][1]
            raise type(first)(
                "\n".join(f"pool {pool.name!r}: {err.message}" for pool, err in failures),
                reason=first.reason,
                retryable=first.retryable,
                blockers=first.blockers,
                **first.context,
            ) from first

    def close(self) -> bool:
        """Close everything in reverse; say whether all of it went well."""
        self._undo.close()
        return self._clean

    def _open_nbd(self) -> "NbdExporter | None":
        addresses = [_nbd_address(one) for one in self._config.nbd.listen]
        if not addresses or all(isinstance(pool, RbdPool) for pool in self._config.pools):
            return None
        exports = ExportTable()
        nbd = self._config.nbd
        tls = None
        if nbd.tls is not None:
            tls = TlsPolicy(
                credentials=nbd.tls, on_unix=nbd.tls_on_unix, attached_only=nbd.tls_attached_only
            )
        self._nbd = NbdServer(*addresses, exports=exports, tls=tls)
        self._nbd.start()
        grace_s = self._config.server.shutdown_grace_s
        stop = self._nbd.stop
        self._later("nbd", lambda: stop(grace_s))
        return NbdExporter(exports, self._nbd, advertise_host=nbd.advertise_host)

    def _open_pool(self, pool: PoolConfig) -> tuple[VolumeBackend, Catalog]:
        backend, catalog = self._rbd_pool(pool) if isinstance(pool, RbdPool) else _own_pool(pool)
        self._later(pool.name, backend.close)
        self._later(pool.name, catalog.close)
        return backend, catalog

    def _rbd_pool(self, pool: RbdPool) -> tuple[VolumeBackend, Catalog]:
        from volcore.backends.rbd import Cluster, RbdBackend
        from volcore.backends.rbd.connection import ClusterOptions
        from volcore.backends.rbd.omap import OmapObject
        from volcore.catalog.omap import OBJECT_NAME, OmapCatalog

        options = ClusterOptions(
            conf_path="" if pool.ceph_conf is None else str(pool.ceph_conf),
            user=pool.user,
            connect_timeout_s=pool.connect_timeout_s,
        )
        cluster = Cluster.shared(options)
        backend = RbdBackend(
            cluster, pool.pool, secret_uuid=pool.secret_uuid, direct=pool.direct_clone
        )
        backend.open()
        try:
            return backend, OmapCatalog(OmapObject.opened(cluster, pool.pool, OBJECT_NAME))
        except BaseException:
            backend.close()
            raise

    def _later(self, name: str, close: Callable[[], None]) -> None:
        """Close something at the end, whatever happens to the others."""

        def attempt() -> None:
            try:
                close()
            except VolcoreError as err:
                self._clean = False
                _log.error("not closed well", part=name, reason=err.reason, message=err.message)

        self._undo.callback(attempt)


class NbdExporter:
    """Makes volumes reachable over NBD for `volcore.engine`; any thread."""

    def __init__(
        self, exports: ExportTable, server: NbdServer, *, advertise_host: str = ""
    ) -> None:
        self._exports = exports
        self._server = server
        self._advertise_host = advertise_host
        self._lock = threading.Lock()
        self._read_only: dict[str, bool] = {}

    def publish(
        self,
        name: str,
        opener: Callable[[bool], BlockDevice],
        *,
        read_only: bool,
        hosts: Callable[[], Collection[str]],
        writable: bool,
    ) -> None:
        """Offer `name`; a repeat changes nothing, another mode replaces the export."""
        with self._lock:
            if self._read_only.get(name, read_only) is not read_only:
                self._withdraw(name)
            if name not in self._read_only:
                offer = partial(
                    self._exports.publish,
                    name,
                    opener,
                    read_only=read_only,
                    clients=hosts,
                    writable=writable,
                )
                try:
                    offer()
                except ConflictError:  # an earlier withdrawal is not over yet
                    self._withdraw(name)
                    offer()
                self._read_only[name] = read_only

    def connection(self, name: str) -> NbdConnection:
        """Return how clients reach an export: at the first address, by the advertised name."""
        address = self._server.addresses[0]
        tls = self._server.needs_tls(address)
        if isinstance(address, UnixAddress):
            return NbdConnection(
                uri=uri(address, name, tls=tls),
                export_name=name,
                socket_path=str(address.path),
                tls_hostname=(self._advertise_host or "localhost") if tls else "",
            )
        address = TcpAddress(self._advertise_host or address.host, address.port)
        return NbdConnection(
            uri=uri(address, name, tls=tls),
            export_name=name,
            host=address.host,
            port=address.port,
            tls_hostname=address.host if tls else "",
        )

    def set_writable(self, name: str, writable: bool) -> None:
        """See `Exporter.set_writable`."""
        self._exports.set_writable(name, writable=writable, timeout_s=HAND_OVER_S)

    def expel(self, name: str) -> None:
        """See `Exporter.expel`."""
        self._exports.expel(name)

    def withdraw(self, name: str) -> None:
        """Stop offering `name`; what its clients wrote is durable at return.

        Raises:
            DeadlineError: requests are still in the device; repeat the call.
        """
        with self._lock:
            self._withdraw(name)

    def _withdraw(self, name: str) -> None:
        self._read_only.pop(name, None)
        self._exports.withdraw(name, timeout_s=WITHDRAW_S)


def _own_pool(pool: PoolConfig) -> tuple[VolumeBackend, Catalog]:
    """Open a pool that needs nothing from elsewhere."""
    from volcore.catalog.sqlite import SqliteCatalog

    if isinstance(pool, LocalPool):
        from volcore.backends.local import LocalBackend, LocalStore

        store = LocalStore.open(pool.directory)
        try:
            backend = LocalBackend(store, merge_bytes_per_s=pool.merge_rate_bytes)
            backend.open()
            return backend, SqliteCatalog(store.database)
        except BaseException:
            store.close()
            raise
    from volcore.backends.memory import MemoryBackend
    from volcore.database import Database

    memory = MemoryBackend()
    memory.open()
    return memory, SqliteCatalog(Database(None))


def _listen(api: ApiServer, config: Config) -> list[str]:
    tls = config.server.tls
    return [
        api.listen_tcp(one.host, one.port, tls) if one.path is None else api.listen_unix(one.path)
        for one in config.server.listen
    ]


def _nbd_address(one: Listen) -> UnixAddress | TcpAddress:
    return TcpAddress(one.host, one.port) if one.path is None else UnixAddress(one.path)


def _stop_on_signals() -> asyncio.Event:
    """Return the event that the first signal sets; the second one ends the process."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop
