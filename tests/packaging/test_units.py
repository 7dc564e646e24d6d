"""The systemd units: judged by systemd, and by what the server really asks of the kernel."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from volcore.client import Client
from volcore.limits import MIB
from volcore.testing.server import RunningServer

from .tools import SHARE, need, run

UNIT = SHARE / "systemd" / "volcore.service"
EXPOSURE_MAX = 20
"""In tenths, of 100; what is left over is the network, sockets and /proc."""


@pytest.fixture
def unit(tmp_path):
    """The unit, with a command that is there."""
    path = tmp_path / UNIT.name
    command = Path(sys.executable).parent / "volcore"
    path.write_text(UNIT.read_text().replace("/opt/volcore/bin/volcore", str(command)))
    return path


@pytest.fixture
def short_place():
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="volcore-u-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_unit_is_well_formed(unit):
    """Goal: systemd knows every word of it. Method: systemd-analyze verify, which says nothing."""
    need("systemd-analyze")
    done = run("systemd-analyze", "--man=no", "verify", unit)
    assert done.stdout + done.stderr == ""


def test_unit_is_tight(unit):
    """Goal: least privilege. Method: systemd-analyze security, with a bound for its verdict."""
    need("systemd-analyze")
    words = ["security", "--offline=true", "--no-pager"]
    done = run("systemd-analyze", *words, f"--threshold={EXPOSURE_MAX}", unit, code=None)
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert run("systemd-analyze", *words, "--threshold=5", unit, code=None).returncode != 0


def test_user_and_directories(tmp_path):
    """Goal: user and directories come from files. Method: both tools, in a root of their own."""
    need("systemd-sysusers", "systemd-tmpfiles")
    (tmp_path / "etc").mkdir()
    for name, flags in (("sysusers", ()), ("tmpfiles", ("--create",))):
        run(f"systemd-{name}", f"--root={tmp_path}", *flags, SHARE / f"{name}.d" / "volcore.conf")
    line = re.search(r"^volcore:.*$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)[0]
    _, _, uid, gid, _, home, shell = line.split(":")
    assert (home, shell) == ("/var/lib/volcore", "/usr/sbin/nologin")
    for place, mode, owner in (("run", 0o700, uid), ("var/lib", 0o700, uid), ("etc", 0o750, "0")):
        facts = (tmp_path / place / "volcore").stat()
        assert (facts.st_mode & 0o777, facts.st_uid, facts.st_gid) == (mode, int(owner), int(gid))


def allowed_calls():
    """Return the system calls that the unit lets through."""

    def members(word):
        if not word.startswith("@"):
            return {word}
        text = run("systemd-analyze", "syscall-filter", word).stdout
        lines = [line.strip() for line in text.splitlines()[1:]]
        return set().union(*(members(line) for line in lines if line and line[0] != "#"))

    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        found = set().union(*(members(word) for word in line.removeprefix("~").split()))
        allowed = allowed - found if line.startswith("~") else allowed | found
    return allowed


def test_filter_lets_the_server_work(short_place):
    """Goal: the filter forbids nothing needed. Method: trace a server that does all it can do."""
    need("strace", "systemd-analyze", "qemu-img", "nbdinfo")
    allowed = allowed_calls()
    assert "openat" in allowed
    assert not allowed & {"mount", "init_module", "bpf", "reboot", "chown", "keyctl", "ptrace"}
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    if run(*nobody, sys.executable, "-c", "import volcore", code=None).returncode:
        pytest.skip("nobody cannot run this Python")
    trace, disk = short_place / "trace", short_place / "disk.vmdk"
    run("qemu-img", "create", "-f", "vmdk", disk, "8M")
    server = RunningServer(short_place, wrapper=[*nobody, "strace", "-f", "-qq", "-o", str(trace)])
    os.chown(short_place, 65534, 65534)
    with server, Client(server.endpoint) as client:
        client.import_image("pools/p/images/i", server_path=str(disk))
        client.deploy_volumes("pools/p/images/i", ["v"])
        client.create_snapshot("pools/p/volumes/v/snapshots/s")
        client.resize_volume("pools/p/volumes/v", 16 * MIB)
        where = client.attach_volume("pools/p/volumes/v", "host").nbd.uri
        assert run("nbdinfo", "--size", where).stdout == f"{16 * MIB}\n"
        client.detach_volume("pools/p/volumes/v", "host")
        # strace holds signals back until its child has ended.
        tracer = server.pid
        child = Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split()[0]
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", child], check=True)
        server._process.wait(60)
    used = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert {"landlock_restrict_self", "fdatasync", "accept4"} & used
    assert not used - allowed, f"the unit forbids {used - allowed}"
    sockets = set(re.findall(r"socket\((AF_\w+)", trace.read_text()))
    families = re.search(r"^RestrictAddressFamilies=(.*)$", UNIT.read_text(), re.MULTILINE)[1]
    assert sockets <= set(families.split()), sockets
    assert not re.search(r"PROT_WRITE\|PROT_EXEC", trace.read_text()), "MemoryDenyWriteExecute"
