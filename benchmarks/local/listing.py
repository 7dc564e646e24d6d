"""Looking at a pool of 10,000 volumes through gRPC.

Pages of the size that calls have by themselves, pages as large as they may be, one volume, and the
figures of the pool.
"""

import itertools
from collections.abc import Iterator

from benchmarks.local.stores import IMAGE
from benchmarks.report import Figure
from benchmarks.sampling import Context, Turns
from volcore.limits import DEPLOY_VOLUMES_MAX, MIB, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from volcore.testing.server import RunningServer

VOLUMES = 10_000
LIST_S_MAX = 1.0


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    directory = context.place("server")
    base = directory / "golden.raw"
    base.write_bytes(bytes(MIB))
    count = context.size(VOLUMES, 20)
    with RunningServer(directory / "volcore") as server, server.client() as client:
        image = client.import_image(f"pools/p/images/{IMAGE}", base).name
        names = (f"disk-{number:06}" for number in range(count))
        while some := list(itertools.islice(names, DEPLOY_VOLUMES_MAX)):
            client.deploy_volumes(image, some)

        def listed(page_size: int) -> None:
            assert sum(1 for _ in client.list_volumes("pools/p", page_size=page_size)) == count

        turns = Turns().run(
            {
                "default": lambda _: listed(PAGE_SIZE_DEFAULT),
                "largest": lambda _: listed(PAGE_SIZE_MAX),
                "one": lambda _: client.get_volume("pools/p/volumes/disk-000007"),
                "figures": lambda _: client.get_pool("pools/p"),
            },
            rounds=context.size(9, 2),
            warm_up=1,
        )
    for name, size in (("default", PAGE_SIZE_DEFAULT), ("largest", PAGE_SIZE_MAX)):
        yield Figure(
            scenario="listing",
            name=f"{count:,} volumes in pages of {size:,}",
            unit="s",
            ours=turns.s(name),
            at_most=LIST_S_MAX,
        )
    yield Figure(scenario="listing", name="one of them", unit="us", ours=turns.us("one"))
    yield Figure(
        scenario="listing", name="figures of the pool", unit="us", ours=turns.us("figures")
    )
