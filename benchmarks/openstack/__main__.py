"""Cinder with our driver against the stock RBD driver: `python -m benchmarks openstack [WORDS...]`.

Real cinder-api, -scheduler and -volume with RabbitMQ, MariaDB and Glance, on one Ceph.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, report
from benchmarks.openstack import rest
from benchmarks.openstack.site import NOTHING, OURS, STOCK, Site
from benchmarks.report import Figure, Sample

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-openstack" / "bin" / "python"
SCENARIOS = ("driver", "api")
DIRECTORY = Path("/var/tmp")
"""On a disk, where the temporary directory may be in memory; short, since sockets go below it."""
PAGE_PATH = ROOT / "docs" / "benchmarks" / "openstack.md"
HEAD = """\
# OpenStack, measured

<!-- Written by `make bench-openstack`; do not edit. -->

volcore's Cinder driver against the stock RBD driver, in turn, on one Ceph (bluestore, a monitor
that commits once a second, as Ceph comes). *driver*: calls of the two drivers in one process.
*api*: from the request to cinder-api until the volume is available, with all of Cinder between;
whoever waits asks every 0.1 s. What each line isolates is said by its module in
`benchmarks/openstack`. Medians, with quartiles (ends of the range for fewer than eight samples) in
brackets.
"""
_VERSION = "from importlib.metadata import version; print(version('cinder'))"
DRIVER_LINES = {
    "from": ("create_volume_from_snapshot", 0.15),
    "clone": ("create_cloned_volume", 0.10),
    "snapshot": ("create_snapshot, detached", 0.10),
    "delete": ("delete_volume", 0.30),
    "connection": ("initialize_connection", 0.02),
    "image": ("volume of an image seen before", 0.15),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench openstack", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--tiny", action="store_true", help="show only that everything runs")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where to work")
    parser.add_argument("--page", type=Path, help="write Markdown; a full run writes docs/")
    options = parser.parse_args()
    if unknown := set(options.words) - set(SCENARIOS):
        parser.error(f"no scenario {unknown.pop()!r}; there are: {', '.join(SCENARIOS)}")
    words, start_s = options.words or SCENARIOS, time.monotonic()
    figures: list[Figure] = []
    with contextlib.ExitStack() as undo:
        name = tempfile.TemporaryDirectory(dir=options.directory, prefix="volcore-bench-")
        home = Path(undo.enter_context(name))
        site = Site(home, undo)
        if "driver" in words:
            figures += driver_figures(site, rounds=2 if options.tiny else 20)
        if "api" in words:
            figures += api_figures(site, tiny=options.tiny)
        facts = [*machine.facts(home), machine.said(["ceph", "--version"])]
        facts.append(f"cinder {machine.said([str(PYTHON), '-c', _VERSION])}")
    facts.append(f"the run took {(time.monotonic() - start_s) / 60:.0f} minutes")
    report.print_table(figures, facts)
    page = options.page or (None if options.words or options.tiny else PAGE_PATH)
    if page is not None:
        report.write_page(page, HEAD, figures, facts)
    return 0


def driver_figures(site: Site, *, rounds: int) -> list[Figure]:
    """Run the drivers where Cinder is; see `drivers`."""
    module = Path(__file__).with_name("drivers.py")
    done = subprocess.run(
        [PYTHON, module, site.rig.conf, site.image, str(rounds)],
        capture_output=True, text=True, cwd=site.rig.home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        Figure(
            scenario="driver", name=name, unit="ms", at_most=bar, rival="stock RBD driver",
            ours=milliseconds(found[what][OURS]), theirs=milliseconds(found[what][STOCK]),
        )
        for what, (name, bar) in DRIVER_LINES.items()
    ]  # fmt: skip


def api_figures(site: Site, *, tiny: bool) -> list[Figure]:
    """Ask cinder-api; see `rest`."""
    turns = rest.run(site, rounds=1 if tiny else 10, burst_rounds=1 if tiny else 6)
    lines = [name.removesuffix(f", {STOCK}") for name in turns.times_s if name.endswith(STOCK)]
    bars = {f"{rest.BURST_CLONES} volumes from one volume": 0.35}

    def of(name: str, what: str) -> Sample:
        return milliseconds(turns.times_s[f"{what}, {name}"])

    figures = [
        Figure(
            scenario="api", name=what, unit="ms", at_most=bars.get(what), rival="stock RBD driver",
            ours=of(OURS, what), theirs=of(STOCK, what),
        )
        for what in lines
    ]  # fmt: skip
    copies, blank = (
        f"{rest.BURST_CREATES} volumes from one snapshot",
        f"{rest.BURST_CREATES} blank volumes",
    )
    for name, bar, whose in ((OURS, 1.15, "ours"), (NOTHING, None, "a driver that does nothing")):
        figures.append(
            Figure(
                scenario="api", name=copies if name == OURS else f"floor: {copies}, {whose}",
                unit="ms", at_most=bar, ours=of(name, copies),
                rival=f"{blank} of {whose}", theirs=of(name, blank),
            )
        )  # fmt: skip
    return figures


def milliseconds(values_s: list[float]) -> Sample:
    return Sample(tuple(values_s)).scaled(1e3)


if __name__ == "__main__":
    sys.exit(main())
