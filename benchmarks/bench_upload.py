"""Import of a qcow2 file through the server and its unix socket, against `qemu-img convert`.

What it isolates: one uncompressed qcow2 of random bytes with some holes, warm in the page cache,
interleaved round by round with a quiet disk before each. The whole command `volcore image import`
as a user runs it; the Python client with the file handed over; the same file uploaded as frames,
as qcow2 (which waits in the spool) and as raw (which streams into the volume). The rival writes
into the same directory, and is measured until its output is durable as well. Prints medians;
asserts nothing.

    .venv/bin/python -m benchmarks.bench_upload --size-mib 2048 --rounds 5 --directory DIR
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from benchmarks.bench_import import Rows, make_source, rival
from volcore.client import Client
from volcore.testing.server import RunningServer

NAME = "pools/p/images/bench"


class Plain:
    """A file object that hides its descriptor, so that it is uploaded."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.seekable = file.seekable


def command(server: RunningServer, source: Path) -> None:
    words = ["--endpoint", server.endpoint, "image", "import", str(source), "bench"]
    subprocess.run(
        [sys.executable, "-m", "volcore.cli.main", *words],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def handed(client: Client, source: Path) -> None:
    client.import_image(NAME, source)


def uploaded(client: Client, source: Path) -> None:
    with source.open("rb", buffering=0) as file:
        client.import_image(NAME, cast("BinaryIO", Plain(file)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    rows = Rows()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-upload-") as place:
        directory = Path(place)
        source = make_source(directory, options.size_mib)
        raw = source.with_suffix(".raw")
        convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, raw]
        subprocess.run(convert, check=True)
        with RunningServer(directory) as server, server.client() as client:
            contenders: dict[str, Callable[[], None]] = {
                "volcore image import": lambda: command(server, source),
                "client, handed over": lambda: handed(client, source),
                "client, uploaded qcow2": lambda: uploaded(client, source),
                "client, uploaded raw": lambda: uploaded(client, raw),
            }
            for number in range(options.rounds + 1):
                if number == 1:  # the first round warms everything up
                    rows = Rows()
                os.sync()
                rival(rows, source, directory)
                for name, work in contenders.items():
                    os.sync()
                    rows.measure(name, work)
                    client.delete_image(NAME)
            server.stop()
    print(f"{options.size_mib} MiB qcow2, {options.rounds} rounds, {os.cpu_count()} processors")
    convert_s, synced_s = (
        rows.wall_s(name) for name in ("qemu-img convert", "qemu-img convert, sync")
    )
    for name, values in rows.wall.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        median_s = rows.wall_s(name)
        ratios = f"{median_s / convert_s:5.2f} {median_s / synced_s:5.2f}"
        print(f"{name:<24} {median_s:6.2f} s ({spread:<14}) ratio to convert, and sync: {ratios}")


if __name__ == "__main__":
    main()
