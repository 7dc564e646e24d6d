"""Real services on loopback: RabbitMQ, MariaDB, Glance and cinder-api, -scheduler and -volume.

Everything lies in one directory. Only processes started here are ended, by their process groups.
"""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .processes import Processes, free_port

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("VOLCORE_TEST_CINDER", ROOT / ".venv-openstack"))

# PyMySQL 2 reads all certificates of the system for each connection unless TLS is off: half of the
# processor time of a volume.
_CONF = """\
[DEFAULT]
auth_strategy = noauth
host = rig
my_ip = 127.0.0.1
transport_url = rabbit://guest:guest@127.0.0.1:{rabbit}/
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {api}
osapi_volume_workers = 1
glance_api_servers = http://127.0.0.1:{glance}
glance_num_retries = 0
state_path = {home}/state
api_paste_config = {home}/etc/api-paste.ini
resource_query_filters_file = {home}/etc/resource_filters.json
rootwrap_config = {home}/etc/rootwrap.conf
enabled_backends = {backends}
report_interval = {report_interval_s}
rpc_response_timeout = 60
service_down_time = 120
quota_volumes = -1
quota_snapshots = -1
quota_gigabytes = -1
quota_groups = -1
cinder_internal_tenant_project_id = 0123456789abcdef0123456789abcdef
cinder_internal_tenant_user_id = 0123456789abcdef0123456789abcdef
backend_stats_polling_interval = 3
periodic_interval = 1
periodic_fuzzy_delay = 1
[database]
connection = mysql+pymysql://rig:rig@127.0.0.1:{maria}/cinder?ssl_disabled=true
[oslo_concurrency]
lock_path = {home}/state/lock
[coordination]
backend_url = file://{home}/state/coordination
[nova]
auth_type = password
auth_url = http://127.0.0.1:{keystone}/v3
username = service
password = secret
project_name = service
user_domain_id = default
project_domain_id = default
"""

# Nobody signs in; Glance's own checks of formats are off, so that volcore's are seen.
_GLANCE_CONF = """\
[DEFAULT]
bind_host = 127.0.0.1
bind_port = {glance}
enabled_backends = {stores}
show_image_direct_url = True
show_multiple_locations = True
node_staging_uri = file://{home}/staging
worker_self_reference_url = http://127.0.0.1:{glance}
state_path = {home}
[fs]
filesystem_store_datadir = {home}/images
[glance_store]
default_backend = fs
[os_glance_staging_store]
filesystem_store_datadir = {home}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {home}/tasks
[database]
connection = mysql+pymysql://rig:rig@127.0.0.1:{maria}/glance?ssl_disabled=true
[image_format]
require_image_format_match = False
[oslo_policy]
policy_file = {home}/policy.yaml
[paste_deploy]
config_file = {home}/etc/glance-api-paste.ini
[oslo_concurrency]
lock_path = {home}
"""
_GLANCE_RBD_STORE = """\
[ceph]
rbd_store_ceph_conf = {conf_path}
rbd_store_pool = {pool}
rbd_store_user = admin
"""
_ALLOW_ALL = (
    "import json; from glance import policies; "
    "print(json.dumps({rule.name: '' for rule in policies.list_rules()}))"
)


