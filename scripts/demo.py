"""The main job, for real: a golden image goes in, a VM boots from a thin clone of it.

    .venv/bin/python scripts/demo.py [--backend local|rbd] [--image PATH]

Everything happens in one temporary directory. The exit code is 0 only if every claim was proven and
nothing was left behind.
"""

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from demo_stage import (
    BIN,
    ENDING_SIGNALS,
    POOL,
    LocalStage,
    ProofError,
    RbdStage,
    Server,
    Table,
    console,
    content_digest,
    processes_of,
    run,
    stop_by_signal,
    volcore,
)

from volcore.cli.connection import blockdev
from volcore.cli.tree import draw
from volcore.cli.units import format_bytes, format_duration
from volcore.client import Client
from volcore.errors import VolcoreError
from volcore.testing import cluster, guest
from volcore.v1.attachment_pb2 import ACCESS_MODE_READ_ONLY
from volcore.v1.pool_pb2 import PoolShortPath
from volcore.v1.volume_pb2 import VOLUME_VIEW_FULL, Volume

ROOT = Path(__file__).resolve().parents[1]
HOST = "demo-host"
COUNT = 20
PROOF_S = 60
PARENT = f"pools/{POOL}"
IMAGE = f"{PARENT}/images/golden"
STRANGER_BOOT_S = 45.0
"""How long a disk that the user brought may run; nothing is known about what it says when."""


