"""The catalog of a pool as JSON lines: taken out while the pool is in use, put into an empty one.

Format: docs/formats/export.md. What is left out belongs to the server that it was taken from:
intents, operations, and warm clones, of which some may be volumes with data by the time of an
import. So an import begins no work and gives nothing out that somebody has written to.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from volcore.catalog.contract import ANYTHING, Change
from volcore.engine.pool import Pool, image_lock, now_ns, volume_lock
from volcore.engine.pools import Pools
from volcore.errors import (
    IntegrityError,
    InvalidArgumentError,
    NotSupportedError,
    OutOfRangeError,
    PreconditionError,
    Reason,
)
from volcore.limits import EXPORT_BYTES_MAX
from volcore.model.fences import FencedHost, FenceState
from volcore.model.records import (
    Attachment,
    GroupSnapshot,
    Image,
    Record,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

FORMAT: Final = 1
NAME: Final = "volcore.catalog"
KINDS: Final[Mapping[str, type[Record]]] = {
    kind.KIND: kind
    for kind in (Volume, Snapshot, GroupSnapshot, Image, Attachment, TrashedVolume, FencedHost)
}
_WHOLE: Final = frozenset({State.READY, FenceState.FENCED})
_PAGE: Final = 1000
Contents = dict[tuple[str, str], bytes]
"""Records by kind and key."""


class Exports:
    """Use cases of exports; an import may be repeated blindly."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def lines(self, pool: str) -> Iterator[bytes]:
        """Yield the lines of an export: its head, each READY record, its end.

        Each record is of one instant, all of them are not: the pool is in use.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            PreconditionError: RECORD_NEWER, whose server can export it.
            UnavailableError: the storage cannot be reached.
        """
        at = self._pools.open(pool)
        refuse_unknown(at)
        digest = hashlib.sha256()
        head = {"format": NAME, "pool": pool, "time_ns": now_ns(), "v": FORMAT}
        count = 0
        line = _encode(head)
        digest.update(line)
        yield line
        for kind, record in KINDS.items():
            for key, raw in _stored(at, record):
                line = b'{"key":%s,"kind":"%s","record":%s}\n' % (
                    json.dumps(key).encode(),
                    kind.encode(),
                    raw,
                )
                count += 1
                digest.update(line)
                yield line
        yield _encode({"count": count, "sha256": digest.hexdigest()})

    def put(self, pool: str, data: bytes) -> int:
        """Write the records of an export into an empty catalog, all or none; return how many.

        Nothing is done, and it is no error, if exactly these records are there already.

        Raises:
            InvalidArgumentError: BAD_FIELD, it is no complete export.
            IntegrityError: BAD_RECORD, a record cannot be read.
            PreconditionError: CATALOG_NOT_EMPTY; RECORD_NEWER, one is of a newer server.
            NotSupportedError: the pool keeps its catalog with its storage.
            OutOfRangeError: MESSAGE_TOO_LARGE.
            ExhaustedError: POOL_FULL.
        """
        at = self._pools.open(pool)
        if at.backend.caps.joins_catalog:
            raise NotSupportedError(
                f"pool {pool!r} ({at.backend.caps.kind}) keeps its catalog in one database with "
                "its storage; restore the whole directory from a copy",
                reason=Reason.CAPABILITY_ABSENT,
            )
        wanted = read(data)
        locks = {image_lock(key) for kind, key in wanted if kind == Image.KIND}
        locks |= {volume_lock(key.partition("/")[0]) for kind, key in wanted if kind != Image.KIND}
        with at.locks.hold(locks):  # nobody makes one of these between the look and the commit
            present = {
                (kind, key): raw for kind, one in KINDS.items() for key, raw in _rows(at, one)
            }
            if present and present != wanted:
                raise PreconditionError(
                    f"the catalog of pool {pool!r} has {len(present)} records already; an import "
                    "needs an empty one, such as a lost one is after a start of the server",
                    reason=Reason.CATALOG_NOT_EMPTY,
                )
            if not present:
                at.catalog.commit(
                    [
                        Change(kind=KINDS[kind].KIND, key=key, value=raw, expect=ANYTHING)
                        for (kind, key), raw in wanted.items()
                    ]
                )
        return len(wanted)


