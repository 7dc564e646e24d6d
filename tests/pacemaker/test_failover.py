"""A volcore server and its address under real Pacemaker and Corosync."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from volcore.testing.certificates import Authority

from .rig import ADDRESS, COMMAND, ROOT, Site

PROGRAMS = ("corosync", "pacemakerd", "crm_mon", "cibadmin", "ip", "unshare", "nsenter", "openssl")
WITHIN_S = 150
"""Far above what is printed: the machine may be busy."""
PORT = 7443

SERVER = """
<primitive id="server" class="ocf" provider="volcore" type="volcore">
  <instance_attributes id="server-attributes">
    <nvpair id="server-binary" name="binary" value="{command}"/>
    <nvpair id="server-config" name="config" value="{config}"/>
    <nvpair id="server-user" name="user" value="root"/>
  </instance_attributes>
  <operations>
    <op id="server-start" name="start" interval="0" timeout="90s"/>
    <op id="server-stop" name="stop" interval="0" timeout="15s"/>
    <op id="server-alive" name="monitor" interval="2s" timeout="10s"/>
    <op id="server-serving" name="monitor" interval="5s" timeout="10s">
      <instance_attributes id="server-serving-attributes">
        <nvpair id="server-level" name="OCF_CHECK_LEVEL" value="10"/>
      </instance_attributes>
    </op>
  </operations>
</primitive>
"""
MOVING = """
<primitive id="address" class="ocf" provider="heartbeat" type="IPaddr2">
  <instance_attributes id="address-attributes">
    <nvpair id="address-ip" name="ip" value="{address}"/>
    <nvpair id="address-mask" name="cidr_netmask" value="24"/>
  </instance_attributes>
  <operations><op id="address-alive" name="monitor" interval="5s" timeout="10s"/></operations>
</primitive>
"""
PASSIVE = f'<resources><group id="service">{SERVER}{MOVING}</group></resources>'
ACTIVE = f'<resources><clone id="servers">{SERVER}</clone>{MOVING}</resources>'
WITH_SERVER = '<rsc_colocation id="with" rsc="address" with-rsc="servers" score="INFINITY"/>'


@contextlib.contextmanager
def cluster(resources, pool_lines):
    """Three nodes with what `resources` says, once the address is up."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(missing)}: scripts/setup pacemaker")
    directory = Path(tempfile.mkdtemp(prefix="volcore-p-"))
    tls = Authority.make(directory / "ca").server(names=f"IP:{ADDRESS}")
    config = directory / "volcore.toml"
    config.write_text(
        f'[server]\nlisten = ["unix:///run/volcore/volcore.sock", "0.0.0.0:{PORT}"]\n'
        f'tls_certificate = "{tls.certificate}"\ntls_key = "{tls.key}"\n'
        f"[nbd]\nlisten = []\n[pools.p]\n{pool_lines.format(directory=directory)}"
    )
    try:
        with Site(directory) as site:
            site.on(1, "crm_attribute", "-n", "stonith-enabled", "-v", "false")
            site.on(1, "crm_attribute", "-t", "rsc_defaults", "-n", "resource-stickiness", "-v", 9)
            text = resources.format(command=COMMAND, config=config, address=ADDRESS)
            site.on(1, "cibadmin", "--replace", "--scope", "resources", "-X", text)
            if resources is ACTIVE:
                site.on(1, "cibadmin", "--create", "--scope", "constraints", "-X", WITH_SERVER)
            site.wait_until(site.holder, "the address up", WITHIN_S)
            yield site
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def calling(site, action):
    """Calls that go on through everything; a list that grows: number, begin, end, reason."""
    words = [*site.in_client(), sys.executable, "-m", "tests.pacemaker.caller", f"{ADDRESS}:{PORT}",
             site.directory / "ca" / "ca-cert.pem", action]  # fmt: skip
    path = site.directory / "calls"
    with path.open("wb") as out, (site.directory / "caller.err").open("wb") as err:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT
        )

    def calls():
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True)
                if line.endswith("\n")]  # fmt: skip

    try:
        site.wait_until(lambda: len(calls()) >= 10, "ten calls made", WITHIN_S)
        yield calls
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def site():
    """A server on a directory that all nodes reach, and an address that goes with it."""
    with cluster(PASSIVE, 'backend = "local"\ndirectory = "{directory}/pool"\n') as made:
        yield made