class Demo:
    """One run: the disk, the service that was started for it, and what came of it."""

    def __init__(self, work: Path, image: Path | None) -> None:
        self.work = work
        self.table = Table()
        self.files = guest.build_guest(ROOT / ".cache" / "guest")
        self.given = image
        self.raw = work / "golden.raw"
        self.volumes: list[Volume] = []
        self.digest = ""

    def play(self, stage: LocalStage | RbdStage, server: Server) -> None:
        """Do the main job, step by step."""
        with Client(server.endpoint) as client:
            self.client = client
            self.import_disk(server.endpoint)
            if isinstance(stage, RbdStage):
                self.wait_for_short_path()
            self.deploy(stage)
            self.boot(server.endpoint)
            self.show_isolation()
            self.snapshot_and_revert(server.endpoint)
            self.grow_and_flatten()
            self.show_space(stage)
            self.clear(stage)

    def import_disk(self, endpoint: str) -> None:
        """Bring the disk into the service as an image, through the command line."""
        table = self.table
        table.head("A golden image goes in")
        with table.step("make the disk" if self.given is None else "read the disk") as note:
            source = self.given or self.files.disk_raw
            run(["qemu-img", "convert", "-O", "raw", str(source), str(self.raw)])
            note.append(f"{format_bytes(self.raw.stat().st_size)} raw")
        packed = self.work / "golden.qcow2"
        with table.step("qemu-img convert to qcow2") as note:
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self.raw), str(packed)])
            note.append(f"{format_bytes(packed.stat().st_size)} qcow2")
        with table.step("volcore image import") as note:
            image = volcore(endpoint, "image", "import", str(packed), "golden")
            note.append("uploaded, inspected, converted, checksummed")
        self.digest = image["digest"]
        table.prove(
            "its digest is that of the disk we made",
            content_digest(self.raw) == self.digest,
            f"{self.digest[:30]}...",
        )

    def wait_for_short_path(self) -> None:
        """Let the server compare its own way to clone with librbd's, which it does once."""
        with self.table.step("compare with librbd, once for each pool"):
            deadline_s = time.monotonic() + PROOF_S
            path = self.client.get_pool(PARENT).short_path
            while path.state == PoolShortPath.STATE_PROVING and time.monotonic() < deadline_s:
                time.sleep(0.05)
                path = self.client.get_pool(PARENT).short_path
        on = path.state == PoolShortPath.STATE_ON
        self.table.prove("clones take the short path", on, "" if on else path.detail)

    def deploy(self, stage: LocalStage | RbdStage) -> None:
        """Make many volumes of it, in one call."""
        table = self.table
        table.head(f"{COUNT} volumes come out")
        before = stage.space_used()
        with table.step(f"deploy {COUNT} volumes in one call") as note:
            start_s = time.perf_counter()
            results = self.client.deploy_volumes(IMAGE, name_prefix="vm", count=COUNT)
            each_s = (time.perf_counter() - start_s) / COUNT
            note.append(f"{format_duration(each_s)} each, for any size of disk")
        for result in results:
            if isinstance(result, VolcoreError):
                raise result
            self.volumes.append(result)
        with table.step("list them") as note:
            listed = list(self.client.list_volumes(PARENT))
            note.append(f"{len(listed)} volumes, no data copied ({before} before)")
        with table.step("deploy the same again") as note:
            again = self.client.deploy_volumes(IMAGE, name_prefix="vm", count=COUNT)
            note.append("every call may be repeated")
        same = [one.uid for one in again if isinstance(one, Volume)] == [
            one.uid for one in self.volumes
        ]
        table.prove("the repeated call returned the same volumes", same)

    def boot(self, endpoint: str) -> None:
        """Boot a VM from one of them, from what the service says and nothing else."""
        table, chosen = self.table, self.volumes[6]
        table.head(f"A VM boots from {short(chosen)}")
        with table.step("attach it to this host"):
            self.client.attach_volume(chosen.name, HOST)
        words = self.qemu_words(endpoint, chosen)
        table.quote(" ".join(words[:2]))
        if self.given is not None:
            self.boot_stranger(words)
            return
        with table.step("boot QEMU (emulated CPU, so seconds)"):
            said = guest.boot(self.files, words)
        table.quote("\n".join(interesting(said)))
        table.prove(
            "the guest ran from the clone",
            f"{guest.BOOTED_LINE}{guest.HOSTNAME}" in said and f"serial={short(chosen)}" in said,
            "its own words above",
        )
        table.prove("the guest wrote to it", guest.WRITTEN_LINE in said)

    def boot_stranger(self, words: list[str]) -> None:
        """Boot a disk that the user brought, with its own boot loader, and let it run a while."""
        table = self.table
        command = [
            "qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-accel", "tcg", "-m", "768",
            "-display", "none", "-serial", "stdio", "-no-reboot", *words,
        ]  # fmt: skip
        with table.step(f"boot QEMU (at most {STRANGER_BOOT_S:.0f} s)"):
            console_path = self.work / "console"
            with (
                console_path.open("wb") as output,
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                ) as vm,
            ):
                try:
                    said = wait_for_login(vm, console_path)
                finally:
                    vm.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        vm.wait(5)
                    vm.kill()
        lines = [line.strip() for line in said.splitlines() if line.strip().isprintable()]
        table.quote("\n".join([line for line in lines if line][-6:]) or "(no serial console)")
        run(["qemu-io", "-c", "write -P 0xa5 0 64k", f"json:{words[1]}"])

    def show_isolation(self) -> None:
        """Show that only the clone has changed."""
        table, chosen, sibling = self.table, self.volumes[6], self.volumes[7]
        table.head("Nothing else has changed")
        self.client.detach_volume(chosen.name, HOST)
        table.prove(
            f"{short(sibling)} equals the disk we imported",
            self.equals_source(sibling),
            "qemu-img compare, through a read-only attachment",
        )
        table.prove(f"{short(chosen)} differs from it", not self.equals_source(chosen))
        back = self.work / "back.raw"
        with table.step("export the image again"):
            self.client.export_image(IMAGE, back)
        table.prove(
            "the image's content has the same digest",
            content_digest(back) == self.digest == self.client.get_image(IMAGE).digest,
            "read back and computed",
        )
        back.unlink()

    def snapshot_and_revert(self, endpoint: str) -> None:
        """Freeze a volume, write to it, and take it back."""
        table, chosen = self.table, self.volumes[6]
        table.head("Snapshot, write, revert")
        point = f"{chosen.name}/snapshots/first-boot"
        with table.step(f"snapshot {short(chosen)}"):
            self.client.create_snapshot(point)
        with table.step("clone the snapshot"):
            witness = self.client.create_volume(f"{PARENT}/volumes/witness", snapshot=point)
        before = self.work / "before.raw"
        self.copy_out(witness, before)
        self.client.attach_volume(chosen.name, HOST)
        words = self.qemu_words(endpoint, chosen)
        if self.given is None:
            with table.step("boot it again"):
                said = guest.boot(self.files, words)
            table.quote("\n".join(interesting(said)))
        else:
            run(["qemu-io", "-c", "write -P 0x5a 64k 64k", f"json:{words[1]}"])
        self.client.detach_volume(chosen.name, HOST)
        table.prove("it has changed since the snapshot", not self.equals(chosen, before))
        table.prove("the snapshot's clone has not", self.equals(witness, before))
        with table.step(f"revert {short(chosen)}"):
            self.client.revert_volume(chosen.name, point)
        table.prove("it is as it was", self.equals(chosen, before))
        before.unlink()

    def grow_and_flatten(self) -> None:
        """Grow one volume; make another one stand alone."""
        table, grown, flat = self.table, self.volumes[1], self.volumes[2]
        table.head("Grow and flatten")
        size_bytes = grown.size_bytes * 2
        with table.step(f"resize {short(grown)} to {format_bytes(size_bytes)}"):
            grown = self.client.resize_volume(grown.name, size_bytes)
        with table.step(f"flatten {short(flat)}") as note:
            operation = self.client.flatten_volume(flat.name)
            self.client.wait_operation(operation.name, timeout_s=60)
            now = self.client.get_volume(flat.name, view=VOLUME_VIEW_FULL)
            note.append(f"{format_bytes(now.allocated_bytes)} of its own now")
        table.prove(
            "it stands alone, and is still the same disk",
            now.depth == 0 and self.equals_source(flat),
        )

    def show_space(self, stage: LocalStage | RbdStage) -> None:
        """Print the tree, and what all of it occupies."""
        self.table.head("What came from what")
        console.print(draw(self.client, PARENT))
        pool = self.client.get_pool(PARENT)
        self.table.head("Space")
        self.table.row("promised to VMs", format_bytes(pool.provisioned_bytes))
        self.table.row("occupied", format_bytes(pool.allocated_bytes), stage.space_used())

    def clear(self, stage: LocalStage | RbdStage) -> None:
        """Delete everything, the parents first, to show that the order is free."""
        table = self.table
        table.head("Everything goes")
        names = [volume.name for volume in self.client.list_volumes(PARENT)]
        with table.step("delete the image before its clones"):
            self.client.delete_image(IMAGE)
        table.prove("its clones still work", self.equals_source(self.volumes[7]))
        with table.step(f"delete {len(names)} volumes") as note:
            for name in names:
                self.client.delete_volume(name, force=True)
            note.append("with their snapshots")
        pool = self.client.get_pool(PARENT)
        table.prove("the pool is empty", pool.volume_count == pool.image_count == 0)
        deadline_s = time.monotonic() + 10
        while (left := stage.leftovers()) and time.monotonic() < deadline_s:
            time.sleep(0.1)  # what hung on a deleted parent is collected in the background
        table.prove("and so is what lies below it", not left, ", ".join(left[:5]))

    def qemu_words(self, endpoint: str, volume: Volume) -> list[str]:
        """Return what `volcore attachment get --connection qemu` says, split as a shell would."""
        command = [
            str(BIN / "volcore"), "--endpoint", endpoint,
            "attachment", "get", volume.name, HOST, "--connection", "qemu",
        ]  # fmt: skip
        return shlex.split(run(command))

    @contextlib.contextmanager
    def reading(self, volume: Volume) -> Iterator[str]:
        """Attach a volume read-only for a while; gives the file name for qemu-img."""
        there = self.client.attach_volume(volume.name, HOST, access_mode=ACCESS_MODE_READ_ONLY)
        try:
            yield f"json:{json.dumps(blockdev(there))}"
        finally:
            self.client.detach_volume(volume.name, HOST)

    def equals_source(self, volume: Volume) -> bool:
        """Say whether a volume reads exactly as the disk that was imported."""
        return self.equals(volume, self.raw)

    def equals(self, volume: Volume, raw: Path) -> bool:
        """Say whether a volume reads exactly as a raw file."""
        with self.reading(volume) as name:
            done = subprocess.run(
                ["qemu-img", "compare", "-f", "raw", str(raw), name],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        if done.returncode > 1:
            raise ProofError(f"qemu-img compare failed: {done.stderr.strip()}")
        return done.returncode == 0

    def copy_out(self, volume: Volume, raw: Path) -> None:
        """Copy a volume into a raw file, outside of the service."""
        with self.reading(volume) as name:
            run(["qemu-img", "convert", "-O", "raw", name, str(raw)])


def short(volume: Volume) -> str:
    return volume.name.rpartition("/")[2]


def interesting(said: str) -> list[str]:
    """Return the lines of the console that the guest's own script wrote."""
    starts = (guest.BOOTED_LINE, "disk: ", "boots before", guest.WRITTEN_LINE)
    return [line.strip() for line in said.splitlines() if line.strip().startswith(starts)]


def wait_for_login(vm: subprocess.Popen, console_path: Path) -> str:
    """Return what a VM has said when it asks for a login, is off, or has had its time."""
    deadline_s = time.monotonic() + STRANGER_BOOT_S
    while True:
        said = console_path.read_text(errors="replace")
        if "login:" in said or vm.poll() is not None or time.monotonic() > deadline_s:
            if vm.poll() not in (None, 0):
                raise ProofError(f"QEMU ended with {vm.returncode}: {said[-500:]}")
            return said
        time.sleep(0.2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="From a golden image to a running VM.")
    parser.add_argument("--backend", choices=["local", "rbd"], default="local")
    parser.add_argument("--image", type=Path, help="disk image to use instead of the small guest")
    chosen = parser.parse_args()
    if chosen.image is not None and not chosen.image.is_file():
        parser.error(f"there is no file {chosen.image}")
    return chosen


def main() -> int:
    """Run the demo in a directory that goes, with processes that end, whatever happens."""
    chosen = arguments()
    for number in ENDING_SIGNALS:
        signal.signal(number, stop_by_signal)
    start_s = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="volcore-demo-"))
    try:
        return show(chosen, work, start_s)
    except KeyboardInterrupt:
        console.print("\n[bold]interrupted[/bold]; everything was taken down again")
        return 130
    except (ProofError, VolcoreError, guest.GuestError, cluster.ClusterError,
            subprocess.TimeoutExpired) as err:  # fmt: skip
        console.print(f"\n[bold red]the demo failed[/bold red]: {err}", markup=True)
        log = work / "server.log"
        if log.exists():
            console.print("the server's last words:", log.read_text()[-3000:], markup=False)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


