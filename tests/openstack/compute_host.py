"""A host of Nova's: libvirtd and nova-compute, with a name and files of their own.

They run in namespaces where the host has another name, and /etc/libvirt, /run and the like lie in
`home`. So several hosts are on one machine, and nothing on it changes. The directory of instances
has the same path on all hosts, as Nova wants it, and each host has its own there.
"""

import contextlib
import os
import signal
import uuid
from pathlib import Path

from . import nova_conf
from .processes import Processes
from .rig import VENV

_ON_HOST = """\
set -e
hostname {name}
mount --bind {home}/own/etc /etc/libvirt
for place in run var/lib var/log var/cache; do mount --bind {home}/own/$place /$place; done
mount --bind {home}/passwd /etc/passwd
mount --bind {home}/group /etc/group
mount --bind {home}/instances {home}/../instances
exec "$@"
"""
# Debian's package, which would run libvirtd as a service, makes these.
_USERS = {
    "passwd": "libvirt-qemu:x:64055:64055::/:/bin/false\n",
    "group": "libvirt-qemu:x:64055:\nkvm:x:64054:\nlibvirt:x:64053:\n",
}


class ComputeHost(Processes):
    """One host, with what `nova_rig` has for all."""

    def __init__(self, home, name: str, nova_rig):
        super().__init__(home, VENV)
        self.name, self._nova_rig = name, nova_rig
        self._uri = f"qemu+unix:///system?socket={home}/own/run/libvirt/libvirt-sock"
        for place in ("etc", "run", "var/lib", "var/log", "var/cache"):
            (home / "own" / place).mkdir(parents=True)
        for place in (home, home.parent):
            (place / "instances").mkdir(exist_ok=True)
        values = {
            "home": home,
            "hosts": home.parent,
            "name": name,
            "uuid": uuid.uuid4(),
            "uri": self._uri,
            "venv": VENV,
        }
        for file, text in nova_conf.HOST_FILES.items():
            (home / file).write_text(text.format(**values))
        for file, line in _USERS.items():
            (home / file).write_text(Path("/etc", file).read_text() + line)

    def start_libvirtd(self, secrets: dict[str, str]) -> None:
        """Start libvirtd and give it Ceph's keys."""
        files = ["--config", self.home / "libvirtd.conf", "--pid-file", self.home / "libvirtd.pid"]
        self._spawn_here("libvirtd", *files)
        self._wait("libvirtd", self._is_up)
        for secret, key in secrets.items():
            self.define_secret(secret, key)

    def die(self) -> None:
        """End at once, guests included, as if the power were cut."""
        for name in list(self.processes):
            self.stop(name, hard=True)
        for path in (self.home / "own/run/libvirt/qemu").glob("instance-*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
            path.unlink()  # another process may have the number later

    def define_secret(self, secret: str, key: str) -> None:
        """Give libvirt a key of Ceph's, by the uuid of the secret."""
        path = self.home / "secret.xml"
        path.write_text(nova_conf.SECRET.format(uuid=secret))
        self.virsh("secret-define", path)
        self.virsh("secret-set-value", secret, key)

    def start_compute(self) -> None:
        """Start nova-compute."""
        files = ["--config-file", self._nova_rig.conf, "--config-file", self.home / "nova.conf"]
        self._spawn_here("nova-compute", *files)

    def virsh(self, *words) -> str:
        """Return what virsh says."""
        return self._run("virsh", "-c", self._uri, *words)

    def _spawn_here(self, name, *arguments):
        script = _ON_HOST.format(home=self.home, name=self.name)
        words = ["unshare", "--mount", "--uts", "sh", "-c", script, "sh", name, *arguments]
        self._spawn(name, words)

    def _is_up(self):
        with contextlib.suppress(AssertionError):
            return bool(self.virsh("version"))
        return False
