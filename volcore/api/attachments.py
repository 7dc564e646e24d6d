"""AttachmentService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from typing import Any

from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import attachment_message
from volcore.engine.views import AttachmentView
from volcore.v1 import attachment_service_pb2 as pb
from volcore.v1.attachment_service_pb2_grpc import AttachmentServiceServicer
from volcore.wire import convert, names


class AttachmentServicer(AttachmentServiceServicer):
    """Attachments."""

    def __init__(self, services: Services) -> None:
        self._attachments = services.engine.attachments
        self._run = services.calls.run

    async def AttachVolume(
        self, request: pb.AttachVolumeRequest, context: Any
    ) -> pb.AttachVolumeResponse:
        """See attachment_service.proto, here and below."""
        pool, volume = names.parse_volume(request.volume, field="volume")
        mode = convert.access_mode(request.access_mode)
        view = await self._run(
            self._attachments.attach,
            pool,
            volume,
            request.host,
            mode,
            hand_over_from=request.hand_over_from,
            client_addresses=request.client_addresses,
        )
        return pb.AttachVolumeResponse(attachment=attachment_message(pool, view))

    async def HandOverVolume(
        self, request: pb.HandOverVolumeRequest, context: Any
    ) -> pb.HandOverVolumeResponse:
        pool, volume = names.parse_volume(request.volume, field="volume")
        view = await self._run(self._attachments.hand_over, pool, volume, request.host)
        return pb.HandOverVolumeResponse(attachment=attachment_message(pool, view))

    async def GetAttachment(
        self, request: pb.GetAttachmentRequest, context: Any
    ) -> pb.GetAttachmentResponse:
        name = names.parse_attachment(request.name, field="name")
        view = await self._run(self._attachments.get, *name)
        return pb.GetAttachmentResponse(attachment=attachment_message(name.pool, view))

    async def ListAttachments(
        self, request: pb.ListAttachmentsRequest, context: Any
    ) -> pb.ListAttachmentsResponse:
        pool, volume = names.parse_volumes(request.parent, field="parent")

        def fetch(pool: str, after: str, limit: int) -> list[AttachmentView]:
            return self._attachments.list(pool, volume, after=after, limit=limit)

        found, token = await self._run(
            read_page,
            request,
            [pool],
            fetch=fetch,
            key=lambda view: view.record.key,
            message=attachment_message,
        )
        return pb.ListAttachmentsResponse(attachments=found, next_page_token=token)

    async def DetachVolume(
        self, request: pb.DetachVolumeRequest, context: Any
    ) -> pb.DetachVolumeResponse:
        pool, volume = names.parse_volume(request.volume, field="volume")
        await self._run(self._attachments.detach, pool, volume, request.host)
        return pb.DetachVolumeResponse()
