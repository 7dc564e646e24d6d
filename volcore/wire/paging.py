"""Page tokens: opaque, bound to the request that they continue, and of limited age.

A token is not a secret and grants nothing: it says where to go on. It names the key after which the
next page starts, so that resources which come and go meanwhile disturb no page.
"""

import base64
import binascii
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import Message

from volcore import limits
from volcore.errors import InvalidArgumentError, OutOfRangeError, Reason

_TOKEN_CHARS_MAX: Final = 1024
_DIGEST_BYTES: Final = 12
_CLOCK_SKEW_S_MAX: Final = 300
"""How far in the future another server's token may seem to come from."""


class ListRequest(Protocol):
    """A request of any list call."""

    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page starts: after `key` in `pool`; both empty at the beginning."""

    pool: str = ""
    key: str = ""


def page_size(request: ListRequest) -> int:
    """Return how many items the page may hold.

    Raises:
        OutOfRangeError: BAD_FIELD, negative.
    """
    wanted = request.page_size
    if wanted < 0:
        raise OutOfRangeError(
            f"page_size is {wanted}; it must be 0 (the default) or more",
            reason=Reason.BAD_FIELD,
            field="page_size",
        )
    return min(wanted or limits.PAGE_SIZE_DEFAULT, limits.PAGE_SIZE_MAX)


def encode_token(request: Message, position: Position, *, now_s: float | None = None) -> str:
    """Return the token that continues `request` after `position`."""
    body = {
        "a": [position.pool, position.key],
        "t": int(time.time() if now_s is None else now_s),
        "h": _fingerprint(request),
    }
    raw = json.dumps(body, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_token(request: Message, token: str, *, now_s: float | None = None) -> Position:
    """Return where the page of `request` starts.

    Raises:
        InvalidArgumentError: BAD_PAGE_TOKEN: malformed, expired, or of another request.
    """
    if not token:
        return Position()
    foreign = "is not one that this service made; start again without it"
    if len(token) > _TOKEN_CHARS_MAX:
        raise _bad(foreign)
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        body = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        (pool, key), made_s, fingerprint = body["a"], body["t"], body["h"]
    except (ValueError, TypeError, KeyError, binascii.Error) as err:
        raise _bad(foreign) from err
    if not (isinstance(pool, str) and isinstance(key, str) and isinstance(made_s, int)):
        raise _bad(foreign)
    age_s = (time.time() if now_s is None else now_s) - made_s
    if not -_CLOCK_SKEW_S_MAX <= age_s <= limits.PAGE_TOKEN_AGE_S_MAX:
        raise _bad("has expired; start again without it")
    if fingerprint != _fingerprint(request):
        raise _bad("belongs to another request; repeat that one, or start again without it")
    return Position(pool, key)


def _fingerprint(request: Message) -> str:
    """Return a digest of all fields but the page's own."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("page_size")
    copy.ClearField("page_token")
    raw = request.DESCRIPTOR.full_name.encode() + b"\0" + copy.SerializeToString(deterministic=True)
    return hashlib.blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()


def _bad(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the page token {problem}", reason=Reason.BAD_PAGE_TOKEN, field="page_token"
    )
