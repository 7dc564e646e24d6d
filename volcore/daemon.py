"""The server process: puts the rooms together, runs them, and takes them apart again.

The only module that knows concrete backends and catalogs. Order of a start: sockets (so that a
second server is refused before it touches anything), health NOT_SERVING, NBD, pools with their
recovery, then calls are let in. A stop goes the other way round.

An rbd pool that another server has is waited for: this one is ready, on standby, and SERVING when
it has all its pools. A server that another one took a pool from ends: it is fenced off by the
cluster, so that nothing it holds open or remembers is worth anything.
"""

import asyncio
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from volcore.api.server import ApiServer
from volcore.backends.contract import VolumeBackend
from volcore.catalog.contract import Catalog
from volcore.config import Config, LocalPool, PoolConfig, RbdPool
from volcore.config_reference import Listen
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.images import ImageSettings
from volcore.engine.reach import summary
from volcore.engine.schedule import ScrubSettings
from volcore.engine.standby import Standby, Watch
from volcore.errors import (
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.exporter import NbdExporter
from volcore.kernels.selftest import run_self_test
from volcore.limits import LOST_EXIT_S
from volcore.nbd import ExportTable, NbdServer, TcpAddress, TlsPolicy, UnixAddress
from volcore.observability.logs import set_up_logs
from volcore.systemd import Supervisor

if TYPE_CHECKING:
    from volcore.backends.rbd.connection import ClusterOptions

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


def settle(config: Config) -> int:
    """Make durable what a killed server of this host has left of the embedded pools.

    Pools that are not there, as on a file system that is mounted elsewhere, are passed over.

    Idempotent; a pool that fails keeps no other one from it.

    Returns:
        The exit code: 0.

    Raises:
        VolcoreError: of the class of the first failure, with a sentence for each one: POOL_LOCKED,
            a server has the pool; POOL_FULL and the like, what it left is still there.
    """
    set_up_logs(level=config.log.level, format=config.log.format)
    failures: list[tuple[PoolConfig, VolcoreError]] = []
    for pool in config.pools:
        if isinstance(pool, LocalPool) and (pool.directory / "volcore.db").exists():
            try:
                backend, catalog = _own_pool(pool)
                with closing(catalog):
                    backend.close()
            except VolcoreError as err:
                failures.append((pool, err))
    if failures:
        raise _joined(failures)
    return 0


def _raise_descriptor_limit() -> None:
    """Take the descriptors that the system allows: clients and layer files need one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(config: Config) -> int:
    stop = _stop_on_signals()
    lost = _Lost(asyncio.get_running_loop(), stop)
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
    api = ApiServer(engine, call_threads=config.server.call_threads, peers=config.server.tls)
    complete = asyncio.Event()
    storage = Storage(engine, config, on_lost=lost, on_complete=_setter(complete))
    clean = True
    supervisor = Supervisor(config.notify_socket, config.watchdog_s)
    ready = asyncio.Event()

    def status() -> str:
        if not ready.is_set():
            return "opening pools"
        return summary(engine.lookout.seen()) if complete.is_set() else "standing by"

    telling = asyncio.create_task(
        supervisor.keep_told(
            status=status,
            ready=ready.is_set,
            gets_on=api.gets_on,
        )
    )
    try:
        addresses = _listen(api, config)
        await api.start()
        await asyncio.to_thread(storage.open)
        await api.open(serving=complete.is_set())
        engine.start()
        _log.info(
            "ready",
            addresses=addresses,
            nbd=storage.nbd_addresses,
            pid=os.getpid(),
            standby=not complete.is_set(),
        )
        supervisor.tell("READY=1")
        ready.set()
        await _serving(api, complete, stop)
        grace_s = 0.0 if lost.pool else config.server.shutdown_grace_s
        _log.info("stopping", grace_s=grace_s)
        telling.cancel()
        supervisor.tell("STOPPING=1", "STATUS=finishing calls that have begun")
        await api.stop(grace_s)
    except BaseException:
        await api.stop(0)
        raise
    finally:
        telling.cancel()
        await asyncio.to_thread(storage.stop_taking)
        clean = engine.close(LAST_WAIT_S)
        clean = await asyncio.to_thread(api.close, LAST_WAIT_S) and clean
        clean = await asyncio.to_thread(storage.close, idle=clean) and clean
        _log.info("stopped", clean=clean)
    return 0 if clean and not lost.pool else 1


async def _serving(api: ApiServer, complete: asyncio.Event, stop: asyncio.Event) -> None:
    """Return when the server is to stop; until then say SERVING from when it has all pools on."""
    stopping = asyncio.create_task(stop.wait())
    completing = asyncio.create_task(complete.wait())
    await asyncio.wait((stopping, completing), return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        completing.cancel()
        return
    await api.set_serving()
    await stopping


def _setter(event: asyncio.Event) -> Callable[[], None]:
    """Return a function that sets the event from any thread."""
    loop = asyncio.get_running_loop()

    def set_it() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(event.set)

    return set_it


class _Lost:
    """Ends the process when another server has taken a pool; any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        self._loop = loop
        self._stop = stop
        self.pool = ""
        """The first pool that was lost."""

    def __call__(self, pool: str) -> None:
        """Stop the server, by force if it does not stop in time."""
        if self.pool:
            return
        self.pool = pool
        _log.error("pool lost; this server ends with code 1, start it again", pool=pool)
        last = threading.Timer(LOST_EXIT_S, os._exit, (1,))
        last.daemon = True
        last.start()
        with suppress(RuntimeError):  # it is stopping already
            self._loop.call_soon_threadsafe(self._stop.set)


class Storage:
    """The pools and the NBD server of one process."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        *,
        on_lost: Callable[[str], None],
        on_complete: Callable[[], None],
    ) -> None:
        """Open nothing; `on_lost` and `on_complete` are called by other threads.

        Args:
            engine: gets the pools.
            config: which pools.
            on_lost: called with a pool that another server has taken.
            on_complete: called when all pools are open.
        """
        self._engine = engine
        self._config = config
        self._on_lost = on_lost
        self._on_complete = on_complete
        self._standby: Standby | None = None
        self._nbd: NbdServer | None = None
        self._exporter: NbdExporter | None = None
        self._undo = ExitStack()
        self._clean = True
        self._keeps_rbd = False

    @property
    def nbd_addresses(self) -> list[str]:
        """Where NBD clients are served."""
        return [] if self._nbd is None else self._nbd.uris("")

    def open(self) -> None:
        """Open everything; blocks for as long as recovery takes.

        Raises:
            VolcoreError: of the class of the first failure, with a sentence for each one.
        """
        self._exporter = self._open_nbd()
        failures = []
        waiting: dict[str, RbdPool] = {}
        for pool in self._config.pools:
            if waiting and isinstance(pool, RbdPool):
                waiting[pool.name] = pool
                continue
            try:
                self._take(pool)
            except VolcoreError as err:
                if err.reason is Reason.POOL_LOCKED and isinstance(pool, RbdPool):
                    waiting[pool.name] = pool
                else:
                    failures.append((pool, err))
        if failures:
            raise _joined(failures)
        if not waiting:
            self._on_complete()
            return
        self._standby = Standby(
            self._engine.pools,
            list(waiting),
            watch=lambda name: _watch(waiting[name]),
            take=lambda name: self._take(waiting[name]),
            on_all_taken=self._on_complete,
        )

    def stop_taking(self) -> None:
        """Take no pool over any more; blocks while one is being taken. Idempotent."""
        if self._standby is not None:
            self._standby.close()

    def close(self, *, idle: bool) -> bool:
        """Close everything in reverse; say whether all of it went well.

        Where threads are still at work (not `idle`), rbd pools are not given back: the next server
        waits for the end of this process, and fences it off.
        """
        self.stop_taking()
        self._keeps_rbd = not idle
        self._undo.close()
        return self._clean

    def _take(self, pool: PoolConfig) -> None:
        """Open a pool, recover it, serve it.

        Raises:
            VolcoreError: POOL_LOCKED, another server has it; or it cannot be opened.
        """
        with ExitStack() as undo:
            backend, catalog = self._open_pool(pool)
            undo.callback(backend.close)
            undo.callback(catalog.close)
            warm = pool.warm_clones if isinstance(pool, RbdPool) else 0
            try:
                self._engine.add_pool(
                    pool.name,
                    backend,
                    catalog,
                    self._exporter,
                    warm_clones_max=warm,
                    trash_retention_s=pool.trash_retention_s,
                )
            except Exception:
                if pool.name in self._engine.pools.names():  # some of its work has begun already
                    self._on_lost(pool.name)
                raise
            undo.pop_all()
        keeps = isinstance(pool, RbdPool)
        self._later(pool.name, lambda: None if keeps and self._keeps_rbd else backend.close())
        self._later(pool.name, catalog.close)

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
        return self._rbd_pool(pool) if isinstance(pool, RbdPool) else _own_pool(pool)

    def _rbd_pool(self, pool: RbdPool) -> tuple[VolumeBackend, Catalog]:
        from volcore.backends.rbd import Cluster, RbdBackend
        from volcore.backends.rbd.omap import OmapObject
        from volcore.catalog.omap import OBJECT_NAME, OmapCatalog

        cluster = Cluster.shared(_cluster_options(pool))
        backend = RbdBackend(
            cluster,
            pool.pool,
            secret_uuid=pool.secret_uuid,
            direct=pool.direct_clone,
            on_lost=partial(self._on_lost, pool.name),
            endpoint=self._config.server.endpoint,
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


def _cluster_options(pool: RbdPool) -> "ClusterOptions":
    """Return how to reach the cluster of a pool."""
    from volcore.backends.rbd.connection import ClusterOptions

    return ClusterOptions(
        conf_path="" if pool.ceph_conf is None else str(pool.ceph_conf),
        user=pool.user,
        connect_timeout_s=pool.connect_timeout_s,
    )


def _watch(pool: RbdPool) -> Watch:
    """Return how to look who has a pool."""
    from volcore.backends.rbd import Cluster, PoolWatch

    return PoolWatch(Cluster.shared(_cluster_options(pool)), pool.pool)


def _joined(failures: Sequence[tuple[PoolConfig, VolcoreError]]) -> VolcoreError:
    """Return an error of the class of the first one, with a sentence for each pool."""
    first = failures[0][1]
    joined = type(first)(
        "\n".join(f"pool {pool.name!r}: {err.message}" for pool, err in failures),
        reason=first.reason,
        retryable=first.retryable,
        blockers=first.blockers,
        **first.context,
    )
    joined.__cause__ = first
    return joined


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
