"""Killed in the middle of each operation, a server or cinder-volume: all ends right, nothing leaks.

The servers are `volcore.testing.held_server`: they stop calls where a test wants to kill somebody.
Its instants come from a seed in the last two tests: `--kill-seed 7` takes another one.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import wait_up
from .operations_table import CALL_NOTHING, ONLY_OF, OPERATIONS, RBD_ONLY, STREAMS, method_of

pytestmark = pytest.mark.long
BACKENDS = ("ours-rbd", "ours-local")


def side_by_side(work, items):
    """Do something with each item, several at a time, all of them whatever goes wrong."""
    with ThreadPoolExecutor(16) as callers:
        asked = [callers.submit(work, item) for item in items]
    return [one.result() for one in asked]


def finish(running, *, repeat):
    """Let an operation come to its end."""
    with contextlib.suppress(StopIteration):
        running.send(repeat)
        raise AssertionError("it asks for more")


def served(operation):
    return [one for one in BACKENDS if one == "ours-rbd" or operation not in RBD_ONLY]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
def test_server_dies_in_the_middle(site, operation):
    """Goal: the request under way ends well. Method: kill -9 after the call's first commit.

    A call that moves an image is cut off when it has moved some of it.
    """

    def on(backend):
        hold, server = site.holds[backend], site.servers[backend]
        running = operation(site, backend)
        next(running)
        method = method_of(operation, backend)
        with hold.at("middle", [method]):
            next(running)
            hold.wait([method])
            server.kill()
        server.start()
        finish(running, repeat=False)

    side_by_side(on, served(operation))


def test_server_dies_before_it_answers(site):
    """Goal: an answer that is lost costs nothing. Method: all operations at once, then kill -9."""

    def on(backend):
        hold, server = site.holds[backend], site.servers[backend]
        operations = [one for one in OPERATIONS if backend in served(one) and one not in STREAMS]
        runs = [operation(site, backend) for operation in operations]
        side_by_side(next, runs)
        methods = [method_of(operation, backend) for operation in operations]
        stop_at_ends(hold, methods)
        try:
            for running in runs:
                next(running)
            hold.wait(methods)
            server.kill()
        finally:
            hold.release()
        server.start()
        side_by_side(lambda running: finish(running, repeat=False), runs)

    side_by_side(on, BACKENDS)


def test_cinder_volume_dies(site):
    """Goal: users repeat what was cut off, and get it. Method: all at once, then kill -9.

    Only cinder-volume's own processes are killed: what they have started must end by itself.
    The servers go on with what they were asked for.
    """
    with killed_and_started(site):
        cut_off = side_by_side(lambda backend: cut_off_all(site, backend), BACKENDS)
    side_by_side(
        lambda running: finish(running, repeat=True), [one for runs in cut_off for one in runs]
    )


@contextlib.contextmanager
def killed_and_started(site):
    """Kill cinder-volume after the block, let the servers go on, and start it again."""
    since = len(site.rig.log("volume"))
    try:
        yield
        site.rig.kill("volume")
    finally:
        for hold in site.holds.values():
            hold.release()
    site.rig.start("volume")
    wait_up(site.cinder, site.rig, since=since)


def stop_at_ends(hold, methods):
    """Let calls stop before their answers."""
    for method in methods:
        hold.add("end", [method], of=ONLY_OF.get(method, ""))


def cut_off_all(site, backend):
    """Begin all operations; return them when each has a call that has stopped."""
    hold = site.holds[backend]
    asked = (*OPERATIONS, *CALL_NOTHING)
    runs = {one: one(site, backend) for one in asked if backend in served(one)}
    side_by_side(next, runs.values())
    streams = [running for one, running in runs.items() if one in STREAMS]
    others = [running for one, running in runs.items() if one not in STREAMS]
    hold.add("middle", ["ImportImage", "ExportImage"])
    side_by_side(next, streams)
    hold.wait([method_of(one, backend) for one in STREAMS if one in runs])
    methods = [method_of(one, backend) for one in runs if one in OPERATIONS and one not in STREAMS]
    stop_at_ends(hold, methods)
    side_by_side(next, others)
    hold.wait(methods)
    return runs.values()


def test_servers_die_at_drawn_instants(site, kill_seed):
    """Goal: no instant is special. Method: all operations at once, each call stops at an instant
    that the seed draws, or goes on; kill -9 when nothing moves any more.
    """

    def on(backend):
        hold, server = site.holds[backend], site.servers[backend]
        runs = [one(site, backend) for one in OPERATIONS if backend in served(one)]
        side_by_side(next, runs)
        try:
            ask_drawn(hold, runs, kill_seed)
            server.kill()
        finally:
            hold.release()
        server.start()
        side_by_side(lambda running: finish(running, repeat=False), runs)

    side_by_side(on, BACKENDS)


def test_cinder_volume_dies_at_drawn_instants(site, kill_seed):
    """Goal: likewise for cinder-volume; what was cut off, whenever, is repeated, and ends right."""

    def on(backend):
        asked = (*OPERATIONS, *CALL_NOTHING)
        runs = [one(site, backend) for one in asked if backend in served(one)]
        side_by_side(next, runs)
        ask_drawn(site.holds[backend], runs, kill_seed)
        return runs

    with killed_and_started(site):
        cut_off = side_by_side(on, BACKENDS)
    side_by_side(
        lambda running: finish(running, repeat=True), [one for runs in cut_off for one in runs]
    )


def ask_drawn(hold, runs, seed):
    """Begin all; return when every call has stopped at its instant, or has ended."""
    hold.draw(seed)
    side_by_side(next, runs)
    stopped = hold.wait_still()
    print(f"--kill-seed {seed} stopped {sorted(stopped)}")
    assert stopped
