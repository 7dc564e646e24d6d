"""An ordered map with atomic compare-and-set, in the omap of one RADOS object.

A stored value starts with a tag byte: `=` when the rest is the value itself (7-bit bytes), `~`
when the rest is its base64. So a stored value is never empty, and always text that the Python
binding can compare: its `omap_cmp` takes a str, and counts its characters as bytes.

Invariants:
1. INV-OMAP-1 (must): no stored value is empty. The OSD compares a missing key as an empty value, so
   "equal to empty" means "absent".
2. INV-OMAP-2 (must): all lines of one commit are one RADOS operation on one object.
"""

import base64
import errno
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Self

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.errmap import (
    ceph_errors,
    errno_of,
    error_of,
    translated,
)
from volcore.backends.rbd.gate import Gate
from volcore.backends.rbd.reads import Wave
from volcore.errors import IntegrityError, Reason

_RAW: Final = b"="
_BASE64: Final = b"~"
_PAGE_ROWS: Final = 1000
"""The OSD gives at most 1024 rows per request (osd_max_omap_entries_per_request)."""


class OmapObject:
    """The map in object `name`; any thread, any number of processes."""

    def __init__(self, ioctx: Any, name: str) -> None:
        """Create the object if it is missing; `ioctx` stays the caller's."""
        self._ioctx = ioctx
        self._on_close: Callable[[], None] | None = None
        self._gate = Gate()
        self.name = name
        rados = bindings().rados
        with translated(f"create {name}"), rados.WriteOpCtx() as op:
            op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
            ioctx.operate_write_op(op, name)

    @classmethod
    def opened(cls, cluster: Cluster, pool: str, name: str) -> Self:
        """Return the map in a pool with a connection use of its own; `close` gives that back.

        Raises:
            PreconditionError: TOOL_MISSING, POOL_UNUSABLE.
            UnavailableError: CLUSTER_UNREACHABLE.
        """
        with ExitStack() as undo:
            cluster.acquire()
            undo.callback(cluster.release)
            ioctx = cluster.open_ioctx(pool)
            undo.callback(ioctx.close)
            opened = cls(ioctx, name)
            opened._on_close = undo.pop_all().close
        return opened

    def close(self) -> None:
        """Release what `opened` took; idempotent."""
        self._gate.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def find(self, key: str) -> bytes | None:
        """Return the value of `key`, or None."""
        _check_key(key)
        with self._reading(f"read {self.name}") as op:
            found, _ = self._ioctx.get_omap_vals_by_keys(op, (key,))
            self._ioctx.operate_read_op(op, self.name)
            rows = dict(found)
        return _decode(rows[key]) if key in rows else None

    def finding(self, wave: Wave, keys: Sequence[str]) -> Callable[[], dict[str, bytes]]:
        """Read the values of those of `keys` that are there, in a wave."""
        for key in keys:
            _check_key(key)
        rows = wave.rows(self.name, keys)
        return lambda: {key: _decode(stored) for key, stored in rows().items()}

    def rows(self, *, prefix: str, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Return up to `limit` rows with `prefix` and a key > `after`, ascending by key bytes."""
        found: list[tuple[str, bytes]] = []
        while len(found) < limit:
            page = self._page(prefix, after, min(limit - len(found), _PAGE_ROWS))
            if not page:
                break
            found += page
            after = page[-1][0]
        return found

    def gather(
        self, keys: Sequence[str], prefixes: Sequence[str]
    ) -> tuple[dict[str, bytes], list[list[tuple[str, bytes]]]]:
        """Return the values of the keys that are there, and all rows with each prefix.

        Complexity: one request; one more for each prefix that has rows, and for each 1000 of them.
        """
        for key in keys:
            _check_key(key)
        with self._reading(f"read {self.name}") as op:
            found, _ = self._ioctx.get_omap_vals_by_keys(op, tuple(keys))
            pages = [
                self._ioctx.get_omap_vals(op, "", prefix, _PAGE_ROWS)[0] for prefix in prefixes
            ]
            self._ioctx.operate_read_op(op, self.name)
            values = {key: _decode(stored) for key, stored in found}
            below = [[(key, _decode(stored)) for key, stored in page] for page in pages]
        for prefix, rows in zip(prefixes, below, strict=True):
            if rows:
                rows += self.walk(prefix, after=rows[-1][0])
        return values, below

    def walk(self, prefix: str, *, after: str = "") -> Iterator[tuple[str, bytes]]:
        """Yield all rows with `prefix` and a key > `after`, a page at a time."""
        while page := self._page(prefix, after, _PAGE_ROWS):
            yield from page
            after = page[-1][0]

    def _page(self, prefix: str, after: str, row_count: int) -> list[tuple[str, bytes]]:
        """Return one page; an empty one is the end (a short one is not)."""
        with self._reading(f"list {self.name}") as op:
            rows, _ = self._ioctx.get_omap_vals(op, after, prefix, row_count)
            self._ioctx.operate_read_op(op, self.name)
            return [(key, _decode(stored)) for key, stored in rows]

    @contextmanager
    def _reading(self, doing: str) -> Iterator[Any]:
        """Lend a read operation; the object is not closed meanwhile."""
        with self._gate.using(), translated(doing), bindings().rados.ReadOpCtx() as op:
            yield op

    def commit(
        self,
        *,
        expect: Mapping[str, bytes | None],
        puts: Mapping[str, bytes] | None = None,
        removals: Collection[str] = (),
    ) -> bool:
        """Change the map if every expectation holds; return whether it did.

        Atomicity: one RADOS operation. Durability: on all replicas at return.

        Args:
            expect: exact bytes, or None for an absent key.
            puts: rows to set.
            removals: keys to delete; none of them is in `puts`.
        """
        with bindings().rados.WriteOpCtx() as op:
            self.fill(op, expect=expect, puts=puts, removals=removals)
            try:
                self._ioctx.operate_write_op(op, self.name)
            except ceph_errors() as err:
                if errno_of(err) == errno.ECANCELED:
                    return False
                raise error_of(err, f"change {self.name}") from err
        return True

    def fill(
        self,
        op: Any,
        *,
        expect: Mapping[str, bytes | None],
        puts: Mapping[str, bytes] | None = None,
        removals: Collection[str] = (),
    ) -> None:
        """Put the steps of a `commit` into a write operation, which the caller sends."""
        for key, value in expect.items():
            _check_key(key)
            wanted = "" if value is None else _encode(value).decode("ascii")
            op.omap_cmp(key, wanted, bindings().rados.LIBRADOS_CMPXATTR_OP_EQ)
        if puts:
            for key in puts:
                _check_key(key)
            self._ioctx.set_omap(op, tuple(puts), tuple(_encode(v) for v in puts.values()))
        if removals:
            self._ioctx.remove_omap_keys(op, tuple(removals))


def _check_key(key: str) -> None:
    """Keys travel as C strings whose length the binding counts in characters."""
    assert key.isascii(), key
    assert "\0" not in key, key


def _encode(value: bytes) -> bytes:
    """Return the stored form."""
    return _RAW + value if value.isascii() else _BASE64 + base64.b64encode(value)


def _decode(stored: bytes) -> bytes:
    """Return the value behind a stored form."""
    if stored[:1] == _RAW:
        return stored[1:]
    if stored[:1] == _BASE64:
        return base64.b64decode(stored[1:])
    raise IntegrityError(
        f"a row of an omap object starts with {stored[:1]!r}; it was not written by volcore",
        reason=Reason.BAD_RECORD,
    )
