"""Cinder's REST API: from the request until the volume is available or gone, in turn.

Volumes are 1 GiB. Whoever waits asks for the whole list every 0.1 s, one call whatever the number
of volumes: a faster poll keeps cinder-api from its work. So single operations are told to 0.1 s.
Before each burst there is a rest: after its last delete the stock driver keeps cinder-volume busy
for 2.4 s of a processor, and ours frees what was deleted; nobody pays for what another one left.

The floor of a burst is a driver that does nothing: what remains is Cinder's own. It makes the
volumes of one snapshot one by one, under a lock, and reads more for them in cinder-api.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.openstack.site import NOTHING, OURS, STOCK, Site
from benchmarks.sampling import Turns

POLL_S = 0.1
DONE_S = 300
REST_S = 5
CALLERS = 10
BURST_CLONES, BURST_CREATES = 10, 50


class Contender:
    """One backend, with a volume, a snapshot of it, and one of an image, to start from."""

    def __init__(self, site: Site, name: str) -> None:
        self.cinder, self.name, self.image = site.cinder, name, site.image
        self.source = self.volumes(1)[0]
        self.snapshot = self.snapshots(1)[0]
        if name != NOTHING:
            self.image_volume = self.volumes(1, imageRef=self.image)[0]

    def volumes(self, count: int, **fields: str) -> list[str]:
        """Make volumes, all asked for at once; return when all are available."""
        asked = {"size": 1, "volume_type": self.name, **fields}
        return self._made("volume", count, asked)

    def snapshots(self, count: int) -> list[str]:
        return self._made("snapshot", count, {"volume_id": self.source})

    def grown(self, volume: str) -> None:
        self.cinder.act("volume", volume, "os-extend", {"new_size": 2})
        self._wait("volume", [volume])

    def attached(self, volume: str) -> None:
        self.cinder.detach(self.cinder.attach(volume, "bench")["id"])
        self._wait("volume", [volume])

    def delete(self, kind: str, ids: Sequence[str]) -> None:
        """Delete all at once; return when all are gone."""
        with ThreadPoolExecutor(CALLERS) as executor:
            list(executor.map(lambda one: self.cinder.call("DELETE", f"/{kind}s/{one}"), ids))
        self._poll(kind, lambda states: not states.keys() & set(ids))

    def _made(self, kind: str, count: int, fields: dict[str, object]) -> list[str]:
        def ask(_: int) -> str:
            made: str = self.cinder.call("POST", f"/{kind}s", {kind: fields})[kind]["id"]
            return made

        with ThreadPoolExecutor(CALLERS) as executor:
            ids = list(executor.map(ask, range(count)))
        self._wait(kind, ids)
        return ids

    def _wait(self, kind: str, ids: Sequence[str]) -> None:
        def done(states: dict[str, str]) -> bool:
            now = {states.get(one, "missing") for one in ids}
            assert not any("error" in state for state in now), now
            return now == {"available"}

        self._poll(kind, done)

    def _poll(self, kind: str, done: Callable[[dict[str, str]], bool]) -> None:
        deadline = time.monotonic() + DONE_S
        while True:
            found = self.cinder.call("GET", f"/{kind}s/detail?limit=1000")[f"{kind}s"]
            if done({one["id"]: one["status"] for one in found}):
                return
            assert time.monotonic() < deadline, found
            time.sleep(POLL_S)


def run(site: Site, *, rounds: int, burst_rounds: int) -> Turns:
    """Return the times of `what, contender`."""
    contenders = [Contender(site, name) for name in (OURS, STOCK)]
    floor = Contender(site, NOTHING)
    turns = Turns()

    def one(contender: Contender) -> None:
        def timed(what: str, act: Callable[[], object]) -> object:
            start = time.perf_counter()
            result = act()
            times = turns.times_s.setdefault(f"{what}, {contender.name}", [])
            times.append(time.perf_counter() - start)
            return result

        def made(what: str, **fields: str) -> str:
            found = timed(what, lambda: contender.volumes(1, **fields))
            assert isinstance(found, list)
            return str(found[0])

        blank = made("create")
        timed("extend", lambda: contender.grown(blank))
        timed("attach and detach", lambda: contender.attached(blank))
        copies = [
            made("volume from snapshot", snapshot_id=contender.snapshot),
            made("volume from volume", source_volid=contender.source),
            made("volume from image", imageRef=contender.image),
        ]
        timed("delete a clone", lambda: contender.delete("volume", copies[:1]))
        contender.delete("volume", [blank, *copies[1:]])
        snapshots = timed("snapshot", lambda: contender.snapshots(1))
        assert isinstance(snapshots, list)
        timed("delete a snapshot", lambda: contender.delete("snapshot", snapshots))

    def burst(contender: Contender) -> None:
        bursts: list[tuple[str, int, dict[str, str]]] = [
            ("volumes from one snapshot", BURST_CREATES, {"snapshot_id": contender.snapshot}),
            ("blank volumes", BURST_CREATES, {}),
        ]
        if contender is not floor:
            fields = {"source_volid": contender.source}
            bursts.insert(0, ("volumes from one volume", BURST_CLONES, fields))
        for what, count, fields in bursts:
            time.sleep(REST_S)
            start = time.perf_counter()
            ids = contender.volumes(count, **fields)
            times = turns.times_s.setdefault(f"{count} {what}, {contender.name}", [])
            times.append(time.perf_counter() - start)
            contender.delete("volume", ids)

    plan = ((one, rounds, contenders), (burst, burst_rounds, [*contenders, floor]))
    for act, count, those in plan:
        for number in range(count):
            for contender in those if number % 2 else reversed(those):
                act(contender)
    return turns
