"""Many at once: clones per second.

singles   200 calls from 32 callers that share a client
batch     one DeployVolumes of 64
rivals    rbd.clone from 4, 16 and 32 threads on one connection; the best of them counts
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.rbd import rivals
from benchmarks.rbd.site import Site
from benchmarks.report import Sample
from benchmarks.sampling import Turns
from volcore.limits import GIB

SINGLES = 200
CALLERS = 32
BATCH = 64
THREADS = (4, 16, 32)
RIVAL_CLONES = 64


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents("flat", 10 * GIB)
    image = "pools/p/images/burst"
    site.client.import_image(image, server_path=str(site.write_image("burst")))
    rates: dict[str, list[float]] = {}
    calls_s: list[float] = []
    rivals_s: list[float] = []
    singles, batch = site.count(SINGLES, 16), site.count(BATCH, 8)
    others = site.count(RIVAL_CLONES, 8)
    for _ in range(site.count(5, 1)):
        for name, count, act in (
            ("singles", singles, lambda: _spread(
                lambda: site.clone("flat"), singles, CALLERS, calls_s)),
            ("batch", batch, lambda: _batch(site, image, batch)),
            *((f"rbd.clone, {threads} threads", others, lambda threads=threads: _spread(
                lambda: rivals.librbd_clone(site, "flat", site.fresh()), others, threads,
                rivals_s if threads == max(THREADS) else []))
              for threads in THREADS),
        ):  # fmt: skip
            start = time.perf_counter()
            act()
            rates.setdefault(name, []).append(count / (time.perf_counter() - start))
    best = max((name for name in rates if name.startswith("rbd")), key=lambda n: max(rates[n]))
    titles = {"singles": f"{SINGLES} clones from {CALLERS} callers", "batch": f"a batch of {BATCH}"}
    for name, bar in (("singles", 2.5), ("batch", 4.0)):
        site.figure(
            "burst", titles[name], Sample(tuple(rates[name])), unit="/s",
            rival=best, theirs=Sample(tuple(rates[best])), at_least=bar,
        )  # fmt: skip
    turns = Turns(
        {f"volcore, {CALLERS} callers": calls_s, f"rbd.clone, {max(THREADS)} threads": rivals_s}
    )
    found = site.lines("burst: one of many", turns)
    ours = found[f"volcore, {CALLERS} callers"]
    site.figure(
        "burst", f"p99 / p50 under {CALLERS} callers", Sample((ours.percentile(99) / ours.median,)),
        unit="", at_most=4.0,
    )  # fmt: skip


def _batch(site: Site, image: str, count: int) -> None:
    made = site.client.deploy_volumes(image, [site.fresh("b") for _ in range(count)])
    assert not any(isinstance(one, Exception) for one in made), made[0]


def _spread(act: Callable[[], object], count: int, callers: int, spent_s: list[float]) -> None:
    """Call so often from so many threads; note what each call takes."""
    gate = threading.Barrier(callers)
    shares = [count // callers + (number < count % callers) for number in range(callers)]

    def work(share: int) -> None:
        gate.wait()
        for _ in range(share):
            start = time.perf_counter()
            act()
            spent_s.append(time.perf_counter() - start)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(work, shares))
