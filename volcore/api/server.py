"""The gRPC server: services, health and reflection on unix sockets and TCP ports.

Until `open`, health says NOT_SERVING and every call of volcore's services is UNAVAILABLE. Beside
each unix socket is another one, where clients hand over files (`volcore.api.handover`).
"""

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from volcore import limits
from volcore.api.attachments import AttachmentServicer
from volcore.api.calls import CallPool
from volcore.api.forwarding import Forwarder
from volcore.api.group_snapshots import GroupSnapshotServicer
from volcore.api.handover import HandedFiles
from volcore.api.health import HealthReporter
from volcore.api.hosts import HostServicer
from volcore.api.images import ImageServicer
from volcore.api.interceptor import CallInterceptor
from volcore.api.operations import OperationServicer
from volcore.api.pools import PoolServicer
from volcore.api.services import Services
from volcore.api.snapshots import SnapshotServicer
from volcore.api.volumes import VolumeServicer
from volcore.api.waiting import Waiting
from volcore.credentials import TlsFiles
from volcore.engine.engine import Engine
from volcore.errors import InvalidArgumentError, PreconditionError, Reason
from volcore.v1 import (
    attachment_service_pb2_grpc,
    group_snapshot_service_pb2_grpc,
    host_service_pb2_grpc,
    image_service_pb2_grpc,
    operation_service_pb2_grpc,
    pool_service_pb2_grpc,
    snapshot_service_pb2_grpc,
    volume_service_pb2_grpc,
)
from volcore.wire.handover import files_path

_NOUNS: Final = (
    *("Attachment", "GroupSnapshot", "Host", "Image", "Operation"),
    *("Pool", "Snapshot", "Volume"),
)
SERVICES: Final = tuple(f"volcore.v1.{noun}Service" for noun in _NOUNS)
STREAM_THREADS: Final = 8
"""Imports, exports and publications at a time; more wait their turn."""
STREAMS_QUEUED_MAX: Final = 64
_PRIVATE: Final = 0o177
"""umask under which a socket gets mode 0600 from its first moment."""
_TELL_S: Final = 0.05
"""How long watchers of the health service get to hear that the server stops."""
_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", limits.CALLS_QUEUED_MAX),  # more wait in the client's channel
    ("grpc.http.overload_protection", 0),  # it refuses streams that the limit above allows
    ("grpc.server.max_pending_requests", 4 * limits.CALLS_QUEUED_MAX),
    ("grpc.server.max_pending_requests_hard_limit", 8 * limits.CALLS_QUEUED_MAX),
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_log = structlog.get_logger("volcore.api")


