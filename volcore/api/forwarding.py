"""Calls for a pool that another server has are forwarded to that one, and its answer is returned.

So every server answers every call, and a caller may know any one of them. A caller that knows
several says so (`DIRECT_KEY`) and is told who has the pool instead: then it goes there itself.

Not forwarded are uploads of which more than REPLAYED_MAX messages have been read, and what names a
file of this host.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from volcore.credentials import TlsFiles
from volcore.errors import Reason, UnavailableError
from volcore.wire import frames, status
from volcore.wire.channels import DIRECT_KEY, FORWARDED_KEY, OPTIONS

_LOOK_S: Final = 0.2
"""How often it is seen whether the pool is still there."""
REPLAYED_MAX: Final = 2
"""Messages of a stream that are kept until it is known where they go."""
_log = structlog.get_logger("volcore.api")


class Replay:
    """The messages of a caller; the first ones can be had again."""

    def __init__(self, messages: Any) -> None:
        self._messages = aiter(messages)
        self._first: list[Any] = []
        self._count = 0

    def __aiter__(self) -> "Replay":
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._messages)
        self._count += 1
        if self._count <= REPLAYED_MAX:
            self._first.append(message)
        return message

    @property
    def complete(self) -> bool:
        """Whether all that was read can be had again."""
        return self._count <= REPLAYED_MAX

    async def again(self) -> AsyncIterator[bytes]:
        """Yield all messages as they were sent."""
        for message in self._first:
            yield frames.pack(message)
        async for message in self._messages:
            yield frames.pack(message)


class Forwarder:
    """Forwards calls; belongs to one event loop."""

    def __init__(self, tls: TlsFiles | None, where: Callable[[str], str]) -> None:
        """Connect nothing yet.

        Args:
            where: returns the endpoint of the server that has a pool now, as far as it is known.
            tls: what this server shows to other servers as their client; its `client_ca` is what
                they are checked against.
        """
        self._tls = tls
        self._where = where
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def forward(
        self, refusal: UnavailableError, method: str, handler: Any, request: Any, context: Any
    ) -> Any:
        """Return the other server's answer as bytes; None when it was written to the stream.

        Raises:
            UnavailableError: `refusal`, the call cannot be forwarded, nobody answers there, or the
                pool has moved meanwhile; then the outcome is unknown, as calls may be repeated.
            VolcoreError: the other server's.
        """
        endpoint = refusal.context.get("endpoint", "")
        said = dict(context.invocation_metadata() or ())
        replayable = not isinstance(request, Replay) or request.complete
        if not endpoint or not replayable or said.keys() & {DIRECT_KEY, FORWARDED_KEY}:
            raise refusal
        kept = said.keys() & {status.REQUEST_ID_KEY}
        metadata = [(FORWARDED_KEY, "1"), *((key, said[key]) for key in kept)]
        relay = asyncio.create_task(
            self._relay(endpoint, method, handler, request, context, metadata)
        )
        try:
            while not relay.done():
                await asyncio.wait({relay}, timeout=_LOOK_S)
                if not relay.done() and self._where(refusal.context["pool"]) != endpoint:
                    raise refusal  # that one is cut off, or frozen
            return relay.result()
        except grpc.aio.AioRpcError as err:
            error = status.from_rpc_error(err)
            if error.reason is not Reason.SERVER_UNREACHABLE:
                raise error from err
            _log.warning("not forwarded", endpoint=endpoint, problem=error.message)
            raise refusal from err
        except OSError as err:  # a file of TLS
            _log.warning("not forwarded", endpoint=endpoint, problem=str(err))
            raise refusal from err
        finally:
            relay.cancel()

    async def _relay(
        self, endpoint: str, method: str, handler: Any, request: Any, context: Any, metadata: Any
    ) -> Any:
        """Make the call there; see `forward`."""
        kind = ("unary", "stream")[handler.request_streaming]
        kind += ("_unary", "_stream")[handler.response_streaming]
        make = getattr(self._channel(endpoint), kind)(method)
        sent = request.again() if handler.request_streaming else request.SerializeToString()
        call = make(sent, metadata=metadata, timeout=context.time_remaining())
        if not handler.response_streaming:
            return await call
        async for response in call:
            await context.write(response)
        return None

    async def close(self) -> None:
        """Disconnect; calls under way are cancelled. Idempotent."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if endpoint not in self._channels:
            tls = self._tls
            if tls is None or endpoint.startswith("unix:"):
                channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
            else:
                credentials = grpc.ssl_channel_credentials(
                    None if tls.client_ca is None else tls.client_ca.read_bytes(),
                    tls.key.read_bytes(),
                    tls.certificate.read_bytes(),
                )
                channel = grpc.aio.secure_channel(endpoint, credentials, options=OPTIONS)
            self._channels[endpoint] = channel
        return self._channels[endpoint]
