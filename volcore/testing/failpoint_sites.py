"""The two storages on which servers are killed step by step: a local pool, and a real Ceph.

A site says who serves, lets another process recover after a kill, and looks at the storage around
the code under test.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from volcore.backends.rbd.opening import settled
from volcore.client import Client
from volcore.engine.exports import KINDS
from volcore.limits import MIB
from volcore.testing import local_judge
from volcore.testing.cluster import CephAccess
from volcore.testing.failpoint import FailingServer
from volcore.testing.failpoint_world import POOL, QUIET_S
from volcore.testing.rbd_judge import Judge

_TRASH_LINE: Final = "trash_retention_s = 3600\n"
_PAGE_ROWS: Final = 1000
_THEIRS: Final = "theirs-"


class LocalSite:
    """One server over a directory; who recovers is its next start."""

    backend: Final = "local"
    their_pool: str = ""

    def __init__(self, directory: Path, library: Path) -> None:
        self.directory = directory
        self.told: set[str] = set()
        """What was found before, so that one fault fails one scenario."""
        lines = f'backend = "local"\ndirectory = "{directory / "pool"}"\n{_TRASH_LINE}'
        self.server = FailingServer(directory, library, lines, files_below=directory / "pool")

    @contextmanager
    def running(self) -> "Iterator[LocalSite]":
        """Start the server; kill it at the end."""
        try:
            self.server.start()
            yield self
        finally:
            self.server.close()

    def client(self) -> Client:
        """Return a new client of whoever serves."""
        return self.server.client()

    def ready(self) -> None:
        """Wait for nothing: there is no second server."""

    def recover(self) -> None:
        """Let another process serve, after the one that did was killed."""
        self.server.kill()
        self.server.start()

    def leftovers(self, known: set[str]) -> list[str]:
        """Return what the storage has besides the volumes `known`, and what of these it lacks."""
        return local_judge.leftovers(self.server.pool_directory, known)

    def make_theirs(self, name: str, *, elsewhere: bool = False) -> None:
        """See `Storage.make_theirs`."""
        raise NotImplementedError

    def grow(self, backend_name: str, size_bytes: int) -> None:
        """See `Storage.grow`."""
        raise NotImplementedError

    def write(self, backend_name: str, offset_bytes: int, data: bytes) -> None:
        """See `Storage.write`."""
        raise NotImplementedError

    def read(self, backend_name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Storage.read`."""
        raise NotImplementedError

    def lose_records(self, part: str) -> None:
        """See `Storage.lose_records`."""
        raise NotImplementedError

    def remove_theirs(self) -> None:
        """There is nothing of others."""


class RbdSite:
    """Two servers on one pool of Ceph; the one that stood by recovers."""

    backend: Final = "rbd"

    def __init__(
        self, access: CephAccess, ioctx: Any, theirs: Any, directory: Path, library: Path
    ) -> None:
        """Serve the pool of `ioctx`; `theirs` is that of another pool, for images of others."""
        import rbd

        self._rbd, self._ioctx, self._theirs = rbd, ioctx, theirs
        pool, self.their_pool = ioctx.name, theirs.name
        self.directory = directory
        self.told: set[str] = set()
        """What was found before, so that one fault fails one scenario."""
        lines = (
            f'backend = "rbd"\npool = "{pool}"\nceph_conf = "{access.conf_path}"\nuser = "admin"\n'
            f"{_TRASH_LINE}"
        )
        self.server = FailingServer(directory / "a", library, lines)
        self._other = FailingServer(directory / "b", library, lines)
        self._judge = Judge(ioctx, access.conf_path, pool)
        self._starting: threading.Thread | None = None

    @contextmanager
    def running(self) -> "Iterator[RbdSite]":
        """Start both, and wait until clones take the short path; kill both at the end."""
        try:
            self.server.start()
            self.server.wait_for_short_path()
            self._other.start(standby=True)
            yield self
        finally:
            self.ready()
            self.server.close()
            self._other.close()

    def client(self) -> Client:
        """Return a new client of both."""
        return Client(f"{self.server.endpoint},{self._other.endpoint}")

    def ready(self) -> None:
        """Wait until the other server stands by."""
        if self._starting is not None:
            self._starting.join()
            self._starting = None

    def recover(self) -> None:
        """See `LocalSite.recover`; the one that was killed starts meanwhile, on standby."""
        self.ready()
        self.server.kill()
        self.server, self._other = self._other, self.server
        with self.client() as client:
            client.get_pool(POOL)
        self._starting = threading.Thread(
            target=self._other.start, kwargs={"standby": True}, daemon=True
        )
        self._starting.start()

    def leftovers(self, known: set[str]) -> list[str]:
        """See `LocalSite.leftovers`; what is called like images of others is theirs."""
        listed = self._rbd.RBD().list(self._ioctx)
        theirs = {name for name in listed if name.startswith(_THEIRS)} - known
        return self._judge.structure(known, theirs)

    def make_theirs(self, name: str, *, elsewhere: bool = False) -> None:
        """See `Storage.make_theirs`."""
        ioctx = self._theirs if elsewhere else self._ioctx
        self._rbd.RBD().create(ioctx, name, 8 * MIB, old_format=False, features=61)
        with self._rbd.Image(ioctx, name) as image:
            image.write(b"theirs", 0)
            image.create_snap("s")

    def grow(self, backend_name: str, size_bytes: int) -> None:
        """See `Storage.grow`."""
        with self._rbd.Image(self._ioctx, backend_name) as image:
            image.resize(size_bytes)

    def write(self, backend_name: str, offset_bytes: int, data: bytes) -> None:
        """See `Storage.write`."""
        with self._rbd.Image(self._ioctx, backend_name) as image:
            image.write(data, offset_bytes)

    def read(self, backend_name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Storage.read`."""
        with settled(self._rbd.Image(self._ioctx, backend_name, read_only=True)) as image:
            return bytes(image.read(offset_bytes, length_bytes))

    def lose_records(self, part: str) -> None:
        """See `Storage.lose_records`."""
        import rados

        self.server.failpoints.wait_quiet(QUIET_S)  # the images carry their records
        for kind in KINDS:
            while True:
                with rados.ReadOpCtx() as op:
                    rows, _ = self._ioctx.get_omap_vals(op, "", f"{kind}/", _PAGE_ROWS)
                    self._ioctx.operate_read_op(op, "volcore_catalog")
                    keys = tuple(key for key, _ in rows if part in key)
                if not keys:
                    break
                with rados.WriteOpCtx() as op:
                    self._ioctx.remove_omap_keys(op, keys)
                    self._ioctx.operate_write_op(op, "volcore_catalog")

    def remove_theirs(self) -> None:
        """Remove the images that others have made, or were given."""
        for ioctx in (self._ioctx, self._theirs):
            for name in self._rbd.RBD().list(ioctx):
                if not name.startswith(_THEIRS):
                    continue
                with self._rbd.Image(ioctx, name) as image:
                    for snap in list(image.list_snaps()):
                        if image.is_protected_snap(snap["name"]):
                            image.unprotect_snap(snap["name"])
                        image.remove_snap(snap["name"])
                self._rbd.RBD().remove(ioctx, name)
