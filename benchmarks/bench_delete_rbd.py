"""Deletes on a real Ceph: the answer of a server against `rbd.RBD().remove`.

What it isolates: clones of a frozen terabyte, never written. `volcore` is a whole call over gRPC to
a server in a process of its own; what it does behind the answer is waited for before the next
contender has its turn, but in `in a row`, where each answer has the work of those before beside it.
`freed` is the time until nothing is left, seen from the operation. The floor is a small write and
an empty call.

    .venv/bin/python -m benchmarks delete_rbd --store bluestore --rounds 40 --json DIR/delete.json
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench_clone_rbd import SMALL, Bench, compared
from benchmarks.local.report import Figure, Sample, print_table, write_json
from benchmarks.local.sampling import Turns
from volcore.limits import GIB, TIB
from volcore.testing.cluster import CephCluster
from volcore.v1.operation_pb2 import OPERATION_PHASE_SUCCEEDED

ROW = 20
SIZES = {"1 TiB": TIB, "10 GiB": 10 * GIB}


class Deletes:
    """Clones to delete, one for each contender and round."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.name = ""

    def served(self, parent: str) -> str:
        """Make a clone of the server's; return its name."""
        self.name = f"pools/p/volumes/{self.bench.fresh('v')}"
        source = f"pools/p/volumes/{parent}/snapshots/s"
        self.bench.client.create_volume(self.name, snapshot=source)
        return self.name

    def plain(self, parent: str) -> None:
        """Make a clone of librbd's."""
        self.name = self.bench.fresh("v")
        bench = self.bench
        bench.rbd.RBD().clone(bench.ioctx, parent, "s", bench.ioctx, self.name, 61, 22)

    def wait(self) -> None:
        """Wait until the server has freed all that was deleted."""
        client = self.bench.client
        for operation in client.list_operations("pools/p"):
            if operation.action == "delete" and operation.phase != OPERATION_PHASE_SUCCEEDED:
                ended = client.wait_operation(operation.name)
                assert ended.phase == OPERATION_PHASE_SUCCEEDED, ended

    def answer(self, _: int) -> None:
        self.bench.client.delete_volume(self.name)

    def remove(self, _: int) -> None:
        self.bench.rbd.RBD().remove(self.bench.ioctx, self.name)

    def floor(self, _: int) -> None:
        self.bench.ioctx.write_full("floor", SMALL)
        self.bench.empty_call()


def one(bench: Bench, rounds: int) -> Iterator[Figure]:
    """One delete after the other, each with nothing beside it."""
    deletes = Deletes(bench)
    for size, size_bytes in SIZES.items():
        bench.parents(size.replace(" ", ""), size_bytes)

    def before(name: str, _: int) -> None:
        deletes.wait()
        parent = name.partition(", ")[2].replace(" ", "")
        if name.startswith("rbd"):
            deletes.plain(parent)
        elif parent:
            deletes.served(parent)

    def freed(_: int) -> None:
        bench.client.delete_volume(deletes.name)
        deletes.wait()

    turns = Turns().run(
        {
            "volcore, 1 TiB": deletes.answer,
            "rbd.remove, 1 TiB": deletes.remove,
            "volcore, 10 GiB": deletes.answer,
            "rbd.remove, 10 GiB": deletes.remove,
            "freed, 1 TiB": freed,
            "floor": deletes.floor,
        },
        rounds=rounds,
        warm_up=2,
        before=before,
    )
    ours = "volcore, 1 TiB"
    yield compared("one delete", ours, turns, ours, "rbd.remove, 1 TiB", 0.25)
    yield compared("one delete", ours, turns, ours, "floor", None)
    for name in ("volcore, 10 GiB", "freed, 1 TiB"):
        rival = f"rbd.remove, {name.partition(', ')[2]}"
        yield compared("one delete", name, turns, name, rival, None)


def in_a_row(bench: Bench, rounds: int) -> Iterator[Figure]:
    """Answers with the work of earlier deletes beside them."""
    deletes = Deletes(bench)
    times: dict[str, list[float]] = {"volcore": [], "rbd.remove": []}
    for _ in range(rounds):
        names = [deletes.served("1TiB") for _ in range(ROW)]
        for name in names:
            start = time.perf_counter()
            bench.client.delete_volume(name)
            times["volcore"].append((time.perf_counter() - start) * 1e3)
        deletes.wait()
        for _ in range(ROW):
            deletes.plain("1TiB")
            start = time.perf_counter()
            deletes.remove(0)
            times["rbd.remove"].append((time.perf_counter() - start) * 1e3)
    sample = {name: Sample(tuple(values)) for name, values in times.items()}
    yield Figure(
        scenario=f"{ROW} in a row", name="volcore, 1 TiB", unit="ms", ours=sample["volcore"],
        rival="rbd.remove, 1 TiB", theirs=sample["rbd.remove"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["bluestore", "memstore"], default="bluestore")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures: list[Figure] = []
    with contextlib.ExitStack() as undo:
        work = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        access = undo.enter_context(CephCluster(store=chosen.store))
        bench = Bench(access, work / "server", undo)
        figures += one(bench, chosen.rounds)
        figures += in_a_row(bench, max(2, chosen.rounds // 20))
    facts = [chosen.store, f"{os.cpu_count()} processors", "one monitor, one OSD, size 1"]
    print_table(figures, facts)
    if chosen.json is not None:
        write_json(chosen.json, figures, facts)


if __name__ == "__main__":
    main()
