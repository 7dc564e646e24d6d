"""What the server tells its service manager (sd_notify), and the watchdog.

Source: sd_notify(3), systemd.service(5). Nothing is sent where there is no service manager.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from volcore.limits import WATCHDOG_PERIOD_S_MAX

_EXTEND_S: Final = 60
"""Time to start that is asked for again and again while pools are opened."""
_log = structlog.get_logger("volcore.systemd")


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Where to send states; belongs to the event loop, whose thread sends."""

    address: str = ""
    """NOTIFY_SOCKET; empty: there is no service manager."""
    watchdog_s: float = 0
    """After so long without a sign of life the process is ended; 0: it is not watched."""

    def tell(self, *states: str) -> None:
        """Send states such as READY=1; a service manager that is not reached is only logged."""
        if not self.address or not states:
            return
        abstract = self.address.startswith("@")
        address = "\0" + self.address[1:] if abstract else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(states).encode(), address)
            except OSError as err:
                _log.warning("service manager not reached", error=str(err))

    async def keep_told(
        self,
        *,
        status: Callable[[], str],
        ready: Callable[[], bool],
        gets_on: Callable[[], Awaitable[bool]],
    ) -> None:
        """Send the status when it changes, and signs of life; until cancelled.

        Args:
            status: one line for people.
            ready: whether READY=1 was sent; until then more time is asked for.
            gets_on: whether threads make progress; without it there is no sign of life.
        """
        if not self.address:
            return
        period_s = min(WATCHDOG_PERIOD_S_MAX, (self.watchdog_s or WATCHDOG_PERIOD_S_MAX * 3) / 3)
        said, well = "", True
        while True:
            states = []
            if (line := status()) != said:
                said = line
                states.append(f"STATUS={line}")
            if not ready():
                states.append(f"EXTEND_TIMEOUT_USEC={_EXTEND_S * 1_000_000}")
            was_well, well = well, await gets_on()
            if well and self.watchdog_s:
                states.append("WATCHDOG=1")
            if was_well and not well:
                _log.error("worker threads do not get on; the watchdog hears no more of this")
            self.tell(*states)
            await asyncio.sleep(period_s)
