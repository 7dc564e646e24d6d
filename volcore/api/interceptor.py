"""What every call passes: request id, deadline, the translation of errors, one line in the log."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from volcore import limits
from volcore.api.calls import CALLER, Caller, shutting_down
from volcore.api.forwarding import Forwarder, Replay
from volcore.api.waiting import Waiting
from volcore.errors import (
    InvalidArgumentError,
    InvariantViolationError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.wire import frames, status

_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._:/-]{{1,{limits.REQUEST_ID_BYTES_MAX}}}")
_OURS: Final = "/volcore."
_READERS: Final = {"/volcore.v1.ImageService/ImportImage": frames.unpack}
"""Methods whose messages are not read by protobuf."""
_log = structlog.get_logger("volcore.api")


class _Malformed:
    """Stands for a request that is no such message."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler once; `open` and `close` are the gate for calls of volcore's services."""

    def __init__(self, forwarder: Forwarder, waiting: Waiting) -> None:
        self._forwarder = forwarder
        self._waiting = waiting
        self._wrapped: dict[str, Any] = {}
        self._refusal: Callable[[], VolcoreError] | None = _starting
        self._idle: set[asyncio.Task[Any]] = set()

    def open(self) -> None:
        """Let calls in."""
        self._refusal = None

    def close(self) -> None:
        """Refuse new calls, and end streams of other services (health, reflection) that idle."""
        self._refusal = shutting_down
        for task in self._idle:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler; None (no such method) stays None."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._wrap(handler, method)
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        answer = _answer(inner, handler.response_streaming)

        async def here_or_there(request: Any, context: Any) -> Any:
            if handler.request_streaming:
                request = Replay(request)
            try:
                return await answer(request, context)
            except UnavailableError as err:
                return await self._forwarder.forward(err, method, handler, request, context)

        async def once(request: Any, context: Any) -> Any:
            return await self._run(method, here_or_there, request, context)

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            once,
            request_deserializer=_lenient(_READERS.get(method, handler.request_deserializer)),
            response_serializer=_passing(handler.response_serializer),
        )

    def _admit(self, request: Any) -> None:
        if self._refusal is not None:
            raise self._refusal()
        if is_malformed(request):
            raise malformed()

    async def _run(
        self,
        method: str,
        answer: Callable[[Any, Any], Awaitable[Any]],
        request: Any,
        context: Any,
    ) -> Any:
        caller = _caller(context)
        CALLER.set(caller)
        structlog.contextvars.bind_contextvars(request_id=caller.request_id)
        ours = method.startswith(_OURS)
        task = asyncio.current_task()
        assert task is not None
        if ours:
            self._waiting.add(task, request, context)
        else:
            self._idle.add(task)
            task.add_done_callback(self._idle.discard)
        started_s = time.monotonic()
        code, reason = "OK", ""
        try:
            # With the answer: metadata of its own would cost both sides a wake-up.
            context.set_trailing_metadata(((status.REQUEST_ID_KEY, caller.request_id),))
            if ours:
                self._admit(request)
            return await answer(request, context)
        except VolcoreError as err:
            code, reason = err.status, str(err.reason)
            await context.abort(*status.to_abort(err, request_id=caller.request_id))
        except grpc.aio.AbortError:
            code = "ABORTED_BY_SERVICE"
            raise
        except grpc.aio.InternalError:  # a stream's caller left while a message was sent
            code = "CANCELLED"
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            refusal: VolcoreError | None = self._waiting.refusal(task)
            if refusal is None and not ours and self._refusal is shutting_down:
                # By `close`: without a status grpc would wait for this call until the grace ends.
                refusal = shutting_down()
            if refusal is None:
                raise
            code, reason = refusal.status, str(refusal.reason)
            await context.abort(*status.to_abort(refusal, request_id=caller.request_id))
        except Exception:
            code, reason = "INTERNAL", str(Reason.INVARIANT_VIOLATION)
            _log.exception("unexpected error", method=method)
            broken = InvariantViolationError(
                f"an internal error; report it with the request id {caller.request_id}",
                reason=Reason.INVARIANT_VIOLATION,
            )
            await context.abort(*status.to_abort(broken, request_id=caller.request_id))
        finally:
            self._waiting.drop(task)
            line = partial(
                _log.info if ours else _log.debug,
                "call",
                method=method.removeprefix("/volcore.v1."),
                code=code,
                reason=reason,
                duration_ms=round((time.monotonic() - started_s) * 1000, 3),
            )
            # Once this task waits for its answer to be sent, so that the caller does not wait.
            asyncio.get_running_loop().call_soon(line)


def _answer(inner: Any, response_streaming: bool) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return a coroutine function that runs `inner` and, for a stream, writes what it yields."""

    async def stream(request: Any, context: Any) -> None:
        produced = inner(request, context)
        if not hasattr(produced, "__aiter__"):
            await produced
            return
        try:
            async for response in produced:
                await context.write(response)
        finally:
            await produced.aclose()

    async def unary(request: Any, context: Any) -> Any:
        return await inner(request, context)

    return stream if response_streaming else unary


def _caller(context: Any) -> Caller:
    """Return who calls; a request id that is missing or malformed is made anew."""
    found = ""
    for key, value in context.invocation_metadata() or ():
        if key == status.REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            found = value
    left_s = context.time_remaining()
    deadline_s = None if left_s is None else time.monotonic() + left_s
    return Caller(found or secrets.token_hex(8), deadline_s)


def _passing(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serializer that lets through what another server has serialized."""
    return lambda response: response if type(response) is bytes else serialize(response)


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Return a deserializer that never raises: an error inside grpc would be sent as UNKNOWN."""

    def read(raw: bytes) -> Any:
        if deserialize is None:
            return raw
        try:
            return deserialize(raw)
        except DecodeError:
            return _Malformed()

    return read


def is_malformed(message: object) -> bool:
    """Say whether a message of a request stream could not be read."""
    return isinstance(message, _Malformed)


def malformed() -> InvalidArgumentError:
    """Return the error for a request that is no such message."""
    return InvalidArgumentError(
        "the request is not a valid message of this call; use the current volcore.v1",
        reason=Reason.BAD_FIELD,
    )


def _starting() -> VolcoreError:
    return UnavailableError(
        "the server is starting; repeat the call in a moment",
        reason=Reason.SERVER_UNREACHABLE,
        retryable=True,
    )
