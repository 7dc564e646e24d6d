"""Endpoints and channels: where the server is, and how a connection to it is set up."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio

from volcore.errors import InvalidArgumentError, Reason
from volcore.v1 import (
    attachment_service_pb2_grpc,
    group_snapshot_service_pb2_grpc,
    host_service_pb2_grpc,
    image_service_pb2,
    image_service_pb2_grpc,
    operation_service_pb2_grpc,
    pool_service_pb2_grpc,
    snapshot_service_pb2_grpc,
    volume_service_pb2_grpc,
)
from volcore.wire import frames
from volcore.wire.channels import OPTIONS

ChannelT = TypeVar("ChannelT")
DEFAULT_ENDPOINT: Final = "unix:///run/volcore/volcore.sock"


def _image_stub(channel: Any) -> Any:
    """Return a stub whose ImportImage takes bytes for a message with nothing but `data`."""
    stub: Any = image_service_pb2_grpc.ImageServiceStub(channel)
    stub.ImportImage = channel.stream_stream(
        "/volcore.v1.ImageService/ImportImage",
        request_serializer=frames.pack,
        response_deserializer=image_service_pb2.ImportImageResponse.FromString,
    )
    return stub


_STUBS: Final[dict[str, Callable[[Any], Any]]] = {
    "VolumeService": volume_service_pb2_grpc.VolumeServiceStub,
    "GroupSnapshotService": group_snapshot_service_pb2_grpc.GroupSnapshotServiceStub,
    "SnapshotService": snapshot_service_pb2_grpc.SnapshotServiceStub,
    "ImageService": _image_stub,
    "AttachmentService": attachment_service_pb2_grpc.AttachmentServiceStub,
    "HostService": host_service_pb2_grpc.HostServiceStub,
    "PoolService": pool_service_pb2_grpc.PoolServiceStub,
    "OperationService": operation_service_pb2_grpc.OperationServiceStub,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """How to prove who is who: the server's authority, and the client's own certificate.

    Paths of PEM files. Without `ca` the system's authorities count.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what grpc needs.

        Raises:
            InvalidArgumentError: CONFIG_INVALID, a file cannot be read.
        """
        ca, key, certificate = (_read(path) for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


def split_endpoints(endpoint: str | None) -> tuple[str, ...]:
    """Return the grpc targets that `endpoint` lists, comma-separated.

    Each is `unix:///path` or `host:port`.

    Raises:
        InvalidArgumentError: BAD_FIELD.
    """
    targets = tuple(one.strip() for one in (endpoint or DEFAULT_ENDPOINT).split(",") if one.strip())
    for target in targets:
        host, _, port = target.rpartition(":")
        unix = target.startswith("unix:/") and len(target) > len("unix:/")
        if not unix and not (host and port.isdigit() and 0 < int(port) < 1 << 16):
            break
    else:
        if targets:
            return targets
    raise InvalidArgumentError(
        f"endpoint {endpoint!r} must be unix:///path or host:port, several joined by commas",
        reason=Reason.BAD_FIELD,
        field="endpoint",
    )


def socket_path(target: str) -> str:
    """Return the path of a target's unix socket, empty for TCP."""
    if not target.startswith("unix:"):
        return ""
    path = target.removeprefix("unix:")
    return path[2:] if path.startswith("//") else path


class Connections(Generic[ChannelT]):
    """One channel per endpoint, made when first needed; the one that answers is stayed with."""

    def __init__(self, targets: Sequence[str], make: Callable[[str], ChannelT]) -> None:
        self._targets = targets
        self._make = make
        self._lock = threading.Lock()
        self._index = 0
        self._channels: dict[int, ChannelT] = {}
        self._stubs: dict[tuple[int, str], Any] = {}

    def method(self, service: str, name: str) -> tuple[int, Any]:
        """Return the present endpoint's number, and the callable of one rpc there."""
        with self._lock:
            at = self._index
            if at not in self._channels:
                self._channels[at] = self._make(self._targets[at])
            if (at, service) not in self._stubs:
                self._stubs[at, service] = _STUBS[service](self._channels[at])
            return at, getattr(self._stubs[at, service], name)

    @property
    def target(self) -> str:
        """The present endpoint."""
        return self._targets[self._index]

    @property
    def count(self) -> int:
        """How many endpoints there are."""
        return len(self._targets)

    def turn_from(self, at: int) -> None:
        """Turn to the endpoint after that one, unless another call has turned from it already."""
        with self._lock:
            if self._index == at:
                self._index = (at + 1) % len(self._targets)

    def drain(self) -> list[ChannelT]:
        """Forget all channels and return them, for closing."""
        with self._lock:
            channels = list(self._channels.values())
            self._channels.clear()
            self._stubs.clear()
            return channels


def sync_channel(target: str, tls: ClientTls | None) -> grpc.Channel:
    """Return a channel for threads; connects when first used."""
    if tls is None or target.startswith("unix:"):
        return grpc.insecure_channel(target, options=OPTIONS)
    return grpc.secure_channel(target, tls.credentials(), options=OPTIONS)


def async_channel(target: str, tls: ClientTls | None) -> grpc.aio.Channel:
    """Return a channel for the running event loop; connects when first used."""
    if tls is None or target.startswith("unix:"):
        return grpc.aio.insecure_channel(target, options=OPTIONS)
    return grpc.aio.secure_channel(target, tls.credentials(), options=OPTIONS)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as err:
        raise InvalidArgumentError(
            f"the TLS file {path} cannot be read: {err.strerror}; correct the path",
            reason=Reason.CONFIG_INVALID,
        ) from err
