"""A guest that writes all the while moves back and forth between two hosts; servers are killed.

    python -m volcore.testing.migrations --backend local --moves 20 --seed 1

Two QEMU processes in two network namespaces with an address each, memory over TCP between them. In
every other move the server is killed (-9) before the hand-over, while it is under way, or after
it, and comes back; on a Ceph pool a second server takes over. After each move the old host is made
to try: it can write no more. In the end every byte is read back. Needs root, for the namespaces.
Prints each move, and a report as JSON.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from volcore.client import Client
from volcore.limits import GIB
from volcore.testing import network, sequence
from volcore.testing.guest import (
    SEQUENCE_END,
    SEQUENCE_LINE,
    SEQUENCE_STEP,
    GuestFiles,
    build_guest,
)
from volcore.testing.migration_sites import BACKENDS, HOSTS, SERVERS, Site
from volcore.testing.qemu import Qemu, QemuError
from volcore.v1.attachment_pb2 import ATTACHMENT_STATE_STANDBY, Attachment

VOLUME: Final = "pools/p/volumes/v"
SIZE_BYTES: Final = 2 * GIB
PORT: Final = 4444
BLOCKS: Final = 64
"""The guest writes so many on each host at least."""
KILLS: Final = ("before", "during", "after")
"""When the server dies, seen from the hand-over."""
KILL_S: Final = {"before": 0.3, "during": 0.003, "after": 0.1}
"""The latest instant of it."""
WAIT_S: Final = 60.0
_PROBE_BYTES: Final = 65536
PROBE_OFFSET: Final = SIZE_BYTES - _PROBE_BYTES
"""Where probes write: the sequence does not come there."""
_FOREIGN: Final = 0xEE
_REFUSED: Final = "Operation not permitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move; `kill` is empty or one of `KILLS`."""

    number: int
    target: str
    kill: str
    hand_over_ms: float
    pause_ms: float
    """From the guest's last instruction on the source to its first on the target."""
    blocks: int
    """Written before it."""


@dataclass
class Report:
    """What happened."""

    backend: str
    seed: int
    moves: list[Move] = field(default_factory=list)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Medians and maxima in ms of the moves without a kill, and of each kind of kill."""
    blocks: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Probe:
    """A session of a host that lasts: what a process that was forgotten there could still do."""

    def __init__(self, site: Site, attachment: Attachment) -> None:
        file = {"driver": "raw", "file": site.device(attachment)}
        self._process = subprocess.Popen(
            [*site.network.on(attachment.host), "qemu-io", *site.words(attachment),
             f"json:{json.dumps(file)}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def write(self, byte: int) -> str:
        """Write where the guest does not; return what is said of that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"write -P {byte} {PROBE_OFFSET} {_PROBE_BYTES}\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if "wrote " in line or "failed" in line:
                return line.strip()
        return "it is gone"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True, slots=True)
class Seat:
    """A host with the volume attached, and what runs there."""

    attachment: Attachment
    machine: Qemu
    probe: Probe | None

    @property
    def host(self) -> str:
        """Its name."""
        return self.attachment.host

    def close(self) -> None:
        """End what runs there."""
        if self.probe is not None:
            self.probe.close()
        self.machine.__exit__()


