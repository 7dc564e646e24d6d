"""One long-lived connection per cluster and user, shared by the pools on it."""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.errmap import ceph_errors, error_of_code, translated
from volcore.backends.rbd.gate import Gate
from volcore.errors import (
    BackendIOError,
    NotFoundError,
    PreconditionError,
    Reason,
    UnavailableError,
)

CONNECT_TIMEOUT_S: Final = 10.0
OP_TIMEOUT_S: Final = 120.0
"""How long one request to an OSD or monitor may take; a hung cluster becomes UNAVAILABLE."""
CLOSE_WAIT_S: Final = 2.0
"""How long a close waits for calls to monitors."""
MONITORS_AGE_S_MAX: Final = 60.0
FIGURES_WAIT_S: Final = 15.0
"""How long a pool that was just made is waited for; OSDs report every 5 s."""
FIGURES_PAUSE_S: Final = 0.25
FENCE_S: Final = 7 * 24 * 3600
"""A fenced client is known as dead for that long (`watchers.py`)."""

_FIXED_OPTIONS: Final = {
    # Clones that need no protected parent, and whose parents can be deleted first.
    "rbd_default_clone_format": "2",
    # A write that returned is on the OSDs: every other client sees it, a flush has nothing to do.
    "rbd_cache": "false",
    # The trash is ours to use on purpose.
    "rbd_move_to_trash_on_remove": "false",
    # librbd rounds a discard down to this; the smallest allowed keeps its waste small.
    "rbd_discard_granularity_bytes": "4096",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """How to reach a cluster; equal options share one connection."""

    conf_path: str = ""
    """Ceph's configuration file; empty: Ceph's own default places."""
    user: str = "admin"
    """Without the `client.` prefix."""
    keyring_path: str = ""
    """Empty: what the configuration file says."""
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    op_timeout_s: float = OP_TIMEOUT_S


class Cluster:
    """A connection that opens with its first user and closes with its last.

    Concurrency: every method may be called from any thread.
    """

    _shared: ClassVar[dict[ClusterOptions, "Cluster"]] = {}
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._rados: Any = None
        self._gate = Gate()
        self._users = 0
        self._monitors: tuple[str, ...] = ()
        self._monitors_time_s = 0.0

    @classmethod
    def shared(cls, options: ClusterOptions) -> Self:
        """Return the process's one `Cluster` for these options; connects nothing."""
        with cls._shared_lock:
            found = cls._shared.get(options)
            if found is None:
                found = cls._shared[options] = cls(options)
            assert isinstance(found, cls)
            return found

    def acquire(self) -> None:
        """Count one more user; the first one connects.

        Raises:
            PreconditionError: TOOL_MISSING (no bindings), POOL_UNUSABLE (no configuration file).
            PermissionDeniedError: no or wrong key.
            UnavailableError: CLUSTER_UNREACHABLE, within the connect timeout.
        """
        with self._lock:
            if self._users == 0:
                self._rados = self._connect()
                self._gate = Gate()
            self._users += 1

    def release(self) -> None:
        """Count one user less; the last one disconnects, and calls raise SHUTTING_DOWN.

        A connection that is closed under a call ends the process: one that a call does not leave
        stays.
        """
        with self._lock:
            assert self._users > 0
            self._users -= 1
            if self._users == 0 and self._gate.close(CLOSE_WAIT_S):
                self._rados.shutdown()

    def _connect(self) -> Any:
        """Return a connected handle."""
        options = self.options
        connection = self._configured()
        try:
            with translated(
                f"connect to the Ceph cluster as client.{options.user}",
                missing=PreconditionError(
                    f"cannot connect to the Ceph cluster as client.{options.user}: no key for it"
                    " was found; name its keyring, or put it where ceph.conf looks for it",
                    reason=Reason.POOL_UNUSABLE,
                ),
            ):
                connection.connect()
        except BaseException:
            connection.shutdown()
            raise
        return connection

    def _configured(self) -> Any:
        """Return a handle with all options set, not yet connected."""
        rados = bindings().rados
        options = self.options
        timeout_s = str(int(options.op_timeout_s))
        conf = _FIXED_OPTIONS | {
            "client_mount_timeout": str(max(1, round(options.connect_timeout_s))),
            "rados_mon_op_timeout": timeout_s,
            "rados_osd_op_timeout": timeout_s,
        }
        if options.keyring_path:
            conf["keyring"] = options.keyring_path
        with translated(
            f"read the Ceph configuration {options.conf_path or '(default places)'}",
            missing=PreconditionError(
                f"the Ceph configuration {options.conf_path or '(default places)'} cannot be read;"
                " name an existing file",
                reason=Reason.POOL_UNUSABLE,
            ),
        ):
            return rados.Rados(conffile=options.conf_path, rados_id=options.user, conf=conf)

    def open_ioctx(self, pool: str) -> Any:
        """Return a fresh handle on a pool; its writes fail when the pool is full, not hang.

        Raises:
            PreconditionError: POOL_UNUSABLE, there is no such pool.
        """
        with translated(
            f"open the Ceph pool {pool!r}",
            missing=PreconditionError(
                f"the Ceph pool {pool!r} does not exist; create it with"
                f" `ceph osd pool create {pool}` and `rbd pool init {pool}`",
                reason=Reason.POOL_UNUSABLE,
            ),
        ):
            ioctx = self._rados.open_ioctx(pool)
            ioctx.set_osdmap_full_try()
            return ioctx

    def open_ioctx_of(self, pool: int | str) -> Any:
        """Return a fresh handle on the pool with that number or name, to read from.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND.
        """
        with translated(f"open Ceph pool {pool}"):
            if isinstance(pool, str):
                return self._rados.open_ioctx(pool)
            return self._rados.open_ioctx2(pool)

    def mon_command(self, prefix: str, **arguments: Any) -> Any:
        """Return the parsed JSON answer of a monitor command, None for an empty one."""
        command = json.dumps({"prefix": prefix, "format": "json", **arguments})
        with translated(f"ask the monitors for {prefix!r}"), self._gate.using():
            code, body, text = self._rados.mon_command(command, b"")
        if code:
            raise error_of_code(abs(code), f"ask the monitors for {prefix!r}", text)
        try:
            # Ceph 16 answers `osd blocklist ls` with two arrays in a row; the first one counts.
            text = bytes(body).decode().strip()
            return json.JSONDecoder().raw_decode(text)[0] if text else None
        except ValueError as err:
            raise BackendIOError(
                f"the monitors answered {prefix!r} with no JSON", reason=Reason.BACKEND_IO
            ) from err

    def pool_figures(self, pool: str) -> dict[str, Any]:
        """Return what `ceph df` says of a pool; waits while the cluster has no figures of it yet.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            UnavailableError: CLUSTER_UNREACHABLE, the OSDs of the pool have not reported.
        """
        deadline_s = time.monotonic() + FIGURES_WAIT_S
        while True:
            for row in self.mon_command("df")["pools"]:
                if row["name"] == pool:
                    return dict(row["stats"])
            with translated(f"look for the Ceph pool {pool!r}"), self._gate.using():
                there = self._rados.pool_exists(pool)
            if not there:
                raise NotFoundError(
                    f"the Ceph pool {pool!r} is gone; restore it, or take it out of the"
                    " configuration",
                    reason=Reason.POOL_NOT_FOUND,
                )
            if time.monotonic() > deadline_s:
                raise UnavailableError(
                    f"the cluster has no figures of the pool {pool!r} yet; retry, and see whether"
                    " `ceph status` shows its manager and its OSDs up",
                    reason=Reason.CLUSTER_UNREACHABLE,
                    retryable=True,
                )
            time.sleep(FIGURES_PAUSE_S)

    def ask_monitors(self) -> None:
        """Return when a monitor with a quorum has answered; blocks until then.

        Raises:
            UnavailableError: none did within `op_timeout_s`.
        """
        self.mon_command("fsid")

    def fence(self, address: str) -> bool:
        """Cut a dead or superseded client off from all OSDs; return whether that worked.

        Durability: at return no OSD that serves us will accept a write of that client.
        """
        try:
            self._rados.blocklist_add(address, FENCE_S)
            self._rados.wait_for_latest_osdmap()
        except ceph_errors():
            return False
        return True

    def block(self, addresses: Sequence[str], *, duration_s: int) -> None:
        """Put addresses on the blocklist, and learn of that map; what is there keeps its time.

        Raises:
            PermissionDeniedError: this user may not; nothing was changed.
            UnavailableError: CLUSTER_UNREACHABLE; some may be on it.
        """
        for address in addresses:
            with translated(f"change the blocklist for {address}"):
                self._rados.blocklist_add(address, duration_s)
        if addresses:
            with translated("learn of the blocklist"):
                self._rados.wait_for_latest_osdmap()

    def blocklist(self) -> set[str]:
        """Return the addresses of all clients that are fenced off."""
        return {str(row["addr"]) for row in self.mon_command("osd blocklist ls") or ()}

    def setting(self, option: str) -> str:
        """Return the value of an option of Ceph on this connection; empty if it has none."""
        with translated(f"read the option {option}"):
            return str(self._rados.conf_get(option) or "")

    @property
    def fsid(self) -> str:
        """The cluster's id."""
        with translated("read the cluster's id"):
            return str(self._rados.get_fsid())

    @property
    def instance_id(self) -> int:
        """This connection's number in the cluster; watchers carry it."""
        with translated("read the connection's id"):
            return int(self._rados.get_instance_id())

    @property
    def addresses(self) -> str:
        """This connection's own address, as watchers and the blocklist have it."""
        with translated("read the connection's address"):
            return str(self._rados.get_addrs())

    def monitors(self) -> tuple[str, ...]:
        """Return `host:port` of each monitor of the live map, v1 where there is one."""
        now_s = time.monotonic()
        if not self._monitors or now_s - self._monitors_time_s > MONITORS_AGE_S_MAX:
            found = self.mon_command("mon dump")["mons"]
            self._monitors = tuple(_monitor_address(mon) for mon in found)
            self._monitors_time_s = now_s
        return self._monitors


def _monitor_address(mon: dict[str, Any]) -> str:
    """Return the address that old clients understand too, if the monitor has one."""
    with suppress(KeyError, TypeError):
        vector = {one["type"]: one["addr"] for one in mon["public_addrs"]["addrvec"]}
        if found := vector.get("v1") or vector.get("v2"):
            return str(found)
    return str(mon["addr"]).partition("/")[0]
