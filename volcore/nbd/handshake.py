"""The handshake of one connection: fixed newstyle option haggling until an export is chosen."""

import socket
import time
from dataclasses import dataclass
from typing import Final

import structlog

from volcore.errors import NotFoundError, PermissionDeniedError, Reason, VolcoreError
from volcore.limits import KIB, NBD_REQUEST_BYTES_MAX
from volcore.nbd.commands import transmission_flags
from volcore.nbd.exports import ExportTable, ExportUser, Lease
from volcore.nbd.protocol import (
    ALLOCATION_CONTEXT,
    ALLOCATION_CONTEXT_ID,
    CLIENT_FLAGS,
    EXPORT_REPLY,
    EXPORT_REPLY_PADDING,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBD_MAGIC,
    OPTION,
    OPTION_MAGIC,
    PREFERRED_BLOCK_BYTES,
    STRING_BYTES_MAX,
    U16,
    U32,
    Cursor,
    HandshakeFlag,
    InfoType,
    Option,
    OptionReply,
    ProtocolError,
    pack_option_reply,
)
from volcore.nbd.tls import ContextSource, Stream, TlsStream

OPTION_TIMEOUT_S: Final = 10.0
"""A client that is silent for so long loses its place."""
HANDSHAKE_TIMEOUT_S: Final = 60.0
"""A client that talks without end loses it too."""
OPTION_BYTES_MAX: Final = 64 * KIB
"""Data of one option; room for a name and many queries."""

