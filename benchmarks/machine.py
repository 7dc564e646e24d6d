"""What a reader must know of the machine to judge the figures; no name and no path of it."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def facts(directory: Path) -> list[str]:
    """Return one phrase for each fact; `directory` is on the filesystem that was measured."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{os.cpu_count()} processors {_processor()}",
        f"load {os.getloadavg()[1]:.1f} in the last five minutes",
        f"{memory_gib:.0f} GiB of memory",
        f"Linux {platform.release()}",
        said(["findmnt", "-n", "-o", "FSTYPE", "-T", str(directory)]) or "filesystem unknown",
        f"Python {platform.python_version()}",
        f"grpcio {metadata.version('grpcio')}",
        said(["qemu-img", "--version"]),
        said(["fio", "--version"]) or "no fio",
        f"commit {said(['git', 'rev-parse', '--short', 'HEAD']) or 'unknown'}",
        f"{datetime.date.today():%Y-%m-%d}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def said(command: list[str]) -> str:
    """Return the first line that the command prints, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()
