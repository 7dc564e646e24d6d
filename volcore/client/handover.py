"""Handing an open file to a server on this machine, which saves the upload.

The file is opened here, with the rights of whoever calls; the server gets the descriptor and gives
a handle for one import (`volcore.wire.handover`). Wherever that does not work - an older server,
TCP, a pipe, a server that has enough files already - the file is uploaded instead.
"""

import socket
from typing import Final, Self

from volcore.client.channel import socket_path
from volcore.client.transfer import Upload
from volcore.wire import handover

_ANSWER_S: Final = 5.0
"""How long a server may take to answer; a working one takes a millisecond."""


class Offer:
    """A file that is held out to the server until `close`; `handle` is empty if it was not taken.

    A context manager. A connection that is not closed is closed with the object.
    """

    def __init__(self, connection: socket.socket | None = None, handle: str = "") -> None:
        self._connection = connection
        self.handle = handle

    def close(self) -> None:
        """Take the file back; idempotent."""
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def offer(target: str, upload: Upload, timeout_s: float | None) -> Offer:
    """Hand the source of an import to the server at `target` if both allow it; raises nothing.

    *Units*: `timeout_s` is what is left for the whole call, None for ever.
    """
    path = socket_path(target)
    if not path:
        return Offer()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_ANSWER_S if timeout_s is None else min(_ANSWER_S, timeout_s))
        handle = _hand_over(connection, handover.files_path(path), upload)
    except (OSError, ValueError):  # ValueError: a path that no socket can have
        handle = ""
    except BaseException:
        connection.close()
        raise
    if not handle:
        connection.close()
        return Offer()
    return Offer(connection, handle)


def _hand_over(connection: socket.socket, path: str, upload: Upload) -> str:
    """Return the handle that the server gives, or nothing."""
    with upload.whole_file() as file:
        if file is None:
            return ""
        connection.connect(path)
        socket.send_fds(connection, [handover.GREETING], [file.fileno()])
    return handover.decode(connection.recv(handover.ANSWER_BYTES_MAX)).handle
