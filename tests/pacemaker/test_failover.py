"""A volcore server and its address under real Pacemaker and Corosync."""

import json
import os
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
WITHIN_S = 60
PORT = 7443

RESOURCES = """
<group id="service">
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
  <primitive id="address" class="ocf" provider="heartbeat" type="IPaddr2">
    <instance_attributes id="address-attributes">
      <nvpair id="address-ip" name="ip" value="{address}"/>
      <nvpair id="address-mask" name="cidr_netmask" value="24"/>
    </instance_attributes>
    <operations><op id="address-alive" name="monitor" interval="5s" timeout="10s"/></operations>
  </primitive>
</group>
"""


@pytest.fixture(scope="module")
def site():
    """Three nodes with a server on a shared directory, and an address that goes with it."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(missing)}: scripts/setup pacemaker")
    directory = Path(tempfile.mkdtemp(prefix="volcore-p-"))
    tls = Authority.make(directory / "ca").server(names=f"IP:{ADDRESS}")
    config = directory / "volcore.toml"
    config.write_text(
        f'[server]\nlisten = ["unix:///run/volcore/volcore.sock", "0.0.0.0:{PORT}"]\n'
        f'tls_certificate = "{tls.certificate}"\ntls_key = "{tls.key}"\n'
        f'[nbd]\nlisten = []\n[pools.p]\nbackend = "local"\ndirectory = "{directory}/pool"\n'
    )
    try:
        with Site(directory) as made:
            made.on(1, "crm_attribute", "-n", "stonith-enabled", "-v", "false")
            made.on(1, "crm_attribute", "-t", "rsc_defaults", "-n", "resource-stickiness", "-v", 9)
            text = RESOURCES.format(command=COMMAND, config=config, address=ADDRESS)
            made.on(1, "cibadmin", "--create", "--scope", "resources", "--xml-text", text)
            made.wait_until(made.holder, "the address up", WITHIN_S)
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def caller(site):
    """Calls that go on through everything; a list that grows: number, begin, end, reason."""
    words = [*site.in_client(), sys.executable, "-m", "tests.pacemaker.caller", f"{ADDRESS}:{PORT}",
             site.directory / "ca" / "ca-cert.pem"]  # fmt: skip
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


def after(site, calls, cut_s):
    """Wait for calls that began after `cut_s`; return what the longest one around it took."""
    site.wait_until(lambda: sum(one[1] > cut_s for one in calls()) >= 5, "served again", WITHIN_S)
    around = [one for one in calls() if one[2] > cut_s]
    assert not [one for one in calls() if one[3]], "a call failed"
    return max(end_s - begin_s for _, begin_s, end_s, _ in around)


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
