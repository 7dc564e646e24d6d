"""What each command does to a device, and the bytes of its reply; no sockets, no threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from volcore.backends.contract import BlockDevice
from volcore.errors import VolcoreError
from volcore.limits import KIB, MIB, NBD_REQUEST_BYTES_MAX
from volcore.model.extent import ExtentKind
from volcore.nbd import errmap
from volcore.nbd.buffers import BufferPool
from volcore.nbd.gate import WriteGate
from volcore.nbd.protocol import (
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    STATE_DATA,
    STATE_HOLE_ZERO,
    Command,
    NbdErrno,
    Request,
    TransmissionFlag,
    pack_data_chunk,
    pack_error_chunk,
    pack_hole_chunk,
    pack_none_chunk,
    pack_simple_reply,
    pack_status_chunk,
)

HOLE_SCAN_BYTES_MIN: Final = 64 * KIB
"""Shorter reads are sent as data: asking for the extents costs more than sending zeroes."""
HOLE_BYTES_MIN: Final = 32 * KIB
"""Shorter holes travel as zeroes inside of the data around them."""
STATUS_RUNS_MAX: Final = 4096
"""Descriptors in one BLOCK_STATUS reply; the client asks again for the rest."""
STATUS_WINDOW_BYTES_MIN: Final = 4 * MIB
STATUS_WINDOW_BYTES_MAX: Final = 256 * MIB
"""Extents are fetched in growing windows, so that an answer of one descriptor stays cheap."""

_COMMON_FLAGS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.CAN_MULTI_CONN
)
_WRITABLE_FLAGS: Final = (
    TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_FAST_ZERO
)
_FLAGS_ALLOWED: Final = {
    # Every command takes FUA: existing clients set it on any of them, and the protocol allows it.
    Command.READ: FLAG_FUA | FLAG_DF,
    Command.WRITE: FLAG_FUA,
    Command.FLUSH: FLAG_FUA,
    Command.TRIM: FLAG_FUA,
    Command.WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    Command.BLOCK_STATUS: FLAG_FUA | FLAG_REQ_ONE,
}
_WRITING: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})

_log = structlog.get_logger("volcore.nbd")

Part = bytes | memoryview


@dataclass(slots=True)
class Reply:
    """Pieces to send in order; `buffer` goes back to the pool once they are sent."""

    parts: Sequence[Part]
    buffer: bytearray | None = None


def transmission_flags(*, read_only: bool, structured: bool) -> TransmissionFlag:
    """Return what an export can do, as sent during the handshake."""
    flags = _COMMON_FLAGS
    flags |= TransmissionFlag.READ_ONLY if read_only else _WRITABLE_FLAGS
    if structured:
        flags |= TransmissionFlag.SEND_DF
    return flags


class Executor:
    """Runs the requests of one connection on its device.

    Concurrency: `execute` and `refuse` may run on many threads at once.
    """

    def __init__(
        self,
        *,
        export: str,
        device: BlockDevice,
        pool: BufferPool,
        read_only: bool,
        gate: WriteGate,
        structured: bool,
        block_status: bool,
    ) -> None:
        self._export = export
        self._device = device
        self._pool = pool
        self._read_only = read_only
        self._gate = gate
        self._structured = structured
        self._block_status = block_status
        self._size_bytes = device.size_bytes
        self._handlers = {
            Command.READ.value: self._read,
            Command.WRITE.value: self._write,
            Command.FLUSH.value: self._flush,
            Command.TRIM.value: self._trim,
            Command.WRITE_ZEROES.value: self._write_zeroes,
            Command.BLOCK_STATUS.value: self._status,
        }

    def check(self, request: Request) -> NbdErrno:
        """Return why `request` must be refused without touching the device, or OK."""
        command = request.command
        allowed = _FLAGS_ALLOWED.get(command)  # type: ignore[call-overload]
        if allowed is None or request.flags & ~allowed:
            return NbdErrno.EINVAL
        if request.flags & FLAG_DF and not self._structured:
            return NbdErrno.EINVAL
        if command == Command.FLUSH:
            clean = not request.offset_bytes and not request.length_bytes
            return NbdErrno.OK if clean else NbdErrno.EINVAL
        if command in _WRITING and (self._read_only or not self._gate.writable):
            return NbdErrno.EPERM
        end_bytes = request.offset_bytes + request.length_bytes
        if end_bytes > self._size_bytes:
            self._size_bytes = self._device.size_bytes  # it may have grown
            if end_bytes > self._size_bytes:
                return errmap.past_end_errno(command)
        if command == Command.BLOCK_STATUS:
            asked = self._block_status and request.length_bytes
            return NbdErrno.OK if asked else NbdErrno.EINVAL
        if command in (Command.READ, Command.WRITE):
            fits = request.length_bytes <= NBD_REQUEST_BYTES_MAX
            return NbdErrno.OK if fits else NbdErrno.EINVAL
        return NbdErrno.OK

    def execute(self, request: Request, payload: memoryview | None) -> Reply:
        """Run a request that passed `check`; failures become replies, logged once here."""
        try:
            if request.command not in _WRITING:
                return self._handlers[request.command](request, payload)
            if not self._gate.enter():
                return self.refuse(request, NbdErrno.EPERM)
            try:
                return self._handlers[request.command](request, payload)
            finally:
                self._gate.leave()
        except Exception as error:  # the boundary: nothing but an error number leaves
            errno = errmap.to_errno(error, request.command)
            offset_bytes = errmap.error_offset(error, request)
            message = errmap.client_message(error)
            known = isinstance(error, VolcoreError)
            _log.error(
                "nbd request failed",
                export=self._export,
                command=_command_name(request.command),
                offset_bytes=request.offset_bytes if offset_bytes is None else offset_bytes,
                length_bytes=request.length_bytes,
                errno=errno.name,
                reason=error.reason.value if isinstance(error, VolcoreError) else "INTERNAL",
                error=str(error),
                exc_info=not known,
            )
            return self._error(request, errno, message, offset_bytes)

    def give_back(self, reply: Reply) -> None:
        """Take the buffer of a reply that was sent."""
        if reply.buffer is not None:
            self._pool.give(reply.buffer)

    def refuse(self, request: Request, errno: NbdErrno) -> Reply:
        """Answer a request that is not carried out."""
        _log.warning(
            "nbd request refused",
            export=self._export,
            command=_command_name(request.command),
            offset_bytes=request.offset_bytes,
            length_bytes=request.length_bytes,
            flags=request.flags,
            errno=errno.name,
        )
        message = _REFUSALS.get(errno, "refused")
        if errno == NbdErrno.EPERM and not self._read_only:
            message = "another host has the right to write"
        return self._error(request, errno, message, None)

    def _error(
        self, request: Request, errno: NbdErrno, message: str, offset_bytes: int | None
    ) -> Reply:
        if not self._structured:
            return Reply((pack_simple_reply(request.cookie, errno),))
        return Reply((pack_error_chunk(request.cookie, errno, message, offset_bytes),))

    def _read(self, request: Request, payload: memoryview | None) -> Reply:
        del payload
        length_bytes = request.length_bytes
        if not length_bytes:
            pack = pack_none_chunk if self._structured else pack_simple_reply
            return Reply((pack(request.cookie),))
        runs = None
        if self._structured and length_bytes >= HOLE_SCAN_BYTES_MIN and not request.flags & FLAG_DF:
            runs = self._hole_runs(request)
        buffer = self._pool.take(length_bytes)
        try:
            if runs is not None:
                return Reply(self._sparse_parts(request, runs, memoryview(buffer)), buffer)
            view = memoryview(buffer)[:length_bytes]
            self._device.read_into(request.offset_bytes, view)
        except BaseException:
            self._pool.give(buffer)
            raise
        if self._structured:
            header = pack_data_chunk(request.cookie, request.offset_bytes, length_bytes, done=True)
        else:
            header = pack_simple_reply(request.cookie)
        return Reply((header, view), buffer)

    def _hole_runs(self, request: Request) -> list[tuple[int, bool]] | None:
        """Return (length, is_hole) runs that cover the read, or None if it is data throughout."""
        extents = self._device.extents(request.offset_bytes, request.length_bytes)
        runs: list[tuple[int, bool]] = []
        for extent in extents:
            length_bytes = extent.length_bytes
            hole = extent.kind != ExtentKind.DATA
            # A short hole counts as data, unless it continues one.
            if hole and length_bytes < HOLE_BYTES_MIN and not (runs and runs[-1][1]):
                hole = False
            if runs and runs[-1][1] == hole:
                runs[-1] = (runs[-1][0] + length_bytes, hole)
            else:
                runs.append((length_bytes, hole))
        return runs if any(hole for _, hole in runs) else None

    def _sparse_parts(
        self, request: Request, runs: list[tuple[int, bool]], view: memoryview
    ) -> list[Part]:
        parts: list[Part] = []
        offset_bytes = request.offset_bytes
        last = len(runs) - 1
        for index, (length_bytes, hole) in enumerate(runs):
            pack = pack_hole_chunk if hole else pack_data_chunk
            parts.append(pack(request.cookie, offset_bytes, length_bytes, done=index == last))
            if not hole:
                piece, view = view[:length_bytes], view[length_bytes:]
                self._device.read_into(offset_bytes, piece)
                parts.append(piece)
            offset_bytes += length_bytes
        return parts

    def _write(self, request: Request, payload: memoryview | None) -> Reply:
        if payload:
            fua = bool(request.flags & FLAG_FUA)
            self._device.write(request.offset_bytes, payload, fua=fua)
        return Reply((pack_simple_reply(request.cookie),))

    def _flush(self, request: Request, payload: memoryview | None) -> Reply:
        del payload
        if not self._read_only:
            self._device.flush()
        return Reply((pack_simple_reply(request.cookie),))

    def _trim(self, request: Request, payload: memoryview | None) -> Reply:
        del payload
        if request.length_bytes:
            self._device.discard(request.offset_bytes, request.length_bytes)
        if request.flags & FLAG_FUA:
            self._device.flush()
        return Reply((pack_simple_reply(request.cookie),))

    def _write_zeroes(self, request: Request, payload: memoryview | None) -> Reply:
        del payload
        flags = request.flags
        if flags & FLAG_FAST_ZERO and flags & FLAG_NO_HOLE:
            # Zeroes that keep their space may have to be written; trimming never is.
            message = "zeroes without a hole are not faster than writing them"
            return self._error(request, NbdErrno.ENOTSUP, message, None)
        if request.length_bytes:
            self._device.write_zeroes(
                request.offset_bytes,
                request.length_bytes,
                may_trim=not flags & FLAG_NO_HOLE,
                fua=bool(flags & FLAG_FUA),
            )
        return Reply((pack_simple_reply(request.cookie),))

    def _status(self, request: Request, payload: memoryview | None) -> Reply:
        del payload
        runs_max = 1 if request.flags & FLAG_REQ_ONE else STATUS_RUNS_MAX
        runs: list[tuple[int, int]] = []
        position = request.offset_bytes
        end_bytes = position + request.length_bytes
        window_bytes = STATUS_WINDOW_BYTES_MIN
        while position < end_bytes and len(runs) <= runs_max:
            length_bytes = min(window_bytes, end_bytes - position)
            for extent in self._device.extents(position, length_bytes):
                state = STATE_DATA if extent.kind == ExtentKind.DATA else STATE_HOLE_ZERO
                if runs and runs[-1][1] == state:
                    runs[-1] = (runs[-1][0] + extent.length_bytes, state)
                else:
                    runs.append((extent.length_bytes, state))
            position += length_bytes
            window_bytes = min(window_bytes * 4, STATUS_WINDOW_BYTES_MAX)
        return Reply((pack_status_chunk(request.cookie, runs[:runs_max]),))


_REFUSALS: Final = {
    NbdErrno.EINVAL: "unknown command, flag or range",
    NbdErrno.EPERM: "the export is read-only",
    NbdErrno.ENOSPC: "the range ends after the device",
    NbdErrno.ESHUTDOWN: "the export is going away",
}


def _command_name(command: int) -> str:
    try:
        return Command(command).name
    except ValueError:
        return str(command)
