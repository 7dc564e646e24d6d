"""A small Linux guest that boots from a given disk and proves it, for tests and demos.

The disk holds an ext4 file system with a busybox and one script. The kernel and the busybox come
from Debian packages, downloaded with `apt-get download` and never installed. No step needs root.

What the guest prints, a line each (`boot` returns them with the rest of the console):

    booted from volume: HOSTNAME       read from /etc/hostname on the disk
    disk: serial=SERIAL size_bytes=N   as the virtual disk reports them
    boots before this one: N           lines in /guest-wrote, to which each boot appends one
    disk written                       the new line is flushed to the disk

Then it is off; with the word `stay` on the kernel's command line it stays, and prints

    second disk: N bytes               when /dev/vdb comes or changes its size
    second disk written                WRITTEN_BY_GUEST is flushed to its beginning, once it came
    second disk: none                  when it goes

Booted with `qemu_command(..., writes_sequence=True)`, it looks for no file system: it writes a
sequence of self-proving blocks to the disk, from its beginning and for ever, and prints

    written: N                         blocks 0 to N - 1 are flushed to the disk

(`volcore.testing.sequence` judges them.)

The emulator is always TCG: the /dev/kvm of some virtual machines starts and then hangs.

As a command, to fill a cache: `python -m volcore.testing.guest download|build CACHE_DIR`.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from volcore.testing import sequence

BOOT_TIMEOUT_S = 60.0
TOOL_TIMEOUT_S = 300.0
DISK_SIZE_BYTES = 64 << 20
HOSTNAME = "golden"
BOOTED_LINE = "booted from volume: "
WRITTEN_LINE = "disk written"
STAY_WORD = "stay"
SECOND_LINE = "second disk: "
SECOND_WRITTEN_LINE = "second disk written"
WRITTEN_BY_GUEST = b"written by the guest"
SEQUENCE_LINE = "written: "
SEQUENCE_END = "sequence ended"
"""It could not write the next blocks."""
SEQUENCE_STEP = 16
"""Blocks between two flushes of the sequence."""
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
# Debian's package for each program.
PROGRAM_PACKAGES = {
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}
# In load order; ext4 is built into Debian's cloud kernel.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
)
_EARLY_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t sysfs s /sys
/bin/busybox mount -t devtmpfs d /dev
for m in {modules}; do /bin/busybox insmod /mod/$m.ko; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 500 ]; do /bin/busybox sleep 0.01; n=$((n+1)); done
/bin/busybox mount -t ext4 /dev/vda /mnt && exec /bin/busybox switch_root /mnt /sbin/init
echo "boot failed: no ext4 file system on /dev/vda"; /bin/busybox poweroff -f
"""
_SEQUENCE_INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev
for m in {modules}; do $b insmod /mod/$m.ko; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 500 ]; do $b sleep 0.01; n=$((n+1)); done
$b awk 'BEGIN {{ for (n = 0; ; n++) {{
    s = sprintf("%010d %020d\\n", n, (n * {factor} + {offset}) % {modulus})
    for (i = 0; i < 7; i++) s = s s
    printf "%s", s }} }}' | {{
  at=0
  how="iflag=fullblock conv=notrunc,fsync"
  while $b dd bs=4096 count={step} seek=$at of=/dev/vda $how 2>/dev/null
  do at=$((at + {step})); echo "{sequence}$at"; done
  echo "{end} at $at"; $b poweroff -f
}}
"""
_DISK_INIT = """\
#!/bin/sh
b=/bin/busybox
$b mount -t proc p /proc; $b mount -t sysfs s /sys
echo "{booted}$($b cat /etc/hostname)"
sectors=$($b cat /sys/block/vda/size)
echo "disk: serial=$($b cat /sys/block/vda/serial) size_bytes=$((sectors * 512))"
echo "boots before this one: $($b cat /guest-wrote | $b wc -l)"
echo "boot $($b date +%s)" >>/guest-wrote && $b sync && echo "{written}"
if $b grep -qw {stay} /proc/cmdline; then
  $b mount -t devtmpfs d /dev
  known=none
  while $b sleep 0.2; do
    now=none
    size=$($b cat /sys/block/vdb/size 2>/dev/null) && now="$((size * 512)) bytes"
    [ "$now" = "$known" ] && continue
    echo "{second}$now"
    [ "$known" = none ] && printf "{mark}" | $b dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null &&
      echo "{second_written}"
    known=$now
  done
