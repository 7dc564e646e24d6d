"""What changed between two snapshots of 100 GiB, 0.5 % of which was written between them.

Before the first snapshot 5 % of the objects got a block; between the two, 128 of 25,600 objects
were written whole. The same image for all: a call of `DiffSnapshot`, `rbd diff`, librbd's exact
iteration. Answers are compared.
"""

import json
from typing import Any

from benchmarks.rbd.site import VOLUMES, Site
from benchmarks.sampling import Turns
from volcore.limits import CHUNK_SIZE_BYTES, GIB

POOL = "few"
VOLUME = f"{VOLUMES}/changed"
BASE_STEP = 20
CHANGED_STEP = 200


def run(site: Site) -> None:
    """Measure; see the module."""
    size_bytes = site.count(100 * GIB, GIB)
    chunk_count = size_bytes // CHUNK_SIZE_BYTES
    site.client.create_volume(VOLUME, size_bytes=size_bytes)
    image_name = site.client.attach_volume(VOLUME, "bench").rbd.image
    with site.cluster.open_ioctx(POOL) as ioctx:
        _write(site, ioctx, image_name, range(0, chunk_count, BASE_STEP), bytes([1]) * 4096)
        site.client.create_snapshot(f"{VOLUME}/snapshots/from")
        data = bytes([2]) * CHUNK_SIZE_BYTES
        _write(site, ioctx, image_name, range(0, chunk_count, CHANGED_STEP), data)
        site.client.create_snapshot(f"{VOLUME}/snapshots/to")
        with site.rbd.Image(ioctx, image_name, read_only=True) as image:
            first, last = (snapshot["name"] for snapshot in image.list_snaps())
        answers: dict[str, list[tuple[int, int]]] = {}

        def ours(_: int) -> None:
            found = site.client.diff_snapshot(
                f"{VOLUME}/snapshots/to", base_snapshot=f"{VOLUME}/snapshots/from"
            )
            answers["volcore"] = [(one.offset_bytes, one.length_bytes) for one in found]

        def tool(_: int) -> None:
            words = ["diff", "--from-snap", first, f"{POOL}/{image_name}@{last}"]
            rows = json.loads(site.rbd_tool(*words, "--format", "json"))
            answers["rbd diff"] = [(int(row["offset"]), int(row["length"])) for row in rows]

        def iteration(_: int) -> None:
            found: list[tuple[int, int]] = []

            def keep(at: int, length: int, _: bool) -> None:
                found.append((at, length))

            with site.rbd.Image(ioctx, image_name, last, read_only=True) as image:
                image.diff_iterate(0, size_bytes, first, keep, True, False)
            answers["diff_iterate"] = found

        turns = Turns().run(
            {"volcore": ours, "rbd diff": tool, "diff_iterate": iteration}, rounds=site.count(3, 1)
        )
    sums = {name: sum(length for _, length in found) for name, found in answers.items()}
    assert len(set(sums.values())) == 1, sums
    found = site.lines("diff", turns)
    percent = 100 * sums["volcore"] / size_bytes
    name = f"list of {percent:.1f} % changed of {size_bytes // GIB} GiB"
    for rival, bar in (("rbd diff", 0.05), ("diff_iterate", None)):
        site.figure("diff", name, found["volcore"], rival=rival, theirs=found[rival], at_most=bar)


def _write(site: Site, ioctx: Any, name: str, chunks: range, data: bytes) -> None:
    with site.rbd.Image(ioctx, name) as image:
        for chunk in chunks:
            image.write(data, chunk * CHUNK_SIZE_BYTES)
        image.flush()
