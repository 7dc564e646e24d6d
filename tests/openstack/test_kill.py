"""Killed in the middle of each operation, a server or cinder-volume: all ends right, nothing leaks.

The servers are `volcore.testing.held_server`: they stop calls where a test wants to kill somebody.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import wait_up
from .operations import OPERATIONS, RBD_ONLY, STREAMS, method_of, retype

pytestmark = pytest.mark.long
BACKENDS = ("ours-rbd", "ours-local")


def side_by_side(work, items):
    """Do something with each item, several at a time."""
    with ThreadPoolExecutor(8) as callers:
        return list(callers.map(work, items))


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
        with hold.at("end", sorted(set(methods))):
            for running in runs:
                next(running)
            hold.wait(methods)
            server.kill()
        server.start()
        side_by_side(lambda running: finish(running, repeat=False), runs)

    side_by_side(on, BACKENDS)


def test_cinder_volume_dies(site):
    """Goal: users repeat what was cut off, and get it. Method: all at once, then kill -9.

    Only cinder-volume's own processes are killed: what they have started must end by itself.
    The servers go on with what they were asked for.
    """
    since = len(site.rig.log("volume"))
    try:
        cut_off = side_by_side(lambda backend: cut_off_all(site, backend), BACKENDS)
        site.rig.kill("volume")
    finally:
        for hold in site.holds.values():
            hold.release()
    site.rig.start("volume")
    wait_up(site.cinder, site.rig, since=since)
    side_by_side(
        lambda running: finish(running, repeat=True), [one for runs in cut_off for one in runs]
    )


def cut_off_all(site, backend):
    """Begin all operations; return them when each has a call that has stopped."""
    hold = site.holds[backend]
    runs = {one: one(site, backend) for one in (*OPERATIONS, retype) if backend in served(one)}
    side_by_side(next, runs.values())
    streams = [running for one, running in runs.items() if one in STREAMS]
    others = [running for one, running in runs.items() if one not in STREAMS]
    hold.add("middle", ["ImportImage", "ExportImage"])
    side_by_side(next, streams)
    hold.wait([method_of(one, backend) for one in STREAMS])
    methods = [method_of(one, backend) for one in OPERATIONS if one in runs and one not in STREAMS]
    hold.add("end", methods)
    side_by_side(next, others)
    hold.wait(methods)
    return runs.values()