@pytest.fixture(scope="module")
def caller(site):
    """Volumes that are made one after another."""
    with calling(site, "create") as calls:
        yield calls


def after(site, calls, cut_s):
    """Wait for calls that began after `cut_s`; return what the longest one around it took."""
    site.wait_until(lambda: sum(one[1] > cut_s for one in calls()) >= 5, "served again", WITHIN_S)
    around = [one for one in calls() if one[2] > cut_s]
    assert not [one for one in calls() if one[3]], "a call failed"
    return max(end_s - begin_s for _, begin_s, end_s, _ in around)


def test_servers_on_all_nodes():
    """Goal: an address that moves to a server which runs. Method: clones; cut a node's power."""
    with cluster(ACTIVE, 'backend = "memory"\n') as site:
        site.wait_until(lambda: all(map(site.server_pid, (1, 2, 3))), "three servers", WITHIN_S)
        with calling(site, "look") as calls:
            time.sleep(5)  # until the last of them serves
            holder = site.holder()
            cut_s = time.monotonic()
            site.cut_power(holder)
            moved_s = site.wait_until(site.holder, "the address elsewhere", WITHIN_S)
            longest_s = after(site, calls, cut_s)
            print(f"\none of three servers' nodes dead: address moved after {moved_s:.1f} s,"
                  f" the call that was under way took {longest_s:.1f} s")  # fmt: skip
            assert longest_s < WITHIN_S


def test_server_is_killed(site, caller):
    """Goal: a crash is mended where it is. Method: kill -9 of the server, under calls."""
    holder = site.holder()
    before = site.server_pid(holder)
    cut_s = time.monotonic()
    os.kill(before, signal.SIGKILL)
    longest_s = after(site, caller, cut_s)
    print(f"\nserver killed: the call that was under way took {longest_s:.1f} s")
    assert site.server_pid(site.holder()) != before
    assert longest_s < WITHIN_S


def test_server_is_frozen(site, caller):
    """Goal: a server that hangs is found out and replaced. Method: SIGSTOP, under calls."""
    before = site.server_pid(site.holder())
    cut_s = time.monotonic()
    os.kill(before, signal.SIGSTOP)
    longest_s = after(site, caller, cut_s)
    print(f"\nserver frozen: the call that was under way took {longest_s:.1f} s")
    assert not Path(f"/proc/{before}").exists()
    assert longest_s < WITHIN_S


def test_node_dies(site, caller):
    """Goal: the address follows the service. Method: cut the power of the node that has it."""
    holder = site.holder()
    cut_s = time.monotonic()
    site.cut_power(holder)
    moved_s = site.wait_until(site.holder, "the address elsewhere", WITHIN_S)
    longest_s = after(site, caller, cut_s)
    print(f"\nnode dead: address moved after {moved_s:.1f} s, the call that was under way took"
          f" {longest_s:.1f} s")  # fmt: skip
    assert site.holder() != holder
    assert longest_s < WITHIN_S
    made = {one[0] for one in caller()}
    assert made == set(range(len(made))), "each call ended, once"


def test_commands_of_the_page(site):
    """Goal: what docs/availability.md says can be typed. Method: pcs on an empty configuration."""
    if not shutil.which("pcs"):
        pytest.skip("needs pcs: scripts/setup pacemaker")
    node = site.holder()
    place = site.directory / "cib.xml"
    place.write_text(site.on(node, "cibadmin", "--empty"))
    page = (ROOT / "docs" / "availability.md").read_text()
    commands = re.findall(r"^pcs .*$", page, re.MULTILINE)
    assert len(commands) > 4
    for command in commands:
        site.on(node, "pcs", "-f", place, *command.split()[1:])
    site.on(node, "pcs", "-f", place, "property", "set", "stonith-enabled=false")
    site.on(node, "crm_verify", "-V", "-x", place)
