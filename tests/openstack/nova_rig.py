"""Nova beside the rig's Cinder and Glance: Keystone, Placement, and Nova with two hosts.

Nova speaks to Cinder as a user with a token and as a service, so a second cinder-api asks Keystone
who calls; all else of Cinder is the rig's. Servers without a network need no Neutron, but Nova
asks it for their ports: `_NoPorts` answers that there are none.
"""

import base64
import http.server
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from . import nova_conf
from .compute_host import ComputeHost
from .keystone_api import PASSWORD, KeystoneApi
from .nova_api import NovaApi
from .processes import Processes, free_port
from .rest import call
from .rig import VENV, Rig

HOSTS = ("compute-1", "compute-2")
# gunicorn's own arguments are no options of these services.
_WSGI = """\
import importlib, os, sys
sys.argv = sys.argv[:1]
application = importlib.import_module(os.environ["RIG_WSGI"]).application
"""


class _NoPorts(http.server.BaseHTTPRequestHandler):
    """A network service without any network."""

    def do_GET(self):
        kind = self.path.partition("?")[0].rpartition("/")[2].removesuffix(".json")
        body = json.dumps({kind.replace("-", "_"): []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class NovaRig(Processes):
    """Nova for a running rig, started by `with`; `secrets` are libvirt's, uuid to key."""

    def __init__(self, home, rig: Rig, secrets: dict[str, str]):
        super().__init__(home, VENV)
        self.rig, self.secrets = rig, secrets
        self.placement, self.nova, self.cinder = (free_port() for _ in range(3))
        self.keystone = KeystoneApi(rig.keystone)
        self._network = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), _NoPorts)
        shutil.copytree(VENV / "etc" / "nova", home / "nova")
        for name in ("keystone/fernet", "placement", "cinder"):
            (home / name).mkdir(parents=True)
        for name in ("0", "1"):
            key = base64.urlsafe_b64encode(os.urandom(32))
            (home / "keystone" / "fernet" / name).write_bytes(key)
        (home / "rig_wsgi.py").write_text(_WSGI)
        values = {
            "home": home,
            "maria": rig.maria,
            "rabbit": rig.rabbit,
            "keystone": rig.keystone,
            "network": self._network.server_port,
            "cinder": self.cinder,
        }
        for file, text in nova_conf.FILES.items():
            (home / file).write_text(text.format(**values))
        self.conf = home / "nova" / "nova.conf"
        self.hosts = {name: ComputeHost(home / "hosts" / name, name, self) for name in HOSTS}

    def __enter__(self):
        threading.Thread(target=self._network.serve_forever, daemon=True).start()
        try:
            with ThreadPoolExecutor() as pool:
                jobs = [pool.submit(host.start_libvirtd, self.secrets)
                        for host in self.hosts.values()]  # fmt: skip
                jobs += [pool.submit(job) for job in (self._start_keystone, self._start_placement,
                                                      self._prepare_nova)]  # fmt: skip
            for job in jobs:
                job.result()
            self._start_nova()
            self._wait_hosts()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for host in self.hosts.values():
            host.die()
        super().__exit__()
        self._network.shutdown()
        self._network.server_close()

    def api(self, name: str) -> NovaApi:
        """Return Nova's API for a user."""
        return NovaApi(self.nova, self.keystone.token(name))

    def _start_keystone(self):
        home, url = self.home / "keystone", self.keystone.url
        self.rig.sql("mysql", "create database keystone")
        manage = ["keystone-manage", "--config-file", home / "keystone.conf"]
        self._run(*manage, "db_sync")
        self._run(
            *manage, "bootstrap", "--bootstrap-username", "admin", "--bootstrap-project-name",
            "admin", "--bootstrap-password", PASSWORD, "--bootstrap-public-url", url,
            "--bootstrap-internal-url", url, "--bootstrap-region-id", "RegionOne",
        )  # fmt: skip
        self._serve(
            "keystone", "keystone.wsgi.api", self.rig.keystone,
            OS_KEYSTONE_CONFIG_DIR=str(home), OS_KEYSTONE_CONFIG_FILES="keystone.conf",
        )  # fmt: skip
        token = self.keystone.token("admin")
        self.keystone.make_user(token, "service", "admin", "service")
        self.keystone.make_user(token, "demo", "member")
        for kind, port, path in (
            ("image", self.rig.glance, ""),
            ("volumev3", self.cinder, "/v3"),
            ("block-storage", self.cinder, "/v3"),
            ("compute", self.nova, "/v2.1"),
            ("placement", self.placement, ""),
        ):
            self.keystone.make_service(token, kind, f"http://127.0.0.1:{port}{path}")

    def _start_placement(self):
        home = self.home / "placement"
        self.rig.sql("mysql", "create database placement")
        self._run("placement-manage", "--config-file", home / "placement.conf", "db", "sync")
        self._serve(
            "placement", "placement.wsgi.api", self.placement, OS_PLACEMENT_CONFIG_DIR=str(home)
        )

    def _prepare_nova(self):
        names = ("nova_api", "nova_cell0", "nova")
        self.rig.sql("mysql", ";".join(f"create database {name}" for name in names))
        cell0 = f"mysql+pymysql://rig:rig@127.0.0.1:{self.rig.maria}/nova_cell0?ssl_disabled=true"
        for words in (
            ["api_db", "sync"],
            ["cell_v2", "map_cell0", "--database_connection", cell0],
            ["db", "sync"],
            ["cell_v2", "create_cell", "--name", "cell1"],
        ):
            self._run("nova-manage", "--config-file", self.conf, *words)

    def _start_nova(self):
        words = [VENV / "bin" / "cinder-api", "--config-file", self.rig.conf]
        words += ["--config-file", self.home / "cinder" / "keystone.conf"]
        self._spawn("cinder-api", words, {"PATH": f"{VENV}/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
        for name in ("nova-conductor", "nova-scheduler"):
            self._spawn(name, [name, "--config-file", self.conf])
        for host in self.hosts.values():
            host.start_compute()
        self._serve(
            "nova-api", "nova.wsgi.osapi_compute", self.nova, OS_NOVA_CONFIG_DIR=self.conf.parent
        )
        self._wait_port("cinder-api", self.cinder)

    def _wait_hosts(self):
        """Wait until both hosts belong to the cell and Placement knows what they have."""
        token, nova = self.keystone.token("admin"), self.api("admin")
        url = f"http://127.0.0.1:{self.placement}/resource_providers?resources=VCPU:1"
        version = {"OpenStack-API-Version": "placement 1.4"}

        def are_up():
            time.sleep(0.5)
            for host in self.hosts.values():
                process = host.processes["nova-compute"]
                assert process.poll() is None, host.log("nova-compute")[-6000:]
            found = call("GET", url, token=token, headers=version)["resource_providers"]
            listed = nova.call("GET", "/os-hypervisors")["hypervisors"]
            return len(found) == len(listed) == len(self.hosts)

        self._wait("nova-scheduler", are_up)

    def _serve(self, name, module, port, **environment):
        self._spawn(
            name,
            ["gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1", "--threads", "8",
             "--timeout", "600", "--pythonpath", self.home, "rig_wsgi:application"],
            {"RIG_WSGI": module, **environment},
        )  # fmt: skip
        self._wait_port(name, port)
