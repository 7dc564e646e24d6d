"""Kills a real server at every step of every call that changes something, on a local pool and Ceph.

    python -m volcore.testing.failpoints local
    python -m volcore.testing.failpoints rbd --only CreateVolume

For each scenario (`volcore.testing.failpoint_scenarios`) the call is made once undisturbed, which
gives its steps, what the caller learns and what the API shows then. After that, for each step, in a
fresh world: the server that makes the call dies by SIGKILL just after it (with `--both` also just
before it, which is the same but for the answers that came meanwhile). Another process recovers (the
server on standby, or the next start). Then must hold:

- what the API shows is what it was before the call, or what it is after it, and the latter if the
  caller had an answer;
- the same call, with the same request id, has the same result, and the API shows what it is after;
- at the end of the scenario an audit finds nothing, storage and catalog have the same volumes, and
  when all is deleted the storage is empty.

Work behind the answer counts as the call's: it ends with a pause in which no step is made.
"""

import argparse
import json
import secrets
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from volcore.client import Client
from volcore.client.retry import RetryPolicy
from volcore.errors import NotFoundError, VolcoreError
from volcore.testing import failpoint
from volcore.testing.cluster import CephCluster
from volcore.testing.failpoint_scenarios import SCENARIOS, Scenario
from volcore.testing.failpoint_sites import LocalSite, RbdSite
from volcore.testing.failpoint_world import POOL, QUIET_S, World, said, shown

Site = LocalSite | RbdSite
Point = tuple[int, bool]
"""The number of a step, from 1 on, and whether to die after it."""
Choose = Callable[[Sequence[str]], Iterable[Point]]
_DIES_S: Final = 60.0
_SHOWN_S: Final = 20.0
_FREED_S: Final = 30.0
_POLL_S: Final = 0.02
_ONCE: Final = RetryPolicy(tries_max=1)
_UNSURE: Final = (VolcoreError, OSError)
_STEPS_BEYOND: Final = 5
"""Steps may differ a little from one run to the next: so many more numbers are tried."""