class ApiServer:
    """One server; belongs to the event loop that made it."""

    def __init__(
        self,
        engine: Engine,
        *,
        call_threads: int = limits.CALL_THREADS_DEFAULT,
        calls_queued_max: int = limits.CALLS_QUEUED_MAX,
        peers: TlsFiles | None = None,
    ) -> None:
        """Listen nowhere yet; `peers` is what other servers are shown and checked with."""
        self._calls = CallPool("call", threads=call_threads, queued_max=calls_queued_max)
        self._snapshots = CallPool(
            "snapshot", threads=limits.SNAPSHOT_THREADS, queued_max=calls_queued_max
        )
        self._streams = CallPool("stream", threads=STREAM_THREADS, queued_max=STREAMS_QUEUED_MAX)
        self._forwarder = Forwarder(peers, engine.pools.endpoint)
        self._waiting = Waiting(engine.lookout.away)
        self._interceptor = CallInterceptor(self._forwarder, self._waiting)
        self._server = grpc.aio.server(interceptors=[self._interceptor], options=_OPTIONS)
        self._health = HealthReporter(SERVICES, engine.lookout.seen)
        self._sockets: dict[Path, int] = {}
        self._files = HandedFiles(engine.pools.all_names)  # an upload can be forwarded
        services = Services(engine, self._calls, self._snapshots, self._streams, self._files)
        self._operations = OperationServicer(services)
        add: Any = _Unregistered(self._server)
        volume_service_pb2_grpc.add_VolumeServiceServicer_to_server(VolumeServicer(services), add)
        snapshot_service_pb2_grpc.add_SnapshotServiceServicer_to_server(
            SnapshotServicer(services), add
        )
        group_snapshot_service_pb2_grpc.add_GroupSnapshotServiceServicer_to_server(
            GroupSnapshotServicer(services), add
        )
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(ImageServicer(services), add)
        attachment_service_pb2_grpc.add_AttachmentServiceServicer_to_server(
            AttachmentServicer(services), add
        )
        host_service_pb2_grpc.add_HostServiceServicer_to_server(HostServicer(services), add)
        pool_service_pb2_grpc.add_PoolServiceServicer_to_server(PoolServicer(services), add)
        operation_service_pb2_grpc.add_OperationServiceServicer_to_server(self._operations, add)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, add)
        reflected = reflection.aio.ReflectionServicer(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        )
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, add)

    def listen_unix(self, path: Path) -> str:
        """Listen on a unix socket of mode 0600, and on one for files; dead servers' are replaced.

        The directory is made, with mode 0700, if it is missing.

        Raises:
            PreconditionError: WRONG_STATE, a live server has the socket, or it is another file.
            InvalidArgumentError: CONFIG_INVALID, the system refuses the path.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace_stale(path, socket.SOCK_STREAM)
        except OSError as err:
            raise _refused(str(path), err.strerror or str(err)) from err
        before = os.umask(_PRIVATE)
        try:
            self._server.add_insecure_port(f"unix:{path}")
            self._sockets[path] = path.stat().st_ino
            self._listen_files(Path(files_path(os.fspath(path))))
        except (RuntimeError, OSError) as err:
            raise _refused(str(path), "the system refuses it") from err
        finally:
            os.umask(before)
        return f"unix://{path}"

    def _listen_files(self, path: Path) -> None:
        """Listen for files; a path that is too long for a socket leaves clients to upload."""
        try:
            _replace_stale(path, socket.SOCK_SEQPACKET)
            self._files.listen(path)
        except OSError as err:
            _log.warning("files can only be uploaded", path=str(path), error=str(err))
            return
        self._sockets[path] = path.stat().st_ino

    def listen_tcp(self, host: str, port: int, tls: TlsFiles | None) -> str:
        """Listen on a TCP port, 0 for any; returns the address with the real port.

        Raises:
            InvalidArgumentError: CONFIG_INVALID, the address is taken or not of this machine, or
                the TLS files do not fit.
        """
        shown = f"[{host}]" if ":" in host else host
        try:
            if tls is None:
                bound = self._server.add_insecure_port(f"{shown}:{port}")
            else:
                bound = self._server.add_secure_port(f"{shown}:{port}", _credentials(tls))
        except RuntimeError as err:
            problem = "the address is taken or not of this machine, or the TLS files do not fit"
            raise _refused(f"{shown}:{port}", problem) from err
        return f"{shown}:{bound}"

    async def start(self) -> None:
        """Answer; calls are refused until `open`."""
        await self._health.start()
        await self._server.start()
        self._files.start()

    async def open(self, *, serving: bool = True) -> None:
        """Let calls in, and if `serving` say in the health service whether they should come."""
        self._interceptor.open()
        self._waiting.start()
        if serving:
            await self.set_serving()

    async def set_serving(self) -> None:
        """Say in the health service, from now on, whether calls should come."""
        await self._health.open()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give those that have begun `grace_s` to end, then cancel them."""
        await self._health.stop()
        await asyncio.sleep(_TELL_S)
        self._operations.stop()
        self._interceptor.close()
        self._files.stop()
        await self._server.stop(grace_s)
        self._waiting.stop()
        await self._forwarder.close()
        self._files.close()
        for path, inode in self._sockets.items():
            if path.is_socket() and path.stat().st_ino == inode:
                path.unlink(missing_ok=True)

    async def gets_on(self) -> bool:
        """Say whether the threads for calls make progress; streams may take their time."""
        return await self._calls.gets_on() and await self._snapshots.gets_on()

    def close(self, timeout_s: float) -> bool:
        """Wait for threads that are still at work; say whether all have ended. Blocks."""
        pools = (self._streams, self._snapshots, self._calls)
        ended = [pool.close(timeout_s) for pool in pools]
        return all(ended)


class _Unregistered:
    """Takes what generated code adds to a server, but registers no methods with grpc's core.

    grpc.aio keeps a task for each registered method, and goes through all of them at each call
    before it begins: that made an empty call a fifth dearer. The interceptor knows the methods.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Do nothing: the generic handler has the same methods."""


def _replace_stale(path: Path, kind: socket.SocketKind) -> None:
    """Delete the socket of a server that has died."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PreconditionError(
            f"{path} exists and is no socket; move it away, or listen elsewhere",
            reason=Reason.WRONG_STATE,
        )
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass
    raise PreconditionError(
        f"a server is running at {path} already; stop it, or listen elsewhere",
        reason=Reason.WRONG_STATE,
    )


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    authority = None if tls.client_ca is None else tls.client_ca.read_bytes()
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=authority,
        require_client_auth=authority is not None,
    )


def _refused(address: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"cannot listen on {address}: {problem}; correct [server] listen",
        reason=Reason.CONFIG_INVALID,
    )
