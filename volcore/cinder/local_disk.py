"""Disks of local pools, as files for the guests of this host.

Nova attaches no NBD disks, but it attaches files. qemu-storage-daemon makes one of an NBD export,
through FUSE: a process for each attached volume, which is nobody's child. It waits for volcore when
that restarts, and does not notice when cinder-volume does. `connection_info` has the type `gpfs`:
of those that Nova knows it is the one that takes a file as it is.

A volume's directory holds `disk`, the file, and `pid`. Processes are not started with oslo's
`execute`, see `options.transfer`. Concurrency: any number of threads and processes; one of two that
start the same disk does.
"""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from volcore.v1 import attachment_pb2

RECONNECT_S: Final = 3600
"""How long requests of a guest wait for volcore."""
_START_S: Final = 30.0
_STOP_S: Final = 10.0


class DiskError(Exception):
    """There is no file; the message says why and what to do."""


def is_here(connector: Any, own_host: str) -> bool:
    """Tell whether a connector is of this host; `own_host` is cinder-volume's name for it."""
    name = own_host.partition("@")[0]
    return connector.get("host") in {name, socket.gethostname(), socket.getfqdn()}


def offer(directory: Path, nbd: attachment_pb2.NbdConnection) -> Path:
    """Return the path of the file that is the export's disk; idempotent.

    Raises:
        DiskError: it cannot be made.
    """
    if not nbd.socket_path:
        raise DiskError(
            "volcore exports its volumes over TCP only; add a unix:// address to [nbd] listen"
        )
    disk, pid_path = directory / "disk", directory / "pid"
    if _is_served(disk):
        return disk
    _unmount(disk)
    directory.mkdir(parents=True, exist_ok=True)
    disk.touch()
    source = f"server.type=unix,server.path={_quoted(nbd.socket_path)}"
    source += f",export={_quoted(nbd.export_name)},reconnect-delay={RECONNECT_S}"
    target = f"mountpoint={_quoted(str(disk))},writable=on,allow-other=on"
    words = [
        *("qemu-storage-daemon", "--daemonize", "--pidfile", str(pid_path)),
        *("--blockdev", f"driver=nbd,node-name=disk,{source}"),
        *("--export", f"type=fuse,id=disk,node-name=disk,{target}"),
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_START_S)
    except FileNotFoundError:
        raise DiskError("qemu-storage-daemon is missing; install qemu-system-common") from None
    except subprocess.TimeoutExpired:
        withdraw(directory)
        raise DiskError(f"qemu-storage-daemon did not start in {_START_S:.0f} s; retry") from None
    if done.returncode and not _is_served(disk):
        withdraw(directory)
        raise DiskError(
            f"qemu-storage-daemon offers no file ({done.stderr.strip()}); it needs fuse3, and"
            " `user_allow_other` in /etc/fuse.conf unless cinder-volume runs as root"
        )
    return disk


def withdraw(directory: Path) -> None:
    """Take the file away; idempotent. What its guest has written is with volcore already."""
    if not directory.exists():
        return
    pid_path = directory / "pid"
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_S
        pid = _pid(pid_path)
        if pid is None:
            break
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        while _pid(pid_path) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
    _unmount(directory / "disk")
    for path in (directory / "disk", pid_path):
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        directory.rmdir()


def _is_served(disk: Path) -> bool:
    """Tell whether a process answers for the file."""
    try:
        return disk.stat().st_dev != disk.parent.stat().st_dev
    except OSError:
        return False


def _unmount(disk: Path) -> None:
    """Take away what a process that died has left, if it has."""
    with suppress(FileNotFoundError):
        subprocess.run(["fusermount3", "-u", "-z", "-q", str(disk)], capture_output=True)


def _pid(path: Path) -> int | None:
    """Return the process that wrote the pid file, if it lives."""
    try:
        pid = int(path.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(path) in words else None


def _quoted(value: str) -> str:
    """Return a value as QEMU's option lists take it."""
    return value.replace(",", ",,")
