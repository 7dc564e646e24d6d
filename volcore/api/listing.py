"""One page of a list call, over one pool or all of them."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from volcore import limits
from volcore.wire import paging
from volcore.wire.paging import Position

R = TypeVar("R")
M = TypeVar("M", bound=Message)
PAGE_BYTES_MAX: Final = limits.MESSAGE_BYTES_MAX - 256 * limits.KIB
"""Where a page ends early: the token, and what frames the items, still fit into a message."""


def read_page(
    request: Any,
    pools: Sequence[str],
    *,
    fetch: Callable[[str, str, int], Sequence[R]],
    key: Callable[[R], str],
    message: Callable[[str, R], M | None],
) -> tuple[list[M], str]:
    """Return the messages of the page that `request` asks for, and the token of the next one.

    Args:
        request: a list request; its size and token are checked here.
        pools: pools to walk, in order.
        fetch: fetch(pool, after, limit) returns records in the order of their keys.
        key: the key of a record.
        message: the message of a record; None leaves it out (it has gone meanwhile).
    """
    limit = paging.page_size(request)
    start = paging.decode_token(request, request.page_token)
    found: list[M] = []
    size_bytes = 0
    for pool in pools:
        if pool < start.pool:
            continue
        after = start.key if pool == start.pool else ""
        records = fetch(pool, after, limit - len(found) + 1)
        for record in records:
            item = None if len(found) == limit else message(pool, record)
            size_bytes += 0 if item is None else item.ByteSize()
            if len(found) == limit or (found and size_bytes > PAGE_BYTES_MAX):
                return found, paging.encode_token(request, Position(pool, after))
            after = key(record)
            if item is not None:
                found.append(item)
    return found, ""
