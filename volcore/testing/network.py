"""Hosts on one machine: network namespaces with an address each, joined by a bridge, cut at will.

A cut loses packets without a word, both ways, as a broken switch does: each side is told a wrong
hardware address of the other. That takes nothing but `ip`. The process that uses it lives in a
network namespace of its own (`enter`), which has the bridge; all of it goes with the process.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, Self

NET: Final = "10.78.0"
HERE: Final = "here"
"""The process itself, as a host; its address ends with 254."""
_NOWHERE: Final = "02:00:00:00:00:01"
_DEVICE: Final = "eth0"
_START_S: Final = 10.0


class NetworkError(RuntimeError):
    """The kernel does not give what is needed; the message has the words of `ip`."""


def enter(arguments: Sequence[str]) -> NoReturn:
    """Become the same Python with `arguments`, in a network namespace of its own (as root)."""
    words = ["unshare", "--net", sys.executable, *arguments]
    os.execvp(words[0], words)  # noqa: S606 - no shell wanted


class Network:
    """The bridge and the hosts; a context manager.

    *Concurrency*: cut and heal from one thread at a time.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._addresses = {host: f"{NET}.{n}" for n, host in enumerate(hosts, 1)}
        self._addresses[HERE] = f"{NET}.254"
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._cuts: set[frozenset[str]] = set()

    def __enter__(self) -> Self:
        try:
            _ip("link", "set", "lo", "up")
            _ip("link", "add", "name", "br0", "type", "bridge")
            _ip("address", "add", f"{self.address(HERE)}/24", "dev", "br0")
            _ip("link", "set", "br0", "up")
            for host in self._addresses:
                if host != HERE:
                    self._add(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders.values():
            holder.kill()
            holder.wait()
        with suppress(NetworkError):
            _ip("link", "delete", "br0")

    def address(self, host: str) -> str:
        """Return the address of a host."""
        return self._addresses[host]

    def on(self, host: str) -> list[str]:
        """Return the words before a command that shall run there; they make no further process."""
        return [] if host == HERE else ["nsenter", f"--net=/proc/{self._holders[host].pid}/ns/net"]

    def cut(self, one: str, other: str) -> None:
        """Lose all packets between two hosts. *Idempotent*."""
        self._cuts.add(frozenset((one, other)))
        for at, to in ((one, other), (other, one)):
            words = ("lladdr", _NOWHERE, "nud", "permanent")
            self._neighbour(at, "replace", self.address(to), *words)

    def heal(self, one: str, other: str) -> None:
        """Pass packets between them again. *Idempotent*."""
        if frozenset((one, other)) in self._cuts:
            self._cuts.discard(frozenset((one, other)))
            for at, to in ((one, other), (other, one)):
                self._neighbour(at, "delete", self.address(to))

    def _neighbour(self, host: str, verb: str, *words: str) -> None:
        device = "br0" if host == HERE else _DEVICE
        _run([*self.on(host), "ip", "neighbour", verb, *words, "dev", device])

    def _add(self, host: str) -> None:
        mine = Path("/proc/self/ns/net").readlink()
        holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
        )
        self._holders[host] = holder
        deadline_s = time.monotonic() + _START_S
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == mine:
            if holder.poll() is not None or time.monotonic() > deadline_s:
                raise NetworkError("no further network namespace can be made; run it as root")
            time.sleep(0.005)
        port = f"p-{host}"
        _ip("link", "add", "name", port, "type", "veth", "peer", "name", _DEVICE,
            "netns", str(holder.pid))  # fmt: skip
        _ip("link", "set", port, "master", "br0", "up")
        for words in (
            ("address", "add", f"{self.address(host)}/24", "dev", _DEVICE),
            ("link", "set", _DEVICE, "up"),
            ("link", "set", "lo", "up"),
        ):
            _run([*self.on(host), "ip", *words])


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(words: Sequence[str]) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip()}")