@dataclass
class Outcome:
    """What came of a scenario."""

    backend: str
    scenario: str
    steps: list[str] = field(default_factory=list)
    kills: int = 0
    kept: int = 0
    """Kills after which the call had taken effect before it was repeated."""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return what is printed."""
        return {
            "backend": self.backend,
            "scenario": self.scenario,
            "steps": len(self.steps),
            "kills": self.kills,
            "kept": self.kept,
            "seconds": round(self.seconds, 1),
            "failures": self.failures,
        }


@dataclass(frozen=True, slots=True)
class _Goal:
    """How the API looks before and after a call, and what the caller learns."""

    before: dict[str, str]
    after: dict[str, str]
    result: str


class _Call:
    """A call under way, made once, of the server that shall die."""

    def __init__(self, site: Site, scenario: Scenario, world: World) -> None:
        self._scenario, self._world, self._endpoint = scenario, world, site.server.endpoint
        self.result: str | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        world = self._world
        try:
            with Client(self._endpoint, retry=_ONCE) as client:
                chosen = client.with_options(request_id=f"failpoint-{world.tag}")
                self.result = _said(
                    world, self._scenario.call(World(chosen, world.tag, world.storage))
                )
        except BaseException as err:
            self.error = err

    @property
    def has_ended(self) -> bool:
        """Whether there is an answer, or an error."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until it has ended.

        Raises:
            TimeoutError: it hangs although its server is dead.
        """
        self._thread.join(_DIES_S)
        if not self.has_ended:
            raise TimeoutError("the caller hangs although the server is dead")


def all_points(steps: Sequence[str], *, both: bool = False, like: bool = False) -> Iterator[Point]:
    """Yield every point: after each step, before the first, with `both` before each.

    Of more than two like steps in a row (frames of a log, pieces of a file) the first and the last;
    with `like` all of them.
    """
    for number in range(1, len(steps) + _STEPS_BEYOND):
        if not like and 1 < number < len(steps) and len({*steps[number - 2 : number + 1]}) == 1:
            continue
        if both or number == 1:
            yield number, False
        yield number, True


class Run:
    """One scenario on one site."""

    def __init__(self, site: Site, scenario: Scenario, number: int = 0) -> None:
        self._site, self._scenario = site, scenario
        self._prefix = f"f{number}x{secrets.token_hex(2)}"
        self.outcome = Outcome(site.backend, scenario.name)

    def run(self, choose: "Choose") -> Outcome:
        """Kill at the points that `choose` takes for the steps; then look at everything."""
        start_s = time.monotonic()
        try:
            goal = self._undisturbed()
            for number, after in choose(self.outcome.steps):
                died = self._guarded(number, after, goal)
                if not died and number > len(self.outcome.steps):
                    break
            self._look()
        except Exception:
            self._fail("around the kills", traceback.format_exc())
        self.outcome.seconds = time.monotonic() - start_s
        return self.outcome

    def _fail(self, where: str, words: str) -> None:
        self.outcome.failures.append(f"{self._scenario.name}, {where}: {words}")

    def _undisturbed(self) -> _Goal:
        """Make the call once, and take down what it does and what it brings."""
        with self._world("u") as world:
            points = self._site.server.failpoints
            before = _shown(world)
            points.watch()
            result = _said(world, self._scenario.call(world))
            points.wait_quiet(QUIET_S)
            points.disarm()
            self.outcome.steps = points.steps()
            goal = _Goal(before, _shown(world), result)
            again = _said(world, self._scenario.call(world))
            if again != result:
                self._fail("undisturbed", f"repeated it is {again}, not {result}")
            return goal

    def _guarded(self, number: int, after: bool, goal: _Goal) -> bool:
        """Kill once; note what is wrong. Return whether it died by itself."""
        step = self.outcome.steps[number - 1 : number] or ["beyond the last"]
        where = f"{'after' if after else 'before'} step {number}, {step[0]}"
        try:
            return self._killed(number, after, goal, where)
        except Exception:
            self._fail(where, traceback.format_exc())
            with suppress(Exception):
                self._site.server.failpoints.disarm()
                if self._site.server.is_dead:
                    self._site.recover()
            return True

    def _killed(self, number: int, after: bool, goal: _Goal, where: str) -> bool:
        site = self._site
        with self._world(f"{number}{'a' if after else 'b'}") as world:
            site.ready()
            server = site.server
            server.failpoints.arm(number, after=after)
            call = _Call(site, self._scenario, world)
            died = self._wait_for_death(call)
            server.failpoints.disarm()
            site.recover()
            call.join()
            self.outcome.kills += 1
            if call.error is not None and not (died and isinstance(call.error, _UNSURE)):
                raise call.error
            answered = call.result is not None
            if answered and call.result != goal.result:
                self._fail(where, f"the answer was {call.result}, not {goal.result}")
        with self._site.client() as client:
            again = client.with_options(request_id=f"failpoint-{world.tag}")
            world = World(again, world.tag, world.storage)
            self.outcome.kept += self._settled(world, goal, answered, where)
            repeated = _said(world, self._scenario.call(world))
            if repeated != goal.result:
                self._fail(where, f"the repeated call brought {repeated}, not {goal.result}")
            self._wait_for_goal(world, goal, where)
        return died

    def _wait_for_death(self, call: _Call) -> bool:
        """Return whether the server died; not if all was done and it did not."""
        points, end_s = self._site.server.failpoints, time.monotonic() + _DIES_S
        quiet_from_s, last = time.monotonic(), points.passed
        while time.monotonic() < end_s:
            if self._site.server.is_dead:
                return True
            if points.passed != last or not call.has_ended:
                quiet_from_s, last = time.monotonic(), points.passed
            elif time.monotonic() > quiet_from_s + QUIET_S:
                return False
            time.sleep(0.005)
        raise TimeoutError(f"the call does not end, the last steps are {points.steps()[-5:]}")

    def _settled(self, world: World, goal: _Goal, answered: bool, where: str) -> bool:
        """Return whether the call took effect; all or nothing of it is shown."""
        end_s = time.monotonic() + _SHOWN_S
        while True:
            found = _shown(world)
            if found == goal.after:
                return goal.after != goal.before
            if not answered and self._is_allowed(found, goal):
                return False
            if time.monotonic() > end_s:
                told = "what was answered is lost" if answered else "neither all nor nothing"
                self._fail(where, f"{told}: {found}, before {goal.before}, after {goal.after}")
                return False
            time.sleep(_POLL_S)

    def _wait_for_goal(self, world: World, goal: _Goal, where: str) -> None:
        """Have the API show what it is to show once the work in the background is done."""
        end_s = time.monotonic() + _SHOWN_S
        while (found := _shown(world)) != goal.after:
            if time.monotonic() > end_s:
                self._fail(where, f"in the end there is {found}, not {goal.after}")
                return
            time.sleep(_POLL_S)

    def _is_allowed(self, found: dict[str, str], goal: _Goal) -> bool:
        if self._scenario.is_whole:
            return found == goal.before
        names = found.keys() | goal.before.keys() | goal.after.keys()
        return all(
            found.get(name) in (goal.before.get(name), goal.after.get(name)) for name in names
        )

    @contextmanager
    def _world(self, word: str) -> Iterator[World]:
        """Make what the call needs, with names of its own, and wait until that is at rest."""
        if self._scenario.is_alone:
            self._clear()
        with self._site.client() as client:
            world = World(client, f"{self._prefix}{word}", self._site)
            points = self._site.server.failpoints
            points.watch()
            self._scenario.prepare(world)
            points.wait_quiet(QUIET_S)
            points.disarm()
            yield world

    def _look(self) -> None:
        """Audit, compare with the storage, delete all, and compare again."""
        with self._site.client() as client:
            _wait_for_operations(client)
            found = client.check_pool(POOL, objects=True)
            for fault in found.faults:
                self._fail("audit", str(fault).replace("\n", " "))
            known = {one.backend_name for one in client.list_volumes(POOL, show_deleted=True)}
            known |= {one.backend_name for one in client.list_images(POOL)}
        self._wait_clean(known, "storage")
        self._clear()
        self._wait_clean(set(), "empty")

    def _wait_clean(self, known: set[str], where: str) -> None:
        end_s = time.monotonic() + _FREED_S
        while left := [one for one in self._site.leftovers(known) if one not in self._site.told]:
            if time.monotonic() > end_s:
                for one in left:
                    self._fail(where, one)
                self._site.told.update(left)
                return
            time.sleep(0.1)

    def _clear(self) -> None:
        """Delete all that the pool has."""
        with self._site.client() as client:
            for host in client.list_fenced_hosts(POOL):
                client.unfence_host(host.name)
            for one in client.list_attachments(f"{POOL}/volumes/-"):
                client.detach_volume(one.name.partition("/attachments/")[0], one.host)
            for group in client.list_group_snapshots(POOL):
                client.delete_group_snapshot(group.name)
            for volume in client.list_volumes(POOL, show_deleted=True):
                client.delete_volume(volume.name, uid=volume.uid, force=True, purge=True)
            for image in client.list_images(POOL):
                client.delete_image(image.name)
            _wait_for_operations(client)
        self._site.remove_theirs()


def _shown(world: World) -> dict[str, str]:
    """Return what the API shows of a world, without its name."""
    return {
        name.replace(world.tag, "T"): text.replace(world.tag, "T")
        for name, text in shown(world.client).items()
        if world.tag in name
    }


def _said(world: World, found: Any) -> str:
    return said(found).replace(world.tag, "T")


def _wait_for_operations(client: Client) -> None:
    for operation in client.list_operations(POOL):
        with suppress(NotFoundError):  # of ended deletes the last 1,000 are kept
            client.wait_operation(operation.name, timeout_s=60)


def scenarios_of(site: Site, only: Sequence[str] = ()) -> list[Scenario]:
    """Return those that the pool can do, and whose calls are named if any are."""
    with site.client() as client:
        powers = client.get_pool(POOL).capabilities
    return [
        one
        for one in SCENARIOS
        if (not only or one.rpc in only or one.name in only)
        and (not one.needs or one.needs == site.backend or getattr(powers, one.needs, False))
    ]


@contextmanager
def site_of(backend: str, directory: Path) -> Iterator[Site]:
    """A site with its servers, on a Ceph of its own if need be."""
    library = failpoint.build(directory)
    with ExitStack() as undo:
        if backend == "local":
            yield undo.enter_context(LocalSite(directory, library).running())
            return
        cluster = undo.enter_context(CephCluster(directory / "ceph", store="memstore"))
        yield undo.enter_context(rbd_site(cluster, directory, library, undo))


def rbd_site(cluster: Any, directory: Path, library: Path, undo: ExitStack) -> Any:
    """Return a site on new pools of a cluster."""
    import rados

    pools = [f"volcore-test-{secrets.token_hex(4)}" for _ in range(2)]
    for pool in pools:
        cluster.create_pool(pool)
        undo.callback(cluster.delete_pool, pool)
    access = undo.enter_context(rados.Rados(conffile=str(cluster.conf_path), rados_id="admin"))
    ours, theirs = (undo.enter_context(access.open_ioctx(pool)) for pool in pools)
    return RbdSite(cluster, ours, theirs, directory, library).running()


def table(outcomes: Sequence[Outcome]) -> str:
    """Return rows for docs/availability.md: steps of each call by backend."""
    found: dict[str, dict[str, Outcome]] = {}
    for one in outcomes:
        found.setdefault(one.scenario, {})[one.backend] = one
    rows = []
    for name, by in found.items():
        cells = [f"{len(by[b].steps)} / {by[b].kills}" if b in by else "" for b in ("local", "rbd")]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def main() -> int:
    """Run it and print a line of JSON for each scenario, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", nargs="*", choices=["local", "rbd"], default=["local", "rbd"])
    parser.add_argument("--only", action="append", default=[], help="a call, or a scenario")
    parser.add_argument("--steps", action="store_true", help="print the names of the steps")
    parser.add_argument("--both", action="store_true", help="die before each step, too")
    parser.add_argument("--like", action="store_true", help="also between like steps in a row")
    parser.add_argument("--every", type=int, default=1, help="kill at each n-th point only")
    options = parser.parse_args()
    outcomes = []
    for backend in options.backend:
        with (
            tempfile.TemporaryDirectory(prefix="volcore-failpoints-") as name,
            site_of(backend, Path(name)) as site,
        ):
            for number, scenario in enumerate(scenarios_of(site, options.only)):
                outcome = Run(site, scenario, number).run(
                    lambda steps: islice(
                        all_points(steps, both=options.both, like=options.like),
                        *(0, None, options.every),
                    )
                )
                outcomes.append(outcome)
                print(json.dumps(outcome.row()), flush=True)
                if options.steps:
                    print(json.dumps(outcome.steps, indent=1), flush=True)
    print(table(outcomes))
    return 1 if any(one.failures for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