class Run:
    """One guest and its moves."""

    def __init__(self, site: Site, guest: GuestFiles, *, moves: int, seed: int) -> None:
        self._site, self._guest = site, guest
        self._dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        kills: list[str] = []
        while len(kills) < moves:
            kills += [one for kill in self._dice.sample(KILLS, len(KILLS)) for one in ("", kill)]
        self._kills = kills[:moves]
        self._probed = 0
        """Byte that the probes wrote last, with the right to."""
        self.report = Report(backend=site.backend, seed=seed)

    def run(self) -> Report:
        """Do all of it."""
        began_s = time.monotonic()
        with self._site.client() as client:
            client.create_volume(VOLUME, size_bytes=SIZE_BYTES)
            seat = self._seat(client.attach_volume(VOLUME, HOSTS[0]), 0)
            try:
                for number, kill in enumerate(self._kills, 1):
                    seat = self._move(client, seat, number, kill)
                    self._site.wait_served()
                self._read_back(client, seat)
            finally:
                seat.close()
            found = client.check_pool("pools/p", objects=True).faults
            self.report.failures += [f"{one.concerns}: {one.meaning}" for one in found]
        self.report.costs = _costs(self.report.moves)
        self.report.seconds = round(time.monotonic() - began_s, 1)
        return self.report

    def _seat(self, attachment: Attachment, number: int) -> Seat:
        site = self._site
        device = site.device(attachment)
        machine = Qemu(
            self._guest, site.directory, f"{number}-{attachment.host}", device,
            incoming=number > 0, objects=site.objects(attachment),
            wrapper=site.network.on(attachment.host),
        )  # fmt: skip
        machine.__enter__()
        return Seat(attachment, machine, Probe(site, attachment) if site.refuses else None)

    def _move(self, client: Client, source: Seat, number: int, kill: str) -> Seat:
        """Move the guest to the other host and let the old one try to go on."""
        self._wait_written(source, self._written(source) + BLOCKS)
        host = HOSTS[number % len(HOSTS)]
        target = self._seat(client.attach_volume(VOLUME, host, hand_over_from=source.host), number)
        try:
            self._expect_right(source, number, right=True)
            self._expect_right(target, _FOREIGN, right=False)
            hand_over_s = self._switch(client, source.machine, target, kill)
            blocks = self._written(source)
            self._judge(client, source, target, number)
            self._wait_written(target, blocks + BLOCKS)
            # What was flushed when the guest stopped may be said on both hosts.
            went_on = self._written(source) > blocks + SEQUENCE_STEP
            self._expect(not went_on, f"move {number}: the guest on {source.host} went on")
            source.close()
            client.detach_volume(VOLUME, source.host)
        except BaseException:
            target.close()
            raise
        stopped_s = source.machine.event_time_s("STOP")
        move = Move(
            number=number,
            target=host,
            kill=kill,
            hand_over_ms=round(hand_over_s * 1e3, 1),
            pause_ms=round((target.machine.event_time_s("RESUME") - stopped_s) * 1e3, 1),
            blocks=blocks,
        )
        self.report.moves.append(move)
        print(json.dumps(asdict(move)), file=sys.stderr, flush=True)
        return target

    def _switch(self, client: Client, source: Qemu, target: Seat, kill: str) -> float:
        """Migrate, with the hand-over while the guest stands still; return its seconds."""
        uri = f"tcp:{self._site.network.address(target.host)}:{PORT}"
        pause = [{"capability": "pause-before-switchover", "state": True}]
        for machine in (source, target.machine):
            machine.call("migrate-set-capabilities", capabilities=pause)
        target.machine.call("migrate-incoming", uri=uri)
        hit = self._site.killer()
        instant_s = self._dice.uniform(0, KILL_S[kill]) if kill else 0.0
        timer = threading.Timer(instant_s, hit)
        source.call("migrate", uri=uri)
        if kill == "before":
            time.sleep(instant_s)
            hit()
        source.wait_for("query-migrate", ["pre-switchover"])
        if kill == "during":
            timer.start()
        since_s = time.monotonic()
        assert client.hand_over_volume(VOLUME, target.host).host == target.host
        took_s = time.monotonic() - since_s
        if kill == "after":
            timer.start()
        source.call("migrate-continue", state="pre-switchover")
        source.wait_for("query-migrate", ["completed"])
        target.machine.wait_for("query-status", ["running"])
        if timer.ident is not None:
            timer.join()
        return took_s

    def _judge(self, client: Client, source: Seat, target: Seat, number: int) -> None:
        """Let the old host try; the new one writes."""
        shown = client.get_attachment(source.attachment.name)
        self._expect(shown.state == ATTACHMENT_STATE_STANDBY, f"{shown} is not on standby")
        said = _monitor_write(source.machine)
        self._expect("read-only" in said, f"move {number}: {source.host}'s QEMU: {said}")
        self._expect_right(source, _FOREIGN, right=False)
        self._expect_right(target, number, right=True)
        if not self._site.refuses:
            return
        # The old guest is woken, as by somebody who does not know of the move: it wants to go on.
        source.machine.call("cont")
        self._wait(lambda: SEQUENCE_END in source.machine.console(), "the old guest goes on")

    def _expect_right(self, seat: Seat, byte: int, *, right: bool) -> None:
        if seat.probe is None:
            return
        said = seat.probe.write(byte)
        self._expect(("wrote" if right else _REFUSED) in said, f"probe of {seat.host}: {said}")
        if right:
            self._probed = byte

    def _read_back(self, client: Client, seat: Seat) -> None:
        """Stop the guest and compare every byte; the volume is gone afterwards."""
        seat.machine.call("stop")
        last = self._written(seat)
        seat.machine.call("quit")
        raw = self._site.directory / "all.raw"
        self._site.read_all(seat.attachment, raw)
        try:
            self.report.blocks = sequence.length(raw, PROBE_OFFSET)
        except AssertionError as err:
            self.report.failures.append(str(err))
        self._expect(self.report.blocks >= last, f"{self.report.blocks} of {last} blocks are there")
        with raw.open("rb") as file:
            file.seek(PROBE_OFFSET)
            alien = file.read() != bytes([self._probed]) * _PROBE_BYTES
        self._expect(not alien, "what a probe wrote without the right to is there")
        self.report.failures += self._site.writers_wrong(
            [HOSTS[0], *(move.target for move in self.report.moves)]
        )
        client.detach_volume(VOLUME, seat.host)
        client.delete_volume(VOLUME)

    def _written(self, seat: Seat) -> int:
        """Return how many blocks the guest says on this host that it has flushed."""
        lines = seat.machine.console().rpartition("\n")[0].splitlines()
        told = [line for line in lines if line.startswith(SEQUENCE_LINE)]
        return int(told[-1].removeprefix(SEQUENCE_LINE)) if told else 0

    def _wait_written(self, seat: Seat, least: int) -> None:
        self._wait(lambda: self._written(seat) >= least, f"the guest on {seat.host} does not write")

    def _wait(self, holds: Callable[[], bool], complaint: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not holds():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{complaint} after {WAIT_S:.0f} s")
            time.sleep(0.02)

    def _expect(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.report.failures.append(complaint)


def _monitor_write(machine: Qemu) -> str:
    """Return what QEMU itself says to a write, with the session that the guest had."""
    line = f'qemu-io disk "write -P {_FOREIGN} {PROBE_OFFSET} {_PROBE_BYTES}"'
    try:
        return str(machine.call("human-monitor-command", command_line=line))
    except QemuError as err:
        return str(err)


def _costs(moves: list[Move]) -> dict[str, dict[str, float]]:
    found = {}
    for kill in ("", *KILLS):
        of_kind = [move for move in moves if move.kill == kill]
        if of_kind:
            pauses = [move.pause_ms for move in of_kind]
            hand_overs = [move.hand_over_ms for move in of_kind]
            found[kill or "no kill"] = {
                "moves": len(of_kind),
                "hand_over_ms_median": statistics.median(hand_overs),
                "hand_over_ms_max": max(hand_overs),
                "pause_ms_median": statistics.median(pauses),
                "pause_ms_max": max(pauses),
            }
    return found


def main() -> int:
    """Run it and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(".cache/guest"), help="of the guest")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    guest = build_guest(options.cache)
    if not options.inside:
        network.enter(["-m", "volcore.testing.migrations", *sys.argv[1:], "--inside"])
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="volcore-moves-"))
        hosts = stack.enter_context(network.Network([*HOSTS, *SERVERS]))
        site = stack.enter_context(BACKENDS[options.backend](Path(name), hosts))
        report = Run(site, guest, moves=options.moves, seed=options.seed).run()
    print(json.dumps(asdict(report), indent=1))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
