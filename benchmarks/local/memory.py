"""What volumes that are open cost in memory: proportional set size (PSS), from smaps_rollup.

one large   1 TiB with 10 layers and 100 GiB in use, opened in a fresh process: after opening, and
            after asking for the state of every block, which touches the map of every chunk. 90 %
            of each layer are whole chunks, 10 % every other 64 KiB.
many small  1,000 clones of the demo's image (64 MiB), each attached, connected over NBD and read
            as by a boot: the first MiB block by block, then a quarter of each chunk in 128 KiB.
            The server is a real one; the figure is all of its memory.
"""

import multiprocessing
import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.local import pages
from benchmarks.local.nbd_client import NbdClient
from benchmarks.local.stores import opened
from benchmarks.report import Figure, Sample
from benchmarks.sampling import Context
from volcore.backends.local import LocalBackend, LocalStore
from volcore.errors import VolcoreError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, KIB, MIB, TIB
from volcore.testing import guest
from volcore.testing.server import RunningServer

LARGE_MIB_MAX = 64.0
MANY_MIB_MAX = 300.0
LAYERS = 10
WHOLE_CHUNKS = 2304
HALF_CHUNKS = 512
READ_BYTES = 128 * KIB
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = "benchmarks.local.many_connections"


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    yield from _large(context)
    yield from _many(context)


def _large(context: Context) -> Iterator[Figure]:
    directory = context.place("large")
    with opened(directory) as store:
        volume = store.create("disk", TIB)
        chunk_count = TIB // CHUNK_SIZE_BYTES // LAYERS
        for layer in range(LAYERS):
            start = layer * chunk_count
            whole = context.size(WHOLE_CHUNKS, 8)
            half = context.size(HALF_CHUNKS, 4)
            pages.put(store, volume, range(start, start + whole))
            pages.put(store, volume, range(start + whole, start + whole + 2 * half), pages.HALF)
            if layer < LAYERS - 1:
                store.snapshot(volume.name, f"layer-{layer}")
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as process:
        added = process.submit(_added_by_opening, directory / "pool", volume.backend_id).result()
    for name, added_mib in zip(("opened", "opened, all maps touched"), added, strict=True):
        yield Figure(
            scenario="memory",
            name=f"1 TiB, 10 layers, 100 GiB written: {name}",
            unit="MiB",
            ours=Sample((added_mib,)),
            at_most=LARGE_MIB_MAX,
        )


def _added_by_opening(directory: Path, volume_id: str) -> tuple[float, float]:
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    backend.create("warm", MIB)
    with backend.open_device("warm", read_only=True) as device:
        device.extents(0, MIB)
    before = pss_mib("self")
    with backend.open_device(volume_id, read_only=False) as device:
        opened_mib = pss_mib("self") - before
        for at in range(0, device.size_bytes, 1024 * CHUNK_SIZE_BYTES):
            device.extents(at, 1024 * CHUNK_SIZE_BYTES)
        return opened_mib, pss_mib("self") - before


def _many(context: Context) -> Iterator[Figure]:
    count = context.size(1000, 4)
    _allow_descriptors()
    disk = guest.build_guest(ROOT / ".cache" / "guest").disk_raw
    with ExitStack() as stack:
        server = RunningServer(context.place("many"), module=LAUNCHER)
        stack.enter_context(server)
        client = stack.enter_context(server.client())
        image = client.import_image("pools/p/images/golden", disk).name
        results = client.deploy_volumes(image, name_prefix="vm", count=count)
        before = pss_mib(str(server.pid))
        for volume in results:
            if isinstance(volume, VolcoreError):
                raise volume
            attachment = client.attach_volume(volume.name, "bench")
            _boot(stack.enter_context(NbdClient(attachment)), disk.stat().st_size)
        after = pss_mib(str(server.pid))
    yield Figure(
        scenario="memory",
        name=f"server with {count:,} volumes open over NBD",
        unit="MiB",
        ours=Sample((after,)),
        at_most=MANY_MIB_MAX,
    )
    yield Figure(
        scenario="memory",
        name="the same before the first is open",
        unit="MiB",
        ours=Sample((before,)),
    )


def _boot(client: NbdClient, size_bytes: int) -> None:
    for at in range(0, MIB, BLOCK_SIZE_BYTES):
        client.read(at, BLOCK_SIZE_BYTES)
    for at in range(MIB, size_bytes, 4 * READ_BYTES):
        client.read(at, READ_BYTES)


def pss_mib(process: str) -> float:
    """Return the memory of a process, pages that it shares with others counted in part."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * KIB / MIB
    raise ValueError("smaps_rollup without Pss")


def _allow_descriptors() -> None:
    """For our ends of the connections, and for the server, which inherits it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
