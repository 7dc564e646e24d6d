"""OperationService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

import asyncio
import time
from typing import Any, Final

from volcore import limits
from volcore.api.calls import CALLER, shutting_down
from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import operation_message
from volcore.errors import OutOfRangeError, Reason
from volcore.model import records
from volcore.v1 import operation_pb2
from volcore.v1 import operation_service_pb2 as pb
from volcore.v1.operation_service_pb2_grpc import OperationServiceServicer
from volcore.wire import names

_LOOK_S_MIN: Final = 0.005
_LOOK_S_MAX: Final = 1.0
_LOOK_SHARE: Final = 0.1
"""A wait looks again after a tenth of the time that it has lasted: at most a tenth too late."""


class OperationServicer(OperationServiceServicer):
    """Operations. Waiting holds no thread: it looks, sleeps and looks again."""

    def __init__(self, services: Services) -> None:
        self._operations = services.engine.operations
        self._services = services
        self._run = services.calls.run
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all waits with SHUTTING_DOWN, which clients repeat."""
        self._stopping.set()

    async def GetOperation(
        self, request: pb.GetOperationRequest, context: Any
    ) -> pb.GetOperationResponse:
        """See operation_service.proto, here and below."""
        name = names.parse_operation(request.name, field="name")
        operation = await self._run(self._operations.get, *name)
        return pb.GetOperationResponse(operation=operation_message(name.pool, operation))

    async def ListOperations(
        self, request: pb.ListOperationsRequest, context: Any
    ) -> pb.ListOperationsResponse:
        def fetch(pool: str, after: str, limit: int) -> list[records.Operation]:
            return self._operations.list(pool, after=after, limit=limit)

        found, token = await self._run(
            read_page,
            request,
            self._services.pools(request.parent),
            fetch=fetch,
            key=lambda record: record.key,
            message=_without_damage,
        )
        return pb.ListOperationsResponse(operations=found, next_page_token=token)

    async def WaitOperation(
        self, request: pb.WaitOperationRequest, context: Any
    ) -> pb.WaitOperationResponse:
        name = names.parse_operation(request.name, field="name")
        begun_s = time.monotonic()
        until_s = begun_s + _wait_s(request)
        while True:
            operation = await self._run(self._operations.get, *name)
            now_s = time.monotonic()
            if operation.finished or now_s >= until_s:
                return pb.WaitOperationResponse(operation=operation_message(name.pool, operation))
            pause_s = min(max((now_s - begun_s) * _LOOK_SHARE, _LOOK_S_MIN), _LOOK_S_MAX)
            try:
                await asyncio.wait_for(self._stopping.wait(), min(pause_s, until_s - now_s))
            except TimeoutError:
                continue
            raise shutting_down()

    async def CancelOperation(
        self, request: pb.CancelOperationRequest, context: Any
    ) -> pb.CancelOperationResponse:
        name = names.parse_operation(request.name, field="name")
        operation = await self._run(self._operations.cancel, *name)
        return pb.CancelOperationResponse(operation=operation_message(name.pool, operation))


def _without_damage(pool: str, record: records.Operation) -> operation_pb2.Operation:
    """Return the message of an operation in a list: what checks found would make it too long."""
    message = operation_message(pool, record)
    if message.HasField("check"):
        message.check.ClearField("damage")
    return message


def _wait_s(request: pb.WaitOperationRequest) -> float:
    """Return how long to wait; without a timeout, a little less than the call's deadline."""
    if not request.HasField("timeout"):
        deadline_s = CALLER.get().deadline_s
        if deadline_s is None:
            return limits.WAIT_TIMEOUT_S_MAX
        return max(0.0, (deadline_s - time.monotonic()) * 0.95)
    timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
    if not 0 <= timeout_s <= limits.WAIT_TIMEOUT_S_MAX:
        raise OutOfRangeError(
            f"timeout is {timeout_s:g} s; it must be between 0 and {limits.WAIT_TIMEOUT_S_MAX}",
            reason=Reason.BAD_FIELD,
            field="timeout",
        )
    return timeout_s
