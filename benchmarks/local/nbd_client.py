"""The smallest NBD client: connects, reads, stays. For a thousand of them in one process."""

import socket
import struct
from types import TracebackType
from typing import Self

from volcore.v1.attachment_pb2 import Attachment

TIMEOUT_S = 60.0
_OPTION_MAGIC = 0x49484156454F5054
_REQUEST_MAGIC = 0x25609513
_SIMPLE_REPLY_MAGIC = 0x67446698
_GO, _ACK, _READ, _DISCONNECT = 7, 1, 0, 2


class NbdClient:
    """One connection to the export of an attachment, simple replies."""

    def __init__(self, attachment: Attachment) -> None:
        where = attachment.nbd
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(where.socket_path)
        self._receive(18)
        name = where.export_name.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">IQII", 3, _OPTION_MAGIC, _GO, len(body)) + body)
        kind = 0
        while kind != _ACK:
            _, _, kind, length = struct.unpack(">QIII", self._receive(20))
            self._receive(length)
            assert kind < 1 << 31, f"refused: {kind:#x}"

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        self._socket.sendall(
            struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _READ, 1, offset_bytes, length_bytes)
        )
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        assert (magic, error) == (_SIMPLE_REPLY_MAGIC, 0)
        return self._receive(length_bytes)

    def close(self) -> None:
        self._socket.sendall(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _DISCONNECT, 1, 0, 0))
        self._socket.close()

    def _receive(self, length_bytes: int) -> bytes:
        data = b""
        while len(data) < length_bytes:
            piece = self._socket.recv(length_bytes - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
