"""The async client: the calls of the sync client as coroutines, lists as async iterators."""

import asyncio
import copy
import functools
import secrets
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
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
from volcore.client.channel import ClientTls, Connections, async_channel, split_endpoints
from volcore.client.diffs import diff_request, resume
from volcore.client.handover import offer
from volcore.client.retry import RetryPolicy, Tries
from volcore.client.sync import build_checked, unfinished
from volcore.client.transfer import (
    Download,
    OnBytes,
    OnProgress,
    Target,
    Upload,
    import_header,
    with_handle,
)
from volcore.errors import InvalidArgumentError, Reason, UnavailableError
from volcore.v1 import image_pb2, image_service_pb2, pool_service_pb2
from volcore.v1.snapshot_pb2 import SnapshotExtent
from volcore.wire import status

P = ParamSpec("P")
T = TypeVar("T")


def _unary(
    build: Callable[P, Call[T]],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(build_checked(build, *args, **kwargs))

    functools.update_wrapper(method, build)
    return method


def _paged(
    build: Callable[P, Listing[T]],
) -> "Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]":
    def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._pages(build_checked(build, *args, **kwargs))

    functools.update_wrapper(method, build)
    return method


class AsyncClient:
    """Like `volcore.client.Client`, for one running event loop."""

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
            split_endpoints(endpoint), functools.partial(async_channel, tls=tls)
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

    async def import_image(
        self,
        name: str,
        source: str | Path | BinaryIO | Iterable[bytes] | AsyncIterable[bytes] | None = None,
        *,
        server_path: str = "",
        format: image_pb2.ImageFormat = image_pb2.IMAGE_FORMAT_UNSPECIFIED,
        expected_digest: str = "",
        labels: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> image_pb2.Image:
        """Import an image, see `Client.import_image`; files are read in a thread."""
        if (source is None) == (not server_path):
            raise InvalidArgumentError(
                "give either a source to upload or a server_path", reason=Reason.BAD_FIELD
            )
        pieces = source if isinstance(source, AsyncIterable) else None
        upload = Upload(() if source is None or isinstance(source, AsyncIterable) else source)
        header = build_checked(
            import_header,
            name,
            format=format,
            server_path=server_path,
            upload_size_bytes=upload.size_bytes,
            expected_digest=expected_digest,
            labels=labels,
        )

        async def requests(
            handle: str,
        ) -> AsyncIterator[image_service_pb2.ImportImageRequest | bytes]:
            if handle:
                yield with_handle(header, handle)
                return
            yield header
            frames = _in_thread(upload.frames()) if pieces is None else _split(pieces)
            async for frame in frames:
                yield frame

        async def once(method: Any, **options: Any) -> image_pb2.Image:
            offered = await asyncio.to_thread(
                offer, self._connections.target, upload, options["timeout"]
            )
            stream = method(requests(offered.handle), **options)
            try:
                async for response in stream:
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

        return await self._tried(
            "ImageService",
            "ImportImage",
            once,
            timeout_s=self._stream_timeout_s,
            repeatable=pieces is None and (upload.repeatable or bool(server_path)),
        )

    async def export_image(
        self,
        name: str,
        target: str | Path | BinaryIO,
        *,
        format: image_pb2.ImageFormat = image_pb2.IMAGE_FORMAT_RAW,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Write the content of an image to `target`, see `Client.export_image`."""
        request = build_checked(image_service_pb2.ExportImageRequest, name=name, format=format)
        goal = Target(target)

        async def once(method: Any, **options: Any) -> None:
            stream = method(request, **options)
            try:
                with goal.open() as file:
                    download = Download(file, on_bytes)
                    async for piece in stream:
                        await asyncio.to_thread(download.take, piece)
                    await asyncio.to_thread(download.finish)
            finally:
                stream.cancel()

        await self._tried(
            "ImageService",
            "ExportImage",
            once,
            timeout_s=self._stream_timeout_s,
            repeatable=goal.repeatable,
        )

    async def diff_snapshot(
        self, name: str, *, base_snapshot: str = "", starting_offset_bytes: int = 0
    ) -> list[SnapshotExtent]:
        """Return where a snapshot may differ from an earlier one of its volume, ascending.

        Without `base_snapshot` (full name): where it holds data. A list that breaks off is resumed.
        """
        request = build_checked(diff_request, name, base_snapshot, starting_offset_bytes)
        found: list[SnapshotExtent] = []

        async def once(method: Any, **options: Any) -> list[SnapshotExtent]:
            resume(request, found)
            async for response in method(request, **options):
                found.extend(response.extents)
            return found

        return await self._tried(
            "SnapshotService", "DiffSnapshot", once, timeout_s=self._stream_timeout_s
        )

    async def check_pool(
        self, name: str, *, repair: bool = False, objects: bool = False
    ) -> PoolCheck:
        """Return every contradiction between the records of a pool and its storage.

        With `repair` what is safe is mended; with `objects` those that images have left are looked
        for, too, which reads the names of all objects of a Ceph pool.
        """
        request = build_checked(check_request, name, repair, objects)
        found = PoolCheck()

        async def once(method: Any, **options: Any) -> PoolCheck:
            found.begin()
            async for response in method(request, **options):
                found.take(response)
            return found.finish()

        return await self._tried("PoolService", "CheckPool", once, timeout_s=self._stream_timeout_s)

    async def export_catalog(self, name: str) -> bytes:
        """Return the records of a pool as JSON lines, see docs/formats/export.md."""
        request = build_checked(export_request, name)

        async def once(method: Any, **options: Any) -> bytes:
            return b"".join([response.data async for response in method(request, **options)])

        return await self._tried(
            "PoolService", "ExportCatalog", once, timeout_s=self._stream_timeout_s
        )

    async def import_catalog(self, name: str, data: bytes) -> int:
        """Write the records of an export into the empty catalog of a pool; return how many."""

        async def once(method: Any, **options: Any) -> int:
            async def messages() -> AsyncIterator[pool_service_pb2.ImportCatalogRequest]:
                for request in import_requests(name, data):
                    yield request

            response = await method(messages(), **options)
            return int(response.record_count)

        return await self._tried(
            "PoolService", "ImportCatalog", once, timeout_s=self._stream_timeout_s
        )

    async def rebuild_catalog(self, name: str) -> PoolRebuild:
        """Make the lost catalog of a pool again from what its storage carries."""
        request = build_checked(rebuild_request, name)

        async def once(method: Any, **options: Any) -> PoolRebuild:
            found = PoolRebuild()
            async for response in method(request, **options):
                found.take(response)
            return found.finish()

        return await self._tried(
            "PoolService", "RebuildCatalog", once, timeout_s=self._stream_timeout_s
        )

    def with_options(self, *, timeout_s: float | None = None, request_id: str = "") -> Self:
        """Return this client with another deadline or a fixed request id, see `Client`."""
        other = copy.copy(self)
        if timeout_s is not None:
            other._timeout_s = other._stream_timeout_s = timeout_s
        other._request_id = request_id or self._request_id
        return other

    async def close(self) -> None:
        """Close the connection; idempotent."""
        for channel in self._connections.drain():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(self, call: Call[T]) -> T:
        async def once(method: Any, **options: Any) -> T:
            return call.take(await method(call.request, **options))

        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        return await self._tried(call.service, call.rpc, once, timeout_s=timeout_s)

    async def _pages(self, listing: Listing[T]) -> AsyncIterator[T]:
        token = ""
        while True:
            items, token = await self._call(listing.page(token))
            for item in items:
                yield item
            if not token:
                return

    async def _tried(
        self,
        service: str,
        rpc: str,
        once: Callable[..., Awaitable[T]],
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
                return await once(
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
            await asyncio.sleep(pause_s)


async def _in_thread(frames: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (frame := await asyncio.to_thread(next, frames, None)) is not None:
        yield frame


async def _split(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        for at in range(0, len(piece), limits.FRAME_BYTES_MAX):
            yield piece[at : at + limits.FRAME_BYTES_MAX]