def show(chosen: argparse.Namespace, work: Path, start_s: float) -> int:
    """Set the stage, play, and look whether anything is left."""
    demo = Demo(work, chosen.image)
    stage = RbdStage(work) if chosen.backend == "rbd" else LocalStage(work)
    demo.table.head(f"volcore on {stage.title}")
    with contextlib.ExitStack() as running:
        if isinstance(stage, RbdStage):
            with demo.table.step("start Ceph: monitor, manager, OSD, a pool"):
                running.enter_context(stage)
        config, socket = work / "volcore.toml", work / "volcore.sock"
        config.write_text(configuration(work, socket, stage))
        with demo.table.step("start volcore serve") as note:
            server = running.enter_context(Server(config, socket, work / "server.log"))
            note.append("private Unix socket")
        demo.play(stage, server)
        with demo.table.step("SIGTERM, and the server ends"):
            code = server.stop()
        demo.table.prove("it ended well", code == 0, f"exit code {code}")
    left = processes_of(work)
    demo.table.prove("nothing is left running", not left, ", ".join(left))
    spent = format_duration(time.monotonic() - start_s)
    console.print(
        f"\n[bold green]{demo.table.proof_count} claims, all proven[/bold green], {spent}\n"
    )
    return 0


def configuration(work: Path, socket: Path, stage: LocalStage | RbdStage) -> str:
    """Return a configuration with one pool."""
    return f"""\
[server]
listen = ["unix://{socket}"]
spool_directory = "{work}"

[nbd]
listen = ["unix://{work / "nbd.sock"}"]

[pools.{POOL}]
{stage.pool_config()}"""


if __name__ == "__main__":
    sys.exit(main())