class Rig(Processes):
    """Cinder with the given backend sections, and Glance, started by `with`.

    Glance has a file store, `fs`, and with `glance_rbd` (ceph.conf, pool) one in Ceph, `ceph`.
    """

    def __init__(
        self,
        home: Path,
        backends: dict[str, dict[str, str]],
        *,
        native: bool = False,
        report_interval_s: int = 2,
        glance_rbd: tuple[Path, str] | None = None,
    ):
        super().__init__(home, VENV)
        self.glance_rbd = glance_rbd
        self.native = native
        self.rabbit, self.dist, self.epmd, self.maria, self.api, self.glance, self.keystone = (
            free_port() for _ in range(7)
        )
        shutil.copytree(VENV / "etc" / "cinder", home / "etc")
        for name in ("state/lock", "state/coordination", "rabbit/mnesia", "rabbit/log"):
            (home / name).mkdir(parents=True)
        text = _CONF.format(
            home=home,
            rabbit=self.rabbit,
            maria=self.maria,
            api=self.api,
            glance=self.glance,
            keystone=self.keystone,
            backends=",".join(backends),
            report_interval_s=report_interval_s,
        )
        for name, options in backends.items():
            lines = [f"{key} = {value}" for key, value in options.items()]
            text += "\n".join([f"[{name}]", f"volume_backend_name = {name}", *lines, ""])
        self._make_sudo()
        self.conf = home / "cinder.conf"
        self.conf.write_text(text)

    def __enter__(self):
        try:
            with ThreadPoolExecutor() as pool:
                rabbit = pool.submit(self._start_rabbit)
                self._start_maria()
                glance = pool.submit(self._start_glance)
                self._run("cinder-manage", "--config-file", self.conf, "db", "sync")
                rabbit.result()
                for name in ("api", "scheduler", "volume"):
                    self.start(name)
                glance.result()
            self._wait_port("api", self.api)
            self._wait_port("glance", self.glance)
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self, name: str, conf: Path | None = None) -> None:
        """Start one of Cinder's services, `volume-a` as another cinder-volume with its own file."""
        program = VENV / "bin" / f"cinder-{name.partition('-')[0]}"
        extra = {"EVENTLET_THREADPOOL_SIZE": "64"}  # each call that a test holds has a thread
        if self.native:
            extra["OS_CINDER_DISABLE_EVENTLET_PATCHING"] = "1"
        self._spawn(name, [program, "--config-file", conf or self.conf], extra)

    def sql(self, database: str, statement: str) -> None:
        """Change what a service remembers behind its back."""
        socket_path = self.home / "maria" / "s"
        words = ["mariadb", "-u", "root", "-S", socket_path, "-e", statement, database]
        subprocess.run(words, check=True)

    def _make_sudo(self):
        """Let Cinder's root helper find itself: we are root, and sudo would drop the PATH."""
        stub = self.home / "bin" / "sudo"
        stub.parent.mkdir()
        stub.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n')
        stub.chmod(0o755)
        conf = self.home / "etc" / "rootwrap.conf"
        found = {"filters_path": f"{self.home}/etc/rootwrap.d", "exec_dirs": f"{VENV}/bin,/usr/bin"}
        lines = [line.partition("=") for line in conf.read_text().splitlines()]
        conf.write_text(
            "".join(f"{key}{sign}{found.get(key, value)}\n" for key, sign, value in lines)
        )

    def _start_rabbit(self):
        home = self.home / "rabbit"
        (home / "enabled_plugins").write_text("[].")
        (home / "rabbitmq.conf").write_text("disk_free_limit.absolute = 50MB\n")
        names = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(self.epmd)}
        # Ours in the foreground; Erlang's own would outlive us.
        self._spawn("epmd", ["epmd", "-port", self.epmd, "-address", "127.0.0.1"], names)
        self._wait_port("epmd", self.epmd)
        self._spawn(
            "rabbit",
            ["/usr/lib/rabbitmq/bin/rabbitmq-server"],
            names
            | {
                "HOME": str(home),
                "RABBITMQ_NODENAME": "rig@localhost",
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.rabbit),
                "RABBITMQ_DIST_PORT": str(self.dist),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                    "-kernel inet_dist_use_interface {127,0,0,1}"
                ),
                "RABBITMQ_MNESIA_BASE": f"{home}/mnesia",
                "RABBITMQ_LOG_BASE": f"{home}/log",
                "RABBITMQ_PID_FILE": f"{home}/pid",
                "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq",
                "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
                "RABBITMQ_CONF_ENV_FILE": f"{home}/none",
            },
        )
        self._wait_port("rabbit", self.rabbit)

    def _start_maria(self):
        home = self.home / "maria"
        home.mkdir()
        user = f"--user={os.environ.get('USER', 'root')}" if os.geteuid() else "--user=root"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", user, f"--datadir={home}/data",
             "--auth-root-authentication-method=normal"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._spawn(
            "maria",
            ["mariadbd", "--no-defaults", user, f"--datadir={home}/data", f"--socket={home}/s",
             f"--pid-file={home}/pid", f"--port={self.maria}", "--bind-address=127.0.0.1",
             "--max-connections=500", "--character-set-server=utf8",
             "--innodb-buffer-pool-size=128M"],
        )  # fmt: skip
        self._wait_port("maria", self.maria)
        grants = (
            "create database cinder; create database glance; "
            "create user rig@'127.0.0.1' identified by 'rig'; "
            "grant all on *.* to rig@'127.0.0.1'"
        )
        self.sql("mysql", grants)

    def _start_glance(self):
        home = self.home / "glance"
        shutil.copytree(VENV / "etc" / "glance", home / "etc")
        for name in ("images", "staging", "tasks"):
            (home / name).mkdir()
        conf = home / "etc" / "glance-api.conf"
        stores = "fs:file" if self.glance_rbd is None else "fs:file,ceph:rbd"
        text = _GLANCE_CONF.format(home=home, glance=self.glance, maria=self.maria, stores=stores)
        if self.glance_rbd is not None:
            conf_path, pool = self.glance_rbd
            text += _GLANCE_RBD_STORE.format(conf_path=conf_path, pool=pool)
        conf.write_text(text)
        python = VENV / "bin" / "python"
        rules = subprocess.run([python, "-c", _ALLOW_ALL], check=True, capture_output=True).stdout
        (home / "policy.yaml").write_text(json.dumps(json.loads(rules)))
        self._run(VENV / "bin" / "glance-manage", "--config-file", conf, "db_sync")
        self._spawn(
            "glance",
            [VENV / "bin" / "gunicorn", "--bind", f"127.0.0.1:{self.glance}",
             "--workers", "1", "--threads", "8", "--timeout", "600", "glance.wsgi.api:application"],
            {"OS_GLANCE_CONFIG_DIR": str(home / "etc")},
        )  # fmt: skip
