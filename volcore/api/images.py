"""ImageService; its streams move bytes between the event loop and the engine's iterators."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from volcore import limits
from volcore.api.interceptor import is_malformed, malformed
from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.streams import ProgressFeed, Upload, broken_off
from volcore.api.views import operation_message
from volcore.api.volumes import check_same_pool
from volcore.backends.adopting import ForeignSource
from volcore.engine.views import ImageExport, ImportRequest
from volcore.errors import InvalidArgumentError, OutOfRangeError, Reason, VolcoreError
from volcore.model import records
from volcore.v1 import image_service_pb2 as pb
from volcore.v1.image_service_pb2_grpc import ImageServiceServicer
from volcore.wire import convert, names


class ImageServicer(ImageServiceServicer):
    """Images."""

    def __init__(self, services: Services) -> None:
        self._images = services.engine.images
        self._checks = services.engine.checks
        self._services = services
        self._run = services.calls.run
        self._closing: set[asyncio.Task[None]] = set()

    async def ImportImage(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[pb.ImportImageResponse]:
        """See image_service.proto, here and below."""
        requests = aiter(request_iterator)
        header = _header(await anext(requests, None))
        pool = names.parse_pool(header.parent, field="parent").pool
        await self._services.here(pool, names_file=bool(header.server_path or header.handed_file))
        handed = self._services.files.take(header.handed_file) if header.handed_file else None
        upload = None if header.server_path or handed is not None else Upload()
        progress = ProgressFeed()
        wanted = ImportRequest(
            name=header.image_id,
            format_name=convert.format_name(header.format),
            server_path=header.server_path,
            handed=handed,
            chunks=None if upload is None else iter(upload),
            upload_size_bytes=header.upload_size_bytes,
            expected_digest=header.expected_digest,
            labels=dict(header.labels),
        )
        tasks: list[asyncio.Task[Any]] = []
        if upload is not None:
            feed = _feed(requests, upload, header.upload_size_bytes, progress)
            tasks.append(asyncio.create_task(feed))
        work = asyncio.create_task(
            self._services.streams.run(self._images.import_image, pool, wanted, progress.put)
        )
        tasks.append(work)
        try:
            async for operation in progress.until(work):
                yield pb.ImportImageResponse(progress=operation_message(pool, operation))
            yield pb.ImportImageResponse(image=convert.image_message(pool, await work))
        finally:
            if upload is not None:
                upload.fail(broken_off())
            if handed is not None:
                handed.withdraw()
            for task in tasks:
                task.cancel()

    async def PublishImage(
        self, request: pb.PublishImageRequest, context: Any
    ) -> pb.PublishImageResponse:
        pool = names.parse_pool(request.parent, field="parent").pool
        snapshot = names.parse_snapshot(request.snapshot, field="snapshot")
        check_same_pool(pool, snapshot.pool, field="snapshot")
        image = await self._services.streams.run(
            self._images.publish,
            pool,
            request.image_id,
            snapshot.volume,
            snapshot.snapshot,
            labels=dict(request.labels),
        )
        return pb.PublishImageResponse(image=convert.image_message(pool, image))

    async def AdoptImage(
        self, request: pb.AdoptImageRequest, context: Any
    ) -> pb.AdoptImageResponse:
        pool = names.parse_pool(request.parent, field="parent").pool
        source = ForeignSource(
            cluster_id=request.source.cluster_fsid,
            pool=request.source.pool,
            image=request.source.image,
            snapshot=request.source.snapshot,
        )
        image = await self._run(
            self._images.adopt, pool, request.image_id, source, labels=dict(request.labels)
        )
        return pb.AdoptImageResponse(image=convert.image_message(pool, image))

    async def ExportImage(
        self, request: pb.ExportImageRequest, context: Any
    ) -> AsyncIterator[pb.ExportImageResponse]:
        name = names.parse_image(request.name, field="name")
        form = convert.format_name(request.format) or "raw"
        run = self._services.streams.run
        export = await run(self._images.export, name.pool, name.image, form)
        reading = asyncio.create_task(run(next, export.pieces, None))
        try:
            yield pb.ExportImageResponse(file_size_bytes=export.file_size_bytes)
            while (piece := await asyncio.shield(reading)) is not None:
                reading = asyncio.create_task(run(next, export.pieces, None))
                offset_bytes, data = piece
                for at in range(0, len(data), limits.FRAME_BYTES_MAX):
                    yield pb.ExportImageResponse(
                        offset_bytes=offset_bytes + at,
                        data=bytes(data[at : at + limits.FRAME_BYTES_MAX]),
                    )
        finally:
            closing = asyncio.create_task(_close(reading, export))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def GetImage(self, request: pb.GetImageRequest, context: Any) -> pb.GetImageResponse:
        name = names.parse_image(request.name, field="name")
        image = await self._run(self._images.get, *name)
        return pb.GetImageResponse(image=convert.image_message(name.pool, image))

    async def ListImages(
        self, request: pb.ListImagesRequest, context: Any
    ) -> pb.ListImagesResponse:
        def fetch(pool: str, after: str, limit: int) -> list[records.Image]:
            return self._images.list(pool, after=after, limit=limit)

        found, token = await self._run(
            read_page,
            request,
            self._services.pools(request.parent),
            fetch=fetch,
            key=lambda record: record.key,
            message=convert.image_message,
        )
        return pb.ListImagesResponse(images=found, next_page_token=token)

    async def VerifyImage(
        self, request: pb.VerifyImageRequest, context: Any
    ) -> pb.VerifyImageResponse:
        name = names.parse_image(request.name, field="name")
        operation = await self._run(self._checks.verify_image, *name, heal=request.heal)
        return pb.VerifyImageResponse(operation=operation_message(name.pool, operation))

    async def DeleteImage(
        self, request: pb.DeleteImageRequest, context: Any
    ) -> pb.DeleteImageResponse:
        name = names.parse_image(request.name, field="name")
        await self._run(self._images.delete, *name)
        return pb.DeleteImageResponse()


async def _feed(requests: Any, upload: Upload, size_bytes: int, progress: ProgressFeed) -> None:
    """Pass the data messages of a stream on to `upload`; whatever goes wrong ends up there.

    A connection that breaks looks like the end of the stream, and only a moment later like a
    cancellation. So an upload of unknown size counts as complete only when its sender has been
    told something after the end: nothing can be sent over a stream that is broken.
    """
    received_bytes = 0
    try:
        async for request in requests:
            frame = _data(request)
            received_bytes += len(frame)
            if size_bytes and received_bytes > size_bytes:
                raise _wrong_size(received_bytes, size_bytes)
            if frame:
                await upload.put(frame)
        if not size_bytes:
            await progress.received()
        elif received_bytes != size_bytes:
            raise _wrong_size(received_bytes, size_bytes)
        upload.end()
    except VolcoreError as err:
        upload.fail(err)
    finally:
        upload.fail(broken_off())  # no effect after an orderly end


async def _close(reading: asyncio.Task[Any], export: ImageExport) -> None:
    """Close the iterator of an export once nobody is inside it any more."""
    await asyncio.wait({reading})
    if not reading.cancelled():
        reading.exception()  # it was told, or its caller has left
    close = getattr(export.pieces, "close", None)
    if close is not None:
        await asyncio.to_thread(close)


def _header(request: pb.ImportImageRequest | memoryview | None) -> pb.ImportHeader:
    if request is not None and is_malformed(request):
        raise malformed()
    if (
        request is None
        or isinstance(request, memoryview)
        or request.WhichOneof("payload") != "header"
    ):
        raise InvalidArgumentError(
            "the first message of an import must be a header; send one",
            reason=Reason.BAD_FIELD,
            field="header",
        )
    if request.header.server_path and request.header.handed_file:
        raise InvalidArgumentError(
            "an import reads either server_path or handed_file; give one of them",
            reason=Reason.BAD_FIELD,
            field="handed_file",
        )
    if request.header.upload_size_bytes < 0:
        raise OutOfRangeError(
            f"upload_size_bytes is {request.header.upload_size_bytes}; it must be 0 (unknown) or "
            "more",
            reason=Reason.BAD_FIELD,
            field="upload_size_bytes",
        )
    return request.header


def _data(request: pb.ImportImageRequest | memoryview) -> bytes | memoryview:
    """Return the bytes of a data message, which usually comes without its message."""
    if is_malformed(request):
        raise malformed()
    data: bytes | memoryview | None = None
    if isinstance(request, memoryview):
        data = request
    elif request.WhichOneof("payload") == "data":
        data = request.data
    if data is None or len(data) > limits.FRAME_BYTES_MAX:
        raise InvalidArgumentError(
            f"after the header come messages with at most {limits.FRAME_BYTES_MAX} bytes of data; "
            "send only those",
            reason=Reason.BAD_FIELD,
            field="data",
        )
    return data


def _wrong_size(received_bytes: int, size_bytes: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the upload has {received_bytes} bytes or more where upload_size_bytes says {size_bytes}; "
        "send the whole file, or correct the size",
        reason=Reason.BAD_FIELD,
        field="upload_size_bytes",
    )
