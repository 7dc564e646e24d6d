"""Addresses of clients of a Ceph cluster: `IP:PORT/NONCE` is one client, `IP:0/0` all of an IP."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

from volcore.errors import InvalidArgumentError, OutOfRangeError, Reason
from volcore.limits import CLIENT_ADDRESSES_MAX

_CLIENT: Final = re.compile(
    r"(?P<ip>\[[0-9a-f:.]+\]|[0-9.]+):(?P<port>\d{1,5})/(?P<nonce>\d{1,10})"
)
_WHOLE: Final = ":0/0"
_SHOWN_MAX: Final = 80


def parse_addresses(texts: Sequence[str], *, field: str) -> tuple[str, ...]:
    """Return addresses that somebody named, as Ceph writes them, sorted, each once.

    Raises:
        InvalidArgumentError: BAD_FIELD, one is no address.
        OutOfRangeError: SIZE_NOT_ALLOWED, there are too many.
    """
    if len(texts) > CLIENT_ADDRESSES_MAX:
        raise OutOfRangeError(
            f"{field} has {len(texts)} addresses, at most {CLIENT_ADDRESSES_MAX} are allowed; name "
            "the host by its IP",
            reason=Reason.SIZE_NOT_ALLOWED,
            field=field,
        )
    return tuple(sorted({_parsed(text, field) for text in texts}))


def is_whole_ip(address: str) -> bool:
    """Return whether `address` stands for all clients of an IP."""
    return address.endswith(_WHOLE)


def covers(fenced: Iterable[str], address: str) -> bool:
    """Return whether the client `address` is one of `fenced`, or on an IP of them."""
    found = set(fenced)
    return address in found or address.rpartition(":")[0] + _WHOLE in found


def _parsed(text: str, field: str) -> str:
    client = _CLIENT.fullmatch(text.lower())
    try:
        ip = ipaddress.ip_address(client["ip"].strip("[]") if client else text.strip("[]"))
    except ValueError as err:
        shown = ascii(text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "...")
        raise InvalidArgumentError(
            f"{field} has {shown}, which is neither an IP nor a client's IP:PORT/NONCE; correct it",
            reason=Reason.BAD_FIELD,
            field=field,
        ) from err
    shown = f"[{ip}]" if ip.version == 6 else str(ip)
    return f"{shown}:{int(client['port'])}/{int(client['nonce'])}" if client else shown + _WHOLE
