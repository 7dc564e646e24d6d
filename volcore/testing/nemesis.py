"""Three servers, 16 callers, two guests, and somebody who breaks things: is all that was said true?

    python -m volcore.testing.nemesis --seconds 900 --seed 1

Faults come by a seeded schedule, one at a time with a pause, and sometimes two. Afterwards all is
healed, and then: the history of calls is linearizable (`linear.py`), what is listed ends it, no
block of a guest is wrong, nothing is lost or left over in the pool (`rbd_judge.py`), and a check of
the pool finds nothing. Needs root, for network namespaces. Prints a report as JSON.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from volcore.client import Client
from volcore.errors import NotFoundError, Reason, VolcoreError
from volcore.testing import linear, network
from volcore.testing.nemesis_callers import IMAGE, POOL, SIZES, full, listed, right
from volcore.testing.nemesis_guests import SLOTS
from volcore.testing.nemesis_log import Made, NameCall, gathered
from volcore.testing.nemesis_report import Hit, Report, cost, quantile
from volcore.testing.nemesis_site import CEPH_POOL, CLIENTS, GUEST, HOSTS, KINDS, TIED, Fault, Site
from volcore.testing.rbd_judge import Judge
from volcore.testing.sequence import BLOCK_BYTES
from volcore.testing.volume_model import Answer, Ask, NameModel, Right
from volcore.v1.pool_pb2 import PoolShortPath

CALLERS: Final = 16
GUEST_VOLUME: Final = "guest"
START_S: Final = 120.0
HEALED_S: Final = 120.0
"""Until the pool is served again after a fault has ended."""
END_S: Final = 400.0
"""Until a caller's last call has ended."""
QUIET_S: Final = 90.0
POLL_S: Final = 0.1
OVERLAP: Final = 0.25
"""Chance that a second fault comes within the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, and how faults come; seconds."""

    seconds: float
    seed: int = 1
    kinds: Sequence[str] = KINDS
    fault_s: tuple[float, float] = (6.0, 12.0)
    long_fault_s: float = 28.0
    """One of six is as long: longer than OSDs wait for each other."""
    pause_s: tuple[float, float] = (3.0, 6.0)


