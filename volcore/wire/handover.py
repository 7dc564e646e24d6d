"""The handover of open files beside the API: where its socket is, and what is said there.

A client sends GREETING with one descriptor over a connection of type SOCK_SEQPACKET, and is
answered with one JSON object: `handle`, or `reason` and `message` of the refusal. The connection
then says nothing more; closing it takes the file back.
"""

import json
from dataclasses import dataclass
from typing import Final

GREETING: Final = b"volcore.files.v1"
ANSWER_BYTES_MAX: Final = 4096
_SUFFIX: Final = ".files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server says: a handle, or why there is none."""

    handle: str = ""
    reason: str = ""
    message: str = ""


def files_path(socket_path: str) -> str:
    """Return where files are handed over to the server whose unix socket is at `socket_path`."""
    return socket_path + _SUFFIX


def encode(answer: Answer) -> bytes:
    """Return an answer as it is sent."""
    if answer.handle:
        return json.dumps({"handle": answer.handle}).encode()
    return json.dumps({"reason": answer.reason, "message": answer.message}).encode()


def decode(data: bytes) -> Answer:
    """Return the answer that was sent; what makes no sense is a refusal without a reason."""
    try:
        found = json.loads(data)
        return Answer(
            **{name: str(found.get(name, "")) for name in ("handle", "reason", "message")}
        )
    except (ValueError, AttributeError):
        return Answer()
