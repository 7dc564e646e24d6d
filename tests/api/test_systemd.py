"""The service manager: what it is told, and what it does not hear of a server that hangs."""

import asyncio
import os
import signal
import socket
import threading
import time

import pytest

from volcore import limits
from volcore.api.calls import CallPool
from volcore.testing.server import RunningServer

WATCHDOG_S = 0.9


@pytest.fixture
def place(short_directory, request):
    made = short_directory / f"{abs(hash(request.node.name)) % 10**6}"
    made.mkdir()
    return made


def heard(manager, *, for_s):
    """Return what comes within `for_s` seconds, one state an entry."""
    deadline_s = time.monotonic() + for_s
    states = []
    while (left_s := deadline_s - time.monotonic()) > 0:
        manager.settimeout(left_s)
        try:
            states += manager.recv(4096).decode().splitlines()
        except TimeoutError:
            break
    return states


@pytest.mark.parametrize("abstract", [False, True])
def test_states_and_signs_of_life(place, monkeypatch, abstract):
    """Goal: the manager knows. Method: be it; start, freeze, thaw, stop, and read its socket."""
    address = f"volcore-test-{os.getpid()}" if abstract else str(place / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + address if abstract else address)
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
        with RunningServer(place) as server:
            first = heard(manager, for_s=1)
            assert first.index("STATUS=opening pools") < first.index("READY=1")
            assert "EXTEND_TIMEOUT_USEC=60000000" in first
            assert first[-1] == "WATCHDOG=1"
            assert "STATUS=serving, pools reached: p" in first
            assert heard(manager, for_s=2 * WATCHDOG_S).count("WATCHDOG=1") >= 3
            server.freeze()
            time.sleep(0.05)
            heard(manager, for_s=0.05)
            assert heard(manager, for_s=1.5 * WATCHDOG_S) == []
            os.kill(server.pid, signal.SIGCONT)
            assert "WATCHDOG=1" in heard(manager, for_s=WATCHDOG_S)
            assert server.stop() == 0
            last = heard(manager, for_s=0.2)
            assert "STOPPING=1" in last
            assert "WATCHDOG=1" not in last[last.index("STOPPING=1") :]


def test_other_process_is_watched(place, monkeypatch):
    """Goal: a watchdog for somebody else is none for us. Method: WATCHDOG_PID of this test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(place / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        with RunningServer(place):
            states = heard(manager, for_s=1)
    assert "READY=1" in states
    assert "WATCHDOG=1" not in states


def test_threads_that_are_stuck(monkeypatch):
    """Goal: stuck threads are told from busy ones. Method: fill a pool and wait, then let go."""
    monkeypatch.setattr(limits, "WORKERS_STUCK_S_MAX", 0.3)
    monkeypatch.setattr(limits, "WATCHDOG_PERIOD_S_MAX", 0.2)
    pool, release = CallPool("t", threads=2, queued_max=1), threading.Event()

    async def story():
        assert await pool.gets_on()
        calls = [asyncio.create_task(pool.run(release.wait, 30)) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert await pool.gets_on(), "busy, but not for long"
        await asyncio.sleep(0.4)
        assert not await pool.gets_on()
        release.set()
        await asyncio.gather(*calls)
        assert await pool.gets_on()

    try:
        asyncio.run(story())
    finally:
        release.set()
        assert pool.close(5)