class Run:
    """One run on a site of its own."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._site, self._plan = site, plan
        self._dice = random.Random(plan.seed)  # noqa: S311 - repeatable on purpose
        self._logs = [site.directory / f"{host}.calls" for host in CLIENTS]
        self._backend_names: set[str] = set()
        self.hits: list[Hit] = []
        self.report = Report(seed=plan.seed)

    def run(self) -> Report:
        """Do all of it."""
        began_s = time.monotonic()
        with self._site.client() as client:
            self._prepare(client)
            with self._guests(client) as guests, self._callers():
                self._break()
                self._settle()
            self._judge_history(client)
            self._judge_guests(guests)
            self._judge_pool(client)
        for name, service in self._site.services.items():
            for code, count in Counter(service.codes).items():
                self.report.server_ends[f"{name}: {code}"] = count
        self.report.seconds = round(time.monotonic() - began_s, 1)
        return self.report

    def _prepare(self, client: Client) -> None:
        self._wait(lambda: self._site.leader() is not None, "no server has the pool", START_S)
        path = self._site.directory / "image.raw"
        path.write_bytes(random.Random(1).randbytes(SIZES[0]))  # noqa: S311 - test data
        made = client.import_image(IMAGE, path)
        assert made.size_bytes == SIZES[0]
        self._backend_names.add(made.backend_name)

    @contextmanager
    def _callers(self) -> Iterator[None]:
        """Half of the callers on either host."""
        each = CALLERS // len(CLIENTS)
        start_ns = time.monotonic_ns()
        words = [*TIED, sys.executable, "-m", "volcore.testing.nemesis_callers"]
        words += ["--endpoint", self._site.endpoint, "--tls", str(self._site.tls_directory)]
        words += ["--start-ns", str(start_ns), "--seed", str(self._plan.seed)]
        running = []
        try:
            for number, (host, log) in enumerate(zip(CLIENTS, self._logs, strict=True)):
                more = ["--first", str(number * each), "--count", str(each), "--log", str(log)]
                running.append(subprocess.Popen([*self._site.network.on(host), *words, *more]))
            yield
            for process in running:
                process.terminate()
            for process in running:
                if code := process.wait(END_S):
                    self.report.failures.append(f"callers ended with {code}")
        finally:
            for process in running:
                process.kill()

    @contextmanager
    def _guests(self, client: Client) -> Iterator[dict[str, Any]]:
        """Two guests; what they report is there at the end."""
        size_bytes = SLOTS * BLOCK_BYTES
        made = client.create_volume(full(GUEST_VOLUME), size_bytes=size_bytes)
        self._backend_names.add(made.backend_name)
        image = client.attach_volume(full(GUEST_VOLUME), "guest").rbd.image
        local = self._site.local.server
        with local.client() as other:
            self._wait(lambda: _answers(other), "no server has the local pool", START_S)
            other.create_volume(full(GUEST_VOLUME), size_bytes=size_bytes)
            nbd = other.attach_volume(full(GUEST_VOLUME), "guest").nbd
        words = [*TIED, sys.executable, "-m", "volcore.testing.nemesis_guests"]
        conf = str(self._site.cluster.conf_path)
        commands = {
            "librbd": [*self._site.network.on(GUEST), *words, "--rbd", conf, CEPH_POOL, image],
            "nbd": [*words, "--nbd", nbd.socket_path, nbd.export_name],
        }
        found: dict[str, Any] = {}
        running = {}
        try:
            for name, command in commands.items():
                running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            yield found
            for process in running.values():
                process.terminate()
            for name, process in running.items():
                output, _ = process.communicate(timeout=END_S)
                found[name] = json.loads(output) if process.returncode == 0 else None
        finally:
            for process in running.values():
                process.kill()

    def _break(self) -> None:
        """Break things by the schedule: every kind once, in an order that is drawn, and again."""
        end_s = time.monotonic() + self._plan.seconds
        todo: list[str] = []
        self._pause()
        while time.monotonic() < end_s:
            if not todo:
                todo = list(self._plan.kinds)
                self._dice.shuffle(todo)
            kinds = [todo.pop()]
            if todo and self._dice.random() < OVERLAP and _host(todo[-1]) != _host(kinds[0]):
                kinds.append(todo.pop())
            self._hit([self._site.fault(kind, self._dice) for kind in kinds])
            self._pause()

    def _pause(self) -> None:
        time.sleep(self._dice.uniform(*self._plan.pause_s))

    def _hit(self, faults: Sequence[Fault]) -> None:
        """Let faults begin one after the other, last, and end; wait until all works again."""
        begun_s, ended_s = [], []
        try:
            for fault in faults:
                begun_s.append(time.monotonic())
                fault.begin()
                time.sleep(self._dice.uniform(0, 2) if len(faults) > 1 else 0)
            is_long = self._dice.random() < 1 / 6
            span = (self._plan.long_fault_s,) * 2 if is_long else self._plan.fault_s
            time.sleep(self._dice.uniform(*span))
        finally:
            for fault in faults:
                fault.end()
                ended_s.append(time.monotonic())
        self._wait(lambda: self._site.leader() is not None, "the pool is not served", HEALED_S)
        self._site.cluster.wait_whole()
        whole_s = time.monotonic()
        for fault, begin_s, end_s in zip(faults, begun_s, ended_s, strict=True):
            hit = Hit(fault.kind, fault.target, begin_s, end_s, whole_s, len(faults) == 1)
            self.hits.append(hit)
            print(
                f"{hit.kind}: {hit.target}, {end_s - begin_s:.1f} s, whole after "
                f"{whole_s - end_s:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def _settle(self) -> None:
        """Let the callers work on a site that is whole for a while."""
        self._pause()

    def _wait(self, holds: Callable[[], bool], complaint: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{complaint} after {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def _judge_history(self, client: Client) -> None:
        """Look at every name once more, and judge what was said of each."""
        made, calls = gathered(self._logs)
        self._count(made, calls)
        names = sorted(calls)
        for name, call in zip(names, _last_looks(client, names), strict=True):
            calls[name] += call
        began_s = time.monotonic()
        for name in names:
            try:
                if (violation := linear.check(calls[name], NameModel())) is not None:
                    self.report.failures.append(f"{name}: {violation}")
            except linear.TooManyCombinationsError as err:
                self.report.failures.append(f"{name}: {err}")
        self.report.check_s = round(time.monotonic() - began_s, 1)
        self.report.failures += [f"{one.kind}: {one.odd}" for one in made if one.odd]

    def _count(self, made: Sequence[Made], calls: dict[str, list[NameCall]]) -> None:
        report = self.report
        tries = [call for of_name in calls.values() for call in of_name]
        took = sorted((one.end_ns - one.begin_ns) / 1e9 for one in made)
        report.calls, report.tries, report.names = len(made), len(tries), len(calls)
        report.unknown = sum(call.answer is None for call in tries)
        report.counts = dict(sorted(Counter(one.kind for one in made).items()))
        report.failed = dict(Counter(one.failed for one in made if one.failed))
        report.p50_s, report.p99_s, report.max_s = (quantile(took, q) for q in (0.5, 0.99, 1))
        report.faults = len(self.hits)

    def _judge_guests(self, guests: dict[str, Any]) -> None:
        stalls: dict[str, list[tuple[float, float]]] = {}
        for name, found in guests.items():
            if found is None:
                self.report.failures.append(f"the guest through {name} ended")
                continue
            self.report.failures += [f"guest through {name}: {one}" for one in found["wrong"]]
            stalls[name] = [(since, until) for since, until in found["stalls"]]
            self.report.guests[name] = {
                "blocks": found["written"],
                "reconnections": found["reconnections"],
                "stalls": len(stalls[name]),
            }
        made, _ = gathered(self._logs)
        ends_s = sorted(one.end_ns / 1e9 for one in made if not one.failed)
        gaps = list(pairwise(ends_s))
        calls = [(one.begin_ns / 1e9, one.end_ns / 1e9) for one in made]
        for kind in sorted({hit.kind for hit in self.hits}):
            hits = [hit for hit in self.hits if hit.kind == kind and hit.alone]
            if hits:
                self.report.costs[kind] = cost(hits, gaps, calls, stalls)

    def _judge_pool(self, client: Client) -> None:
        """Look from outside and from inside; what is deleted behind the answer is waited for."""
        import rados

        client.detach_volume(full(GUEST_VOLUME), "guest")
        volumes = list(client.list_volumes(POOL, page_size=1000))
        self.report.volumes = len(volumes)
        ours = self._backend_names | {one.backend_name for one in volumes}
        known = {full(name) for name in (*gathered(self._logs)[1], GUEST_VOLUME)}
        self.report.failures += [
            f"{one.name}: nobody made it" for one in volumes if one.name not in known
        ]
        self._wait(lambda: _proven(client), "the short path is not proven", START_S)
        for operation in list(client.list_operations(POOL)):
            try:
                client.wait_operation(operation.name, timeout_s=QUIET_S)
            except NotFoundError:
                continue  # of ended deletes the last 1,000 are kept
        conf_path = self._site.cluster.conf_path
        with (
            rados.Rados(conffile=str(conf_path), rados_id="admin") as cluster,
            cluster.open_ioctx(CEPH_POOL) as ioctx,
        ):
            judge = Judge(ioctx, conf_path, CEPH_POOL)
            self.report.failures += _quiet(lambda: judge.structure(ours))
        self.report.failures += _quiet(lambda: _faults(client))


def _last_looks(client: Client, names: Sequence[str]) -> Iterator[list[NameCall]]:
    """Yield for each name how it is listed at the end, with its attachments."""
    begin_ns = time.monotonic_ns()
    answers = listed(client, names)
    rights: dict[str, list[Right]] = defaultdict(list)
    for one in client.list_attachments(f"{POOL}/volumes/-", page_size=1000):
        rights[one.name.split("/")[3]].append(right(one))
    end_ns = time.monotonic_ns()
    for name, answer in zip(names, answers, strict=True):
        asked = {"get": answer}
        if answer.refused != Reason.VOLUME_NOT_FOUND:
            asked["attachments"] = Answer(rights=tuple(rights[name]))
        yield [
            linear.Call(begin_ns, end_ns, Ask(kind=kind), said, "at the end")
            for kind, said in asked.items()
        ]


def _host(kind: str) -> str:
    return kind.partition(" ")[0]


def _answers(client: Client) -> bool:
    try:
        client.get_pool(POOL)
    except VolcoreError:
        return False
    return True


def _proven(client: Client) -> bool:
    """Say whether the images are gone with which a server proves its short path."""
    return client.get_pool(POOL).short_path.state != PoolShortPath.STATE_PROVING


def _quiet(look: Callable[[], list[str]]) -> list[str]:
    """Return findings that stay."""
    deadline_s = time.monotonic() + QUIET_S
    while (findings := look()) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return findings


def _faults(client: Client) -> list[str]:
    """Return what the server itself finds wrong."""
    found = client.check_pool(POOL, objects=True).faults
    return [f"{fault.concerns}: {fault.kind}: {fault.meaning}" for fault in found]


def main() -> int:
    """Run it and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument(
        "--short", action="store_true", help="faults of two seconds, no proof of direct clones"
    )
    parser.add_argument("--keep", type=Path, help="directory to work in, kept afterwards")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        network.enter(["-m", "volcore.testing.nemesis", *sys.argv[1:], "--inside"])
    plan = Plan(seconds=options.seconds, seed=options.seed, kinds=options.kinds)
    if options.short:
        plan = Plan(
            seconds=options.seconds,
            seed=options.seed,
            kinds=options.kinds,
            fault_s=(1.5, 2.5),
            long_fault_s=6.0,
            pause_s=(0.5, 1.0),
        )
    with tempfile.TemporaryDirectory(prefix="volcore-nemesis-") as name:
        place = options.keep or Path(name)
        place.mkdir(exist_ok=True, parents=True)
        direct = not options.short
        with network.Network(HOSTS) as hosts, Site(place, hosts, direct=direct) as site:
            report = Run(site, plan).run()
    print(json.dumps(asdict(report), indent=1))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