fi
$b mount -o remount,ro /; $b poweroff -f
"""


class GuestError(Exception):
    """The guest could not be built or booted; the text says what to do."""


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What a boot needs: the kernel, its initrd, and the golden disk (raw, sparse; copy it)."""

    kernel: Path
    initrd: Path
    disk_raw: Path


def missing_packages() -> list[str]:
    """Return the Debian packages that the guest needs and this machine lacks, sorted."""
    return sorted(
        package for program, package in PROGRAM_PACKAGES.items() if not _find_program(program)
    )


def build_guest(cache_dir: Path) -> GuestFiles:
    """Return the guest's files, built in `cache_dir` if they are not there yet.

    *Concurrency*: any number of processes may share the directory.

    Raises:
        GuestError: a tool is missing or failed, or the packages could not be downloaded.
    """
    cache_dir = cache_dir.absolute()
    # A change to these files makes another guest.
    sources = Path(__file__).read_bytes() + Path(sequence.__file__).read_bytes()
    home = cache_dir / hashlib.sha256(sources).hexdigest()[:16]
    guest = GuestFiles(home / "vmlinuz", home / "initrd", home / "disk.raw")
    if home.is_dir():
        return guest
    if missing := missing_packages():
        raise GuestError(
            f"the guest needs: apt-get install --no-install-recommends {' '.join(missing)}"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / "lock"):
        if not home.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix="building-") as name:
                _build(Path(name), download_packages(cache_dir))
                (Path(name) / "out").rename(home)
    return guest


def download_packages(cache_dir: Path) -> list[Path]:
    """Return the packages of kernel and busybox in `cache_dir/debs`, downloaded if not there.

    Raises:
        GuestError: apt-get cannot download them.
    """
    debs = cache_dir.absolute() / "debs"
    patterns = ("linux-image-*.deb", "busybox-static_*.deb")
    if not all(list(debs.glob(pattern)) for pattern in patterns):
        debs.mkdir(parents=True, exist_ok=True)
        try:
            depends = _run(["apt-cache", "depends", KERNEL_METAPACKAGE], debs).decode().split()
            kernel = next(word for word in depends if word.startswith("linux-image-6"))
            _run(["apt-get", "download", "-qq", kernel, "busybox-static"], debs)
        except (GuestError, StopIteration) as err:
            raise GuestError(
                f"cannot download the guest's kernel and busybox; run 'apt-get update' ({err})"
            ) from err
    return [_only(debs, pattern) for pattern in patterns]