def refuse_unknown(at: Pool) -> None:
    """Refuse a catalog with records of kinds that only a newer server knows.

    Raises:
        PreconditionError: RECORD_NEWER.
    """
    for kind, key, _ in at.catalog.unknown(1):
        raise PreconditionError(
            f"the catalog of pool {at.name!r} has records of a newer server ({kind} {key!r}), "
            "which this one cannot judge; ask that server",
            reason=Reason.RECORD_NEWER,
        )


def read(data: bytes) -> Contents:
    """Return the records of an export.

    Raises:
        InvalidArgumentError: BAD_FIELD.
        IntegrityError: BAD_RECORD.
        PreconditionError: RECORD_NEWER.
        OutOfRangeError: MESSAGE_TOO_LARGE.
    """
    check_size(len(data))
    lines = data.splitlines(keepends=True)
    head = _parsed(lines[0]) if lines else {}
    if head.get("format") != NAME:
        raise _bad("it does not begin with the head of an export of a catalog")
    if head.get("v") != FORMAT:
        raise _bad(
            f"it has format {head.get('v')!r}, this server knows {FORMAT}: use the newer one"
        )
    end = _parsed(lines[-1])
    digest = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    if (end.get("count"), end.get("sha256")) != (len(lines) - 2, digest):
        raise _bad("its last line does not fit the others: it was cut off or changed")
    found: Contents = {}
    for line in lines[1:-1]:
        body = _parsed(line)
        kind, key = str(body.get("kind")), str(body.get("key"))
        if kind not in KINDS:
            raise _bad(f"it has a record of kind {kind[:40]!a}, which this server does not know")
        raw = json.dumps(body.get("record"), sort_keys=True, separators=(",", ":")).encode()
        if KINDS[kind].decode(raw, key).key != key:
            raise IntegrityError(
                f"the {kind} record at key {key[:100]!a} of the export is of another key; take "
                "another export",
                reason=Reason.BAD_RECORD,
            )
        found[kind, key] = raw
    return found


def check_size(length_bytes: int) -> None:
    """Refuse an export that is larger than one commit may be.

    Raises:
        OutOfRangeError: MESSAGE_TOO_LARGE.
    """
    if length_bytes > EXPORT_BYTES_MAX:
        raise OutOfRangeError(
            f"the export has more than {EXPORT_BYTES_MAX} bytes, the most that can be imported; "
            "begin with an empty pool and adopt its rbd images",
            reason=Reason.MESSAGE_TOO_LARGE,
        )


def _stored(at: Pool, record: type[Record]) -> Iterator[tuple[str, bytes]]:
    """Yield what is shown of a kind: key and bytes."""
    for key, raw in _rows(at, record):
        found = record.decode(raw, key)
        hidden = isinstance(found, Volume) and at.making.hides(found.id)
        if getattr(found, "state", State.READY) in _WHOLE and not hidden:
            yield key, raw


def _rows(at: Pool, record: type[Record]) -> Iterator[tuple[str, bytes]]:
    after = ""
    while page := at.catalog.list(record.KIND, after=after, limit=_PAGE):
        yield from page
        after = page[-1][0]


def frames(lines: Iterable[bytes], length_bytes: int) -> Iterator[bytes]:
    """Join lines to pieces of at most so many bytes."""
    piece = bytearray()
    for line in lines:
        piece += line
        while len(piece) >= length_bytes:
            yield bytes(piece[:length_bytes])
            del piece[:length_bytes]
    if piece:
        yield bytes(piece)


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _bad(f"it has a line that is no JSON object: {line[:60]!r}")
    return body


def _bad(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"this is no export that can be imported: {why}; give the whole output of an export",
        reason=Reason.BAD_FIELD,
        field="data",
    )
