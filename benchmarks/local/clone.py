"""Clones and snapshots: one small change each, so the call and the sync are what is measured.

engine    the use case called in this process, beside the least that a durable change can cost
gRPC      a Python client that stays connected to a server's Unix socket, against the command that
          people use instead: a qcow2 overlay, which is not even durable when it returns

In the engine, snapshots are of a volume that is open and was written to since the one before;
through gRPC, of one that nobody uses.
"""

import subprocess
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.local.stores import IMAGE, IMAGE_MIB, Store, opened
from benchmarks.report import Figure
from benchmarks.sampling import Context, Floor, Turns
from volcore.limits import BLOCK_SIZE_BYTES, MIB
from volcore.model.records import SourceKind
from volcore.testing.server import RunningServer

FLOORS_MAX = 3.0
QEMU_IMG_MAX = 0.15


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    with opened(context.place("engine")) as store:
        yield from _engine(context, store)
    yield from _calls(context)


def _engine(context: Context, store: Store) -> Iterator[Figure]:
    volume = store.create("written", 64 * MIB)
    device = store.backend.open_device(volume.backend_id, read_only=False)
    floor = Floor(context.directory)

    def before(name: str, number: int) -> None:
        if name == "snapshot":
            block = bytes([number % 251 + 1]) * BLOCK_SIZE_BYTES
            device.write(number % 1024 * BLOCK_SIZE_BYTES, block, fua=True)

    turns = Turns().run(
        {
            "floor": floor,
            "clone": lambda n: store.clone(SourceKind.IMAGE, IMAGE, f"clone-{n + 100}"),
            "snapshot": lambda n: store.snapshot("written", f"snap-{n + 100}"),
        },
        rounds=context.size(300, 3),
        warm_up=context.size(20, 1),
        before=before,
    )
    device.close()
    floor.close()
    for name in ("clone", "snapshot"):
        yield Figure(
            scenario="clone",
            name=f"{name}, in the engine",
            unit="us",
            ours=turns.us(name),
            rival="4 KiB write and fdatasync",
            theirs=turns.us("floor"),
            at_most=FLOORS_MAX,
        )


def _calls(context: Context) -> Iterator[Figure]:
    directory = context.place("server")
    base = directory / "golden.raw"
    base.write_bytes(bytes(range(256)) * (IMAGE_MIB * MIB // 256))

    def overlay(number: int) -> None:
        target = directory / f"overlay-{number}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", target],
            check=True,
            timeout=60,
        )

    with (
        RunningServer(directory / "volcore") as server,
        server.client() as client,
        grpc.insecure_channel(server.endpoint) as channel,
    ):
        image = client.import_image(f"pools/p/images/{IMAGE}", base).name
        client.create_volume("pools/p/volumes/source", image=image)
        check = health_pb2_grpc.HealthStub(channel).Check

        turns = Turns().run(
            {
                "empty": lambda _: check(health_pb2.HealthCheckRequest(), timeout=10),
                "clone": lambda n: client.create_volume(
                    f"pools/p/volumes/clone-{n + 100}", image=image
                ),
                "snapshot": lambda n: client.create_snapshot(
                    f"pools/p/volumes/source/snapshots/snap-{n + 100}"
                ),
                "overlay": overlay,
            },
            rounds=context.size(100, 2),
            warm_up=context.size(10, 1),
        )
    yield Figure(scenario="clone", name="one empty call of gRPC", unit="us", ours=turns.us("empty"))
    for name in ("clone", "snapshot"):
        yield Figure(
            scenario="clone",
            name=f"{name}, through gRPC",
            unit="us",
            ours=turns.us(name),
            rival="qemu-img create -b",
            theirs=turns.us("overlay"),
            at_most=QEMU_IMG_MAX,
        )
