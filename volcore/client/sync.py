"""The sync client: one object per server, usable from any thread."""

import copy
import functools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Concatenate, ParamSpec, Self, TypeVar

import grpc

from volcore import limits
from volcore.client import adoption, calls, checks, deletes, hosts
from volcore.client.audit import (
    PoolCheck,
    PoolRebuild,
    check_request,
    export_request,
    import_requests,
    rebuild_request,
)
from volcore.client.calls import Call, Listing
from volcore.client.channel import ClientTls, Connections, split_endpoints, sync_channel
from volcore.client.diffs import diff_request, resume
from volcore.client.handover import offer
from volcore.client.retry import RetryPolicy, Tries
from volcore.client.transfer import (
    Download,
    OnBytes,
    OnProgress,
    Target,
    Upload,
    import_header,
    with_handle,
)
from volcore.errors import InvalidArgumentError, Reason, UnavailableError, VolcoreError
from volcore.v1 import image_pb2, image_service_pb2
from volcore.v1.snapshot_pb2 import SnapshotExtent
from volcore.wire import status

P = ParamSpec("P")
T = TypeVar("T")


def _unary(build: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(build_checked(build, *args, **kwargs))

    functools.update_wrapper(method, build)
    return method


def _paged(build: Callable[P, Listing[T]]) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._pages(build_checked(build, *args, **kwargs))

    functools.update_wrapper(method, build)
    return method


def build_checked(build: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `build` makes; a value that no message can hold is an InvalidArgumentError."""
    try:
        return build(*args, **kwargs)
    except ValueError as err:
        raise InvalidArgumentError(
            f"a value cannot be sent: {err}; correct it", reason=Reason.BAD_FIELD
        ) from err


class Client:
    """Calls volcore and returns the messages of `volcore.v1`; raises only `VolcoreError`.

    Each call has a deadline, is repeated by error class, and carries one request id through all its
    tries (`error.context["request_id"]`). Long streams (import, export) have no deadline unless
    `with_options` sets one; a dead connection is noticed all the same.

    *Concurrency*: any thread; one channel per endpoint.

    Args:
        endpoint: `unix:///path` or `host:port`, several joined by commas; None: the default socket.
        timeout_s: the deadline of each call, tries included.
        tls: for endpoints that speak TLS; unix sockets never do.
        retry: which pause follows a failed try, and how many there are.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout_s: float = limits.DEADLINE_S_DEFAULT,
        tls: ClientTls | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._stream_timeout_s: float | None = None
        self._request_id = ""
        self._retry = retry or RetryPolicy()
        self._connections = Connections(
            split_endpoints(endpoint), functools.partial(sync_channel, tls=tls)
        )

    create_volume = _unary(calls.create_volume)
    deploy_volumes = _unary(calls.deploy_volumes)
    get_volume = _unary(calls.get_volume)
    list_volumes = _paged(calls.list_volumes)
    update_volume = _unary(calls.update_volume)
    resize_volume = _unary(calls.resize_volume)
    revert_volume = _unary(calls.revert_volume)
    flatten_volume = _unary(calls.flatten_volume)
    verify_volume = _unary(checks.verify_volume)
    delete_volume = _unary(deletes.delete_volume)
    undelete_volume = _unary(deletes.undelete_volume)
    list_adoptable_images = _paged(adoption.list_adoptable_images)
    adopt_volume = _unary(adoption.adopt_volume)
    release_volume = _unary(adoption.release_volume)
    create_snapshot = _unary(calls.create_snapshot)
    get_snapshot = _unary(calls.get_snapshot)
    list_snapshots = _paged(calls.list_snapshots)
    rename_snapshot = _unary(adoption.rename_snapshot)
    verify_snapshot = _unary(checks.verify_snapshot)
    delete_snapshot = _unary(calls.delete_snapshot)
    create_group_snapshot = _unary(calls.create_group_snapshot)
    get_group_snapshot = _unary(calls.get_group_snapshot)
    list_group_snapshots = _paged(calls.list_group_snapshots)
    delete_group_snapshot = _unary(calls.delete_group_snapshot)
    publish_image = _unary(calls.publish_image)
    adopt_image = _unary(adoption.adopt_image)
    get_image = _unary(calls.get_image)
    list_images = _paged(calls.list_images)
    verify_image = _unary(checks.verify_image)
    delete_image = _unary(deletes.delete_image)
    attach_volume = _unary(calls.attach_volume)
    hand_over_volume = _unary(calls.hand_over_volume)
    get_attachment = _unary(calls.get_attachment)
    list_attachments = _paged(calls.list_attachments)
    detach_volume = _unary(calls.detach_volume)
    plan_fence = _unary(hosts.plan_fence)
    fence_host = _unary(hosts.fence_host)
    unfence_host = _unary(hosts.unfence_host)
    get_fenced_host = _unary(hosts.get_fenced_host)
    list_fenced_hosts = _paged(hosts.list_fenced_hosts)
    get_pool = _unary(calls.get_pool)
    list_pools = _paged(calls.list_pools)
    scrub_pool = _unary(checks.scrub_pool)
    get_operation = _unary(calls.get_operation)
    list_operations = _paged(calls.list_operations)
    wait_operation = _unary(calls.wait_operation)
    cancel_operation = _unary(calls.cancel_operation)

    def import_image(
        self,
        name: str,
        source: str | Path | BinaryIO | Iterable[bytes] | None = None,
        *,
        server_path: str = "",
        format: image_pb2.ImageFormat = image_pb2.IMAGE_FORMAT_UNSPECIFIED,
        expected_digest: str = "",
        labels: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> image_pb2.Image:
        """Import an image: send `source`, or let the server read its own `server_path`.

        `source` is a path, a readable binary file, or an iterator of pieces. A file goes to a
        server on this machine as an open descriptor, without copying; everything else is
        uploaded. Breaking it off leaves nothing on the server.
        """
        if (source is None) == (not server_path):
            raise InvalidArgumentError(
                "give either a source to upload or a server_path", reason=Reason.BAD_FIELD
            )
        upload = Upload(source if source is not None else ())
        header = build_checked(
            import_header,
            name,
            format=format,
            server_path=server_path,
            upload_size_bytes=upload.size_bytes,
            expected_digest=expected_digest,
            labels=labels,
        )

        def requests(handle: str) -> Iterator[image_service_pb2.ImportImageRequest | bytes]:
            if handle:
                yield with_handle(header, handle)
                return
            yield header
            yield from upload.frames()

        def once(method: Any, **options: Any) -> image_pb2.Image:
            offered = offer(self._connections.target, upload, options["timeout"])
            stream = method(requests(offered.handle), **options)
            try:
                for response in stream:
                    if response.HasField("image"):
                        if offered.handle:
                            upload.finish()
                        return response.image  # type: ignore[no-any-return]
                    if on_progress is not None:
                        on_progress(response.progress)
            except grpc.RpcError:
                if upload.error is not None:
                    raise upload.error from None
                raise
            finally:
                stream.cancel()
                offered.close()
            raise unfinished()

        return self._tried(
            "ImageService",
            "ImportImage",
            once,
            timeout_s=self._stream_timeout_s,
            repeatable=upload.repeatable or bool(server_path),
        )

    def export_image(
        self,
        name: str,
        target: str | Path | BinaryIO,
        *,
        format: image_pb2.ImageFormat = image_pb2.IMAGE_FORMAT_RAW,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Write the content of an image to `target`: a path, or a writable binary file.

        A path gets the file only when it is complete; holes stay holes where `target` can seek. A
        path, and a regular file from where it stands, is written again when the connection breaks.
        """
        request = build_checked(image_service_pb2.ExportImageRequest, name=name, format=format)
        goal = Target(target)

        def once(method: Any, **options: Any) -> None:
            stream = method(request, **options)
            try:
                with goal.open() as file:
                    download = Download(file, on_bytes)
                    for piece in stream:
                        download.take(piece)
                    download.finish()
            finally:
                stream.cancel()

        self._tried(
            "ImageService",
            "ExportImage",
            once,
            timeout_s=self._stream_timeout_s,
            repeatable=goal.repeatable,
        )

    def diff_snapshot(
        self, name: str, *, base_snapshot: str = "", starting_offset_bytes: int = 0
    ) -> list[SnapshotExtent]:
        """Return where a snapshot may differ from an earlier one of its volume, ascending.

        Without `base_snapshot` (full name): where it holds data. A list that breaks off is resumed.
        """
        request = build_checked(diff_request, name, base_snapshot, starting_offset_bytes)
        found: list[SnapshotExtent] = []

        def once(method: Any, **options: Any) -> list[SnapshotExtent]:
            resume(request, found)
            for response in method(request, **options):
                found.extend(response.extents)
            return found

        return self._tried(
            "SnapshotService", "DiffSnapshot", once, timeout_s=self._stream_timeout_s
        )

    def check_pool(self, name: str, *, repair: bool = False, objects: bool = False) -> PoolCheck:
        """Return every contradiction between the records of a pool and its storage.

        With `repair` what is safe is mended; with `objects` those that images have left are looked
        for, too, which reads the names of all objects of a Ceph pool.
        """
        request = build_checked(check_request, name, repair, objects)
        found = PoolCheck()

        def once(method: Any, **options: Any) -> PoolCheck:
            found.begin()
            for response in method(request, **options):
                found.take(response)
            return found.finish()

        return self._tried("PoolService", "CheckPool", once, timeout_s=self._stream_timeout_s)

    def export_catalog(self, name: str) -> bytes:
        """Return the records of a pool as JSON lines, see docs/formats/export.md."""
        request = build_checked(export_request, name)

        def once(method: Any, **options: Any) -> bytes:
            return b"".join(response.data for response in method(request, **options))

        return self._tried("PoolService", "ExportCatalog", once, timeout_s=self._stream_timeout_s)

    def import_catalog(self, name: str, data: bytes) -> int:
        """Write the records of an export into the empty catalog of a pool; return how many."""

        def once(method: Any, **options: Any) -> int:
            return int(method(import_requests(name, data), **options).record_count)

        return self._tried("PoolService", "ImportCatalog", once, timeout_s=self._stream_timeout_s)

    def rebuild_catalog(self, name: str) -> PoolRebuild:
        """Make the lost catalog of a pool again from what its storage carries."""
        request = build_checked(rebuild_request, name)

        def once(method: Any, **options: Any) -> PoolRebuild:
            found = PoolRebuild()
            for response in method(request, **options):
                found.take(response)
            return found.finish()

        return self._tried("PoolService", "RebuildCatalog", once, timeout_s=self._stream_timeout_s)

    def with_options(self, *, timeout_s: float | None = None, request_id: str = "") -> Self:
        """Return this client with another deadline, for streams too, or a fixed request id.

        It shares the connection: close either of them once.
        """
        other = copy.copy(self)
        if timeout_s is not None:
            other._timeout_s = other._stream_timeout_s = timeout_s
        other._request_id = request_id or self._request_id
        return other

    def close(self) -> None:
        """Close the connection; idempotent."""
        for channel in self._connections.drain():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, call: Call[T]) -> T:
        def once(method: Any, **options: Any) -> T:
            return call.take(method(call.request, **options))

        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        return self._tried(call.service, call.rpc, once, timeout_s=timeout_s)

    def _pages(self, listing: Listing[T]) -> Iterator[T]:
        token = ""
        while True:
            items, token = self._call(listing.page(token))
            yield from items
            if not token:
                return

    def _tried(
        self,
        service: str,
        rpc: str,
        once: Callable[..., T],
        *,
        timeout_s: float | None,
        repeatable: bool = True,
    ) -> T:
        """Return what `once` returns, trying again as the policy and the deadline allow."""
        tries = Tries(self._retry, timeout_s, endpoint_count=self._connections.count)
        request_id = self._request_id or secrets.token_hex(8)
        while True:
            at, method = self._connections.method(service, rpc)
            try:
                return once(
                    method,
                    timeout=tries.timeout_s,
                    metadata=((status.REQUEST_ID_KEY, request_id), *tries.metadata),
                )
            except grpc.RpcError as err:
                error = status.from_rpc_error(err, request_id=request_id)
                pause_s = tries.pause_after(error) if repeatable else None
                if pause_s is None:
                    raise error from err
            if isinstance(error, UnavailableError):
                self._connections.turn_from(at)
            time.sleep(pause_s)


def unfinished() -> VolcoreError:
    """Return the error for a stream that ended well but without its result."""
    return UnavailableError(
        "the server ended the import without a result; repeat the call",
        reason=Reason.SERVER_UNREACHABLE,
        retryable=True,
    )