def boot(guest: GuestFiles, drive_args: Sequence[str], timeout_s: float = BOOT_TIMEOUT_S) -> str:
    """Boot the guest from the first virtio disk in `drive_args`; return its console when it is off.

    Args:
        guest: its kernel and initrd are used; its disk only if `drive_args` names it.
        drive_args: words for QEMU that make a virtio disk, such as
            `-drive file=disk.raw,format=raw,if=virtio`, or a `-blockdev` of any driver together
            with `-device virtio-blk-pci,drive=NODE,serial=SERIAL`.
        timeout_s: bound for the whole life of the guest.

    Raises:
        GuestError: QEMU failed, or the guest was not off in time; the text holds the console's end.
    """
    try:
        done = subprocess.run(
            qemu_command(guest, ["-serial", "stdio", *drive_args]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
    except FileNotFoundError as err:
        raise GuestError("QEMU is missing: apt-get install qemu-system-x86") from err
    except subprocess.TimeoutExpired as err:
        raise GuestError(
            f"the guest is not off after {timeout_s:.0f} s: {_text(err.stdout)[-2000:]}"
        ) from err
    if done.returncode != 0:
        raise GuestError(
            f"QEMU ended with {done.returncode}: {_text(done.stderr or done.stdout)[-2000:]}"
        )
    return _text(done.stdout)


def qemu_command(
    guest: GuestFiles, arguments: Sequence[str], *, writes_sequence: bool = False
) -> list[str]:
    """Return the command that runs the guest; `arguments` bring its serial line and its disk."""
    append = "console=ttyS0 quiet panic=-1 mitigations=off"
    if writes_sequence:
        append += " rdinit=/sequence"
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg",
        "-m", "192", "-display", "none", "-no-reboot",
        "-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", append, *arguments,
    ]  # fmt: skip


def _build(work: Path, packages: Sequence[Path]) -> None:
    """Make `work/out` from the packages."""
    unpacked, early, root, out = (work / name for name in ("unpacked", "early", "root", "out"))
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(unpacked)], work)
    for place in ("bin", "mod", "proc", "sys", "dev", "mnt"):
        (early / place).mkdir(parents=True)
    for place in ("bin", "sbin", "dev", "proc", "sys", "etc"):
        (root / place).mkdir(parents=True)
    out.mkdir()
    shutil.copy(_only(unpacked, "boot/vmlinuz-*"), out / "vmlinuz")
    for target in (early, root):
        shutil.copy(unpacked / "bin" / "busybox", target / "bin" / "busybox")
    for module in MODULES:
        shutil.copy(_only(unpacked, f"lib/modules/**/{module}.ko"), early / "mod")
    (root / "bin" / "sh").symlink_to("busybox")
    (root / "etc" / "hostname").write_text(f"{HOSTNAME}\n")
    (root / "guest-wrote").touch()
    modules = " ".join(MODULES)
    _write_script(early / "init", _EARLY_INIT.format(modules=modules))
    _write_script(
        early / "sequence",
        _SEQUENCE_INIT.format(
            modules=modules,
            factor=sequence.FACTOR,
            offset=sequence.OFFSET,
            modulus=sequence.MODULUS,
            step=SEQUENCE_STEP,
            sequence=SEQUENCE_LINE,
            end=SEQUENCE_END,
        ),
    )
    _write_script(
        root / "sbin" / "init",
        _DISK_INIT.format(
            booted=BOOTED_LINE,
            written=WRITTEN_LINE,
            stay=STAY_WORD,
            second=SECOND_LINE,
            second_written=SECOND_WRITTEN_LINE,
            mark=WRITTEN_BY_GUEST.decode(),
        ),
    )
    names = "\n".join(str(path.relative_to(early)) for path in sorted(early.rglob("*")))
    (out / "initrd").write_bytes(_run(["cpio", "--quiet", "-o", "-H", "newc"], early, names))
    with (out / "disk.raw").open("wb") as disk:
        disk.truncate(DISK_SIZE_BYTES)
    mkfs = ["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=0", "-d", str(root)]
    _run([*mkfs, str(out / "disk.raw")], work)


def _run(command: Sequence[str], directory: Path, text: str = "") -> bytes:
    program = _find_program(command[0])
    if program is None:
        raise GuestError(f"{command[0]} is not installed; the guest is built on Debian only")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=directory,
            input=text.encode(),
            capture_output=True,
            timeout=TOOL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as err:
        raise GuestError(f"{command[0]} is not done after {TOOL_TIMEOUT_S:.0f} s") from err
    if done.returncode != 0:
        raise GuestError(f"{command[0]} ended with {done.returncode}: {_text(done.stderr)[-500:]}")
    return done.stdout


def _find_program(name: str) -> str | None:
    # mkfs lives in /sbin, which is not on the path of an ordinary user.
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def _only(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if not found:
        raise GuestError(f"{directory} has no {pattern}")
    return found[-1]


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace").replace("\r\n", "\n").strip()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        {"build": build_guest, "download": download_packages}[sys.argv[1]](Path(sys.argv[2]))
    except GuestError as error:
        sys.exit(str(error))