_log = structlog.get_logger("volcore.nbd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a handshake agreed on; the lease is the caller's to release."""

    lease: Lease
    stream: Stream
    """The socket that was given, or TLS over it."""
    structured: bool
    block_status: bool


class Handshake:
    """One negotiation; `run` it once. Options arrive one at a time and are answered in order."""

    def __init__(
        self,
        sock: socket.socket,
        exports: ExportTable,
        user: ExportUser,
        *,
        option_timeout_s: float = OPTION_TIMEOUT_S,
        tls: ContextSource | None = None,
        attached_only: bool = False,
    ) -> None:
        self._plain = sock
        self._sock: Stream = sock
        self._tls = tls
        self._attached_only = attached_only
        self._client_names: frozenset[str] | None = None
        """Who the client is, if that decides what it may use."""
        self._exports = exports
        self._user = user
        self._option_timeout_s = option_timeout_s
        self._end_s = time.monotonic() + HANDSHAKE_TIMEOUT_S
        self._deadline_s = 0.0
        self._lease: Lease | None = None
        self._structured = False
        self._zeroes = True
        self._context_export: str | None = None
        """The export for which `base:allocation` is selected."""
        self._draining = False

    def drain(self) -> None:
        """Refuse every further option; any thread may call it."""
        self._draining = True

    def run(self) -> Session | None:
        """Return the session, or None if the client left politely.

        Raises:
            ProtocolError: the client broke the protocol.
            OSError: the client went away (TimeoutError: was silent for too long).
        """
        lease: Lease | None = None
        try:
            self._greet()
            lease = self._haggle()
        finally:
            if self._lease is not None and self._lease is not lease:
                self._lease.release()
        if lease is None:
            return None
        self._sock.settimeout(None)
        return Session(
            lease=lease,
            stream=self._sock,
            structured=self._structured,
            block_status=self._structured and self._context_export == lease.name,
        )

    def _greet(self) -> None:
        self._deadline_s = time.monotonic() + self._option_timeout_s
        known = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self._send(GREETING.pack(NBD_MAGIC, OPTION_MAGIC, known))
        (flags,) = CLIENT_FLAGS.unpack(self._receive(CLIENT_FLAGS.size))
        if flags & ~known:
            raise ProtocolError("unknown client flags")
        self._zeroes = not flags & HandshakeFlag.NO_ZEROES

    def _haggle(self) -> Lease | None:
        """Answer options until one of them ends the handshake."""
        while True:
            now_s = time.monotonic()
            self._deadline_s = min(now_s + self._option_timeout_s, self._end_s)
            magic, option, length_bytes = OPTION.unpack(self._receive(OPTION.size))
            if magic != OPTION_MAGIC:
                raise ProtocolError("option with a wrong magic number")
            if length_bytes > OPTION_BYTES_MAX:
                raise ProtocolError("option with too much data")
            data = self._receive(length_bytes)
            if option == Option.ABORT:
                self._reply(option, OptionReply.ACK)
                return None
            if self._tls is not None and self._sock is self._plain:
                self._before_tls(option, data)
                continue
            if option == Option.EXPORT_NAME:
                return self._export_name(data)
            if self._draining:
                self._reply(option, OptionReply.ERR_SHUTDOWN)
                continue
            try:
                chosen = self._answer(option, data)
            except ValueError as error:
                self._reply(option, OptionReply.ERR_INVALID, str(error).encode())
                continue
            if chosen is not None:
                return chosen

    def _before_tls(self, option: int, data: bytes) -> None:
        """Refuse all but STARTTLS; the stream is encrypted after that."""
        if option == Option.EXPORT_NAME:
            raise ProtocolError("TLS comes first")  # this option has no other refusal
        if option != Option.STARTTLS:
            self._reply(option, OptionReply.ERR_TLS_REQD, b"this server wants TLS first")
            return
        if data:
            self._reply(option, OptionReply.ERR_INVALID, b"option data is too long")
            return
        assert self._tls is not None
        stream = TlsStream(self._plain, self._tls.context())
        self._reply(option, OptionReply.ACK)
        stream.accept(self._time_left_s())
        self._sock = stream
        if self._attached_only:
            self._client_names = stream.client_names()

    def _answer(self, option: int, data: bytes) -> Lease | None:
        """Answer one option; ValueError where its data is malformed."""
        if option in (Option.GO, Option.INFO):
            return self._info(option, data)
        if option == Option.LIST:
            Cursor(data).end()
            self._list()
        elif option == Option.STRUCTURED_REPLY:
            Cursor(data).end()
            self._structured = True
            self._reply(option, OptionReply.ACK)
        elif option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._meta_context(option, data)
        elif option == Option.STARTTLS and self._tls is not None:
            self._reply(option, OptionReply.ERR_INVALID, b"this is TLS already")
        else:
            self._reply(option, OptionReply.ERR_UNSUP)
        return None

    def _export_name(self, data: bytes) -> Lease:
        """Enter transmission the old way, in which an error can only be a hang-up."""
        if self._draining or len(data) > STRING_BYTES_MAX:
            raise ProtocolError("no export by this name")
        try:
            lease = self._open(data.decode())
        except (ValueError, VolcoreError) as error:
            raise ProtocolError("no export by this name") from error
        reply = EXPORT_REPLY.pack(lease.device.size_bytes, self._flags(lease))
        self._send(reply + (EXPORT_REPLY_PADDING if self._zeroes else b""))
        return lease

    def _info(self, option: int, data: bytes) -> Lease | None:
        cursor = Cursor(data)
        name = cursor.string()
        wanted = {cursor.u16() for _ in range(cursor.u16())}
        cursor.end()
        try:
            lease = self._open(name)
            size_bytes = lease.device.size_bytes
        except VolcoreError as error:
            self._reply(option, _refusal(error), error.message.encode()[:STRING_BYTES_MAX])
            return None
        pieces = [INFO_EXPORT.pack(InfoType.EXPORT, size_bytes, self._flags(lease))]
        if InfoType.NAME in wanted:
            pieces.append(U16.pack(InfoType.NAME) + name.encode())
        if InfoType.BLOCK_SIZE in wanted:
            sizes = (1, PREFERRED_BLOCK_BYTES, NBD_REQUEST_BYTES_MAX)
            pieces.append(INFO_BLOCK_SIZE.pack(InfoType.BLOCK_SIZE, *sizes))
        replies = [pack_option_reply(option, OptionReply.INFO, piece) for piece in pieces]
        self._send(b"".join(replies) + pack_option_reply(option, OptionReply.ACK))
        return lease if option == Option.GO else None

    def _list(self) -> None:
        replies = []
        for name in self._exports.names(self._client_names):
            text = name.encode()
            data = U32.pack(len(text)) + text
            replies.append(pack_option_reply(Option.LIST, OptionReply.SERVER, data))
        self._send(b"".join(replies) + pack_option_reply(Option.LIST, OptionReply.ACK))

    def _meta_context(self, option: int, data: bytes) -> None:
        """List or select metadata contexts; there is one, and selecting replaces a selection."""
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._context_export = None
        cursor = Cursor(data)
        name = cursor.string()
        queries = [cursor.string() for _ in range(cursor.u32())]
        cursor.end()
        if not self._structured:
            raise ValueError("structured replies come first")
        if not self._exports.exists(name, self._client_names):
            self._reply(option, OptionReply.ERR_UNKNOWN)
            return
        if setting:
            found = ALLOCATION_CONTEXT in queries
        else:
            found = not queries or ALLOCATION_CONTEXT in queries or "base:" in queries
        if found:
            number = ALLOCATION_CONTEXT_ID if setting else 0
            reply = U32.pack(number) + ALLOCATION_CONTEXT.encode()
            self._send(pack_option_reply(option, OptionReply.META_CONTEXT, reply))
        if found and setting:
            self._context_export = name
        self._reply(option, OptionReply.ACK)

    def _open(self, name: str) -> Lease:
        """Open an export; an earlier INFO on the same name has done so already."""
        if self._lease is not None:
            if self._lease.name == name:
                return self._lease
            self._lease.release()
            self._lease = None
        try:
            self._lease = self._exports.open(name, self._user, self._client_names)
        except VolcoreError as error:
            if not isinstance(error, NotFoundError):
                _log.error(
                    "nbd export did not open",
                    export=name,
                    reason=error.reason.value,
                    error=error.message,
                )
            raise
        return self._lease

    def _flags(self, lease: Lease) -> int:
        return transmission_flags(read_only=lease.read_only, structured=self._structured)

    def _reply(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._send(pack_option_reply(option, reply, data))

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(self._time_left_s())
        self._sock.sendall(data)

    def _receive(self, count: int) -> bytes:
        """Return exactly `count` bytes: not one of the transmission phase is fetched early."""
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            self._sock.settimeout(self._time_left_s())
            received = self._sock.recv_into(view)
            if not received:
                raise ConnectionResetError("the client hung up")
            view = view[received:]
        return bytes(buffer)

    def _time_left_s(self) -> float:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the client was silent for too long")
        return left_s


def _refusal(error: VolcoreError) -> OptionReply:
    if error.reason is Reason.SHUTTING_DOWN:
        return OptionReply.ERR_SHUTDOWN
    if isinstance(error, PermissionDeniedError):
        return OptionReply.ERR_POLICY
    return OptionReply.ERR_UNKNOWN
