"""One server per pool: a lock with a lease, so that two servers never recover each other's work.

The lock is RADOS's own (OSD class `lock`) on the pool's catalog object. It lasts LEASE_S and is
renewed every RENEW_S by a thread; the OSD alone judges whether it has run out. What a server of the
same host and boot left when it was killed is broken at once. Whoever takes over from a server that
did not stop cleanly first fences its client off, so that a server that only slept cannot write
afterwards; where that fails, nobody takes over unless the server before is known to be dead.

Invariants:
1. INV-LEASE-1 (must): `held` is False from the moment the OSD may give the lock to another server:
   the deadline counts from before the renewal was sent.
2. INV-LEASE-2 (must): between two servers that serve a pool one after the other, the first has
   stopped cleanly, or is fenced off, or is dead.

Source: Ceph, src/cls/lock/cls_lock_types.h and cls_lock_ops.h.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.errmap import ceph_errors, errno_of, error_of, translated
from volcore.errors import Blocker, PreconditionError, Reason, VolcoreError
from volcore.limits import SERVER_LEASE_S, SERVER_RENEW_S

LEASE_S: Final = SERVER_LEASE_S
RENEW_S: Final = SERVER_RENEW_S
LOCK_OBJECT: Final = "volcore_catalog"
LOCK_NAME: Final = "volcore.server"

_CLIENT: Final = 8
"""Type of an entity that is a client."""
_EXCLUSIVE: Final = 1
_MUST_RENEW: Final = 2
_LOST: Final = {errno.EBUSY, errno.EEXIST, errno.ENOENT, errno.ESHUTDOWN}
"""Another server has it, or has had us fenced off; renewing will not help."""
_ATTEMPTS: Final = 3
_LOG: Final = logging.getLogger(__name__)


class PoolLease:
    """The right to serve a pool; `held` says whether it is still there."""

    def __init__(
        self,
        cluster: Cluster,
        ioctx: Any,
        directory: Directory,
        pool: str,
        *,
        on_lost: Callable[[], None] = lambda: None,
        endpoint: str = "",
    ) -> None:
        """Take nothing yet; `on_lost` is called once, by a thread, when another server has it.

        `endpoint` is where other servers reach this one, empty for nowhere.
        """
        self._on_lost = on_lost
        self._cluster = cluster
        self._ioctx = ioctx
        self._directory = directory
        self._pool = pool
        self._cookie = uuid.uuid4().hex
        said = _identity() | {"address": cluster.addresses, "endpoint": endpoint}
        self._text = json.dumps(said, sort_keys=True)
        self._deadline_s = 0.0
        self._ran_out = False
        """Whether the present lock was taken anew, and nobody has looked who served meanwhile."""
        self.lost = False
        """Whether another server has taken the lock."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether no other server can have the pool."""
        return time.monotonic() < self._deadline_s

    def acquire(self) -> None:
        """Take the lock, fence a predecessor that did not stop cleanly, start renewing.

        Raises:
            PreconditionError: POOL_LOCKED, naming the server that has it; POOL_UNUSABLE, the server
                before may still write and cannot be fenced off.
        """
        for _ in range(_ATTEMPTS):
            started_s = self._try(flags=0)
            if started_s is not None:
                break
            if (holder := living_holder(self._ioctx, self._pool, dismiss=True)) is not None:
                raise self._locked(holder)
        else:
            raise self._locked({})
        try:
            self._take_over()
        except BaseException:
            self._give_back()
            raise
        self._deadline_s = started_s + LEASE_S
        self._thread = threading.Thread(
            target=self._renew_for_ever, name=f"volcore-lease-{self._pool}", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        """Stop renewing and give the lock back; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if not self.held:
            return
        self._deadline_s = 0.0
        with contextlib.suppress(VolcoreError):
            self._directory.set_server(None)
            self._give_back()

    def _give_back(self) -> None:
        """Unlock; where that fails the lease runs out by itself."""
        with contextlib.suppress(VolcoreError), translated(f"unlock pool {self._pool}"):
            self._ioctx.unlock(LOCK_OBJECT, LOCK_NAME, self._cookie)

    def _try(self, *, flags: int) -> float | None:
        """Take or renew the lock; return from when on it is ours, or None.

        Not by `Ioctx.lock_exclusive`: that one leaves the microseconds of the duration to chance.
        """
        body = (
            _string(LOCK_NAME)
            + struct.pack("<B", _EXCLUSIVE)
            + _string(self._cookie)
            + _string("")
            + _string(self._text)
            + struct.pack("<IIB", LEASE_S, 0, flags)
        )
        started_s = time.monotonic()
        try:
            self._ioctx.execute(LOCK_OBJECT, "lock", "lock", _struct(body))
        except ceph_errors() as err:
            if errno_of(err) in _LOST:
                return None
            raise error_of(err, f"lock pool {self._pool}") from err
        return started_s

    def _take_over(self) -> None:
        """Fence the previous server if it did not stop cleanly, then write ourselves down."""
        found = self._directory.server()
        if found is not None:
            before = _parsed(found.decode(errors="replace"))
            address = before.get("address", "")
            if address and address != self._cluster.addresses and not self._cluster.fence(address):
                words = (
                    f"the server of before ({name_of(before)}) at {address} could not be fenced off"
                )
                if not _is_dead(before):
                    raise PreconditionError(
                        f"pool {self._pool}: {words}, so it may still write; give the Ceph user"
                        " mon 'profile rbd', then repeat",
                        reason=Reason.POOL_UNUSABLE,
                        retryable=True,
                    )
                _LOG.warning("pool %s: %s; its process is dead", self._pool, words)
        self._directory.set_server(self._text.encode())

    def _renew_for_ever(self) -> None:
        """Renew until stopped, or until the lock is somebody else's."""
        while not self._stop.wait(RENEW_S):
            try:
                renewed_s = self._renew()
            except VolcoreError as err:
                _LOG.warning("pool %s: the lock was not renewed: %s", self._pool, err)
                continue
            if renewed_s is None:
                self.lost = True
                self._deadline_s = 0.0
                _LOG.error("pool %s: another server has taken the lock", self._pool)
                self._on_lost()
                return
            self._deadline_s = renewed_s + LEASE_S

    def _renew(self) -> float | None:
        """Renew the lock; return from when on it is ours, or None when it is lost.

        A lease that ran out is taken again if nobody had the pool meanwhile: whoever does fences us
        off, or else writes himself down, before he changes anything.
        """
        renewed_s = self._try(flags=_MUST_RENEW)
        if renewed_s is None:
            self._ran_out = True
            renewed_s = self._try(flags=0)
        if renewed_s is not None and self._ran_out:
            if self._directory.server() != self._text.encode():
                self._give_back()
                return None
            self._ran_out = False
        return renewed_s

    def _locked(self, holder: dict[str, Any]) -> PreconditionError:
        """Return the refusal."""
        name = name_of(holder)
        return PreconditionError(
            f"pool {self._pool} is served by another server ({name}); stop that one first, or wait"
            f" {LEASE_S} seconds if it has died",
            reason=Reason.POOL_LOCKED,
            retryable=True,
            blockers=(Blocker(kind="server", name=name),),
        )


def living_holder(ioctx: Any, pool: str, *, dismiss: bool = False) -> dict[str, Any] | None:
    """Return what is known of the server that has a pool; None if there is none, or it is dead.

    With `dismiss` the lock of one that is known to be dead is broken.

    Raises:
        UnavailableError: CLUSTER_UNREACHABLE.
    """
    for client, cookie, text in _lockers(ioctx, pool):
        holder = _parsed(text)
        if not _is_dead(holder):
            return holder
        if dismiss:
            with translated(f"unlock pool {pool}"):
                break_lock(ioctx, LOCK_OBJECT, LOCK_NAME, client[1], cookie)
    return None


def break_lock(ioctx: Any, name: str, lock: str, client: int, cookie: str) -> None:
    """Take a lock of object `name` away from a client; idempotent. Raises what librados raises."""
    body = _string(lock) + struct.pack("<Bq", _CLIENT, client) + _string(cookie)
    try:
        ioctx.execute(name, "lock", "break_lock", _struct(body))
    except ceph_errors() as err:
        if errno_of(err) != errno.ENOENT:
            raise


def _lockers(ioctx: Any, pool: str) -> list[tuple[tuple[int, int], str, str]]:
    """Return ((entity type, number), cookie, description) of each holder whose lease lasts."""
    try:
        _, raw = ioctx.execute(
            LOCK_OBJECT, "lock", "get_info", _struct(_string(LOCK_NAME)), 64 << 10
        )
    except ceph_errors() as err:
        if errno_of(err) == errno.ENOENT:
            return []
        raise error_of(err, f"read the lock of pool {pool}") from err
    return _decode_lockers(raw)


def name_of(holder: dict[str, Any]) -> str:
    """Return how people find a server."""
    return f"{holder.get('host', 'unknown host')}, process {holder.get('pid', 'unknown')}"


def endpoint_of(holder: dict[str, Any]) -> str:
    """Return where a server is reached from here, empty if it does not say or only its host can."""
    endpoint = holder.get("endpoint")
    if not isinstance(endpoint, str):
        return ""
    host = endpoint.rpartition(":")[0].strip("[]")
    local = host.startswith(("unix", "127.")) or host in ("::1", "localhost")
    return "" if local and holder.get("boot") != _boot_id() else endpoint


def _identity() -> dict[str, Any]:
    """Say who this process is, so that its death can be told from this host."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "pid_space": _pid_space(),
        "start": _start_time(os.getpid()),
    }


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether the holder ran on this host since its last boot and is gone."""
    if holder.get("boot") != _boot_id() or holder.get("pid_space") != _pid_space():
        return False
    return _start_time(int(holder.get("pid", 0))) != holder.get("start")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_space() -> str:
    """Name the space in which process ids are counted: two containers of a host differ."""
    return str(Path("/proc/self/ns/pid").readlink())


def _start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _parsed(text: str) -> dict[str, Any]:
    """Return what a lock's description says; nothing if it is none of ours."""
    with contextlib.suppress(ValueError):
        body = json.loads(text)
        if isinstance(body, dict):
            return body
    return {}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def _struct(body: bytes) -> bytes:
    return struct.pack("<BBI", 1, 1, len(body)) + body


def _decode_lockers(raw: bytes) -> list[tuple[tuple[int, int], str, str]]:
    """Decode `cls_lock_get_info_reply` up to its lockers."""
    (count,) = struct.unpack_from("<I", raw, 6)
    at = 10
    found = []
    for _ in range(count):
        kind, number, length = struct.unpack_from("<BqI", raw, at + 6)
        at += 6 + 13
        cookie = raw[at : at + length].decode()
        (length,) = struct.unpack_from("<I", raw, at + length + 2)
        at += len(cookie.encode()) + 6
        # An expiry time, an address whose form depends on the release, and the description last.
        found.append(((kind, number), cookie, _last_string(raw[at : at + length])))
        at += length
    return found


def _last_string(raw: bytes) -> str:
    """Return the description at the end of a `locker_info_t`."""
    at = 8
    if raw[at] == 1:
        at += 7 + int(struct.unpack_from("<I", raw, at + 3)[0])
    else:
        at += 8 + 128
    (length,) = struct.unpack_from("<I", raw, at)
    return raw[at + 4 : at + 4 + length].decode(errors="replace")
