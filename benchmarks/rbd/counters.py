"""Requests to Ceph, as a client's own librados counts them (its admin socket)."""

import json
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BEHIND_S = 0.05
"""How long writes behind an answer may take."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Of one call: to OSDs, and to a monitor for snapshot numbers."""

    reads: int
    writes: int
    monitor: int

    @property
    def shown(self) -> str:
        text = f"{self.reads} + {self.writes}"
        return f"{text} + {self.monitor} mon" if self.monitor else text


def counted(path: Path, act: Callable[[int], object], *, calls: int = 5) -> Requests:
    """Return what one call costs, behind the answer too: the median of some."""
    found = []
    for number in range(calls):
        before = _objecter(path)
        act(-1 - number)
        time.sleep(BEHIND_S)
        after = _objecter(path)
        found.append({key: after[key] - before[key] for key in ("op_r", "op_w", "poolop_send")})
    reads, writes, monitor = (
        int(statistics.median(one[key] for one in found)) for key in ("op_r", "op_w", "poolop_send")
    )
    return Requests(reads, writes, monitor)


def _objecter(path: Path) -> dict[str, int]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b'{"prefix": "perf dump", "format": "json"}\0')
        with client.makefile("rb") as file:
            length = int.from_bytes(file.read(4), "big")
            return dict(json.loads(file.read(length))["objecter"])
