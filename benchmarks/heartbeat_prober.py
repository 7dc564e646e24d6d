"""What a cinder-volume lets its callers wait, seen from outside; runs in Cinder's environment.

Asks until its stdin ends, then prints one JSON object: times of `time.monotonic` in seconds, which
all processes of a machine share. Three threads, so that none waits for another:

  rpc    [start, duration] of get_capabilities over RabbitMQ: cinder-volume answers it from memory
  list   the same of get_manageable_volumes, for which cinder-volume asks volcore, and that Ceph
  beats  when the report_count of the service rose in MariaDB

    python heartbeat_prober.py CINDER_CONF HOST MARIA_PORT < PIPE
"""

import json
import sys
import threading
import time
from collections.abc import Callable

import pymysql
from cinder import context, objects, rpc
from cinder.common import config  # noqa: F401 - defines options
from cinder.volume import rpcapi
from oslo_config import cfg

EVERY_S = 0.05
LIST_EVERY_S = 0.5
LOOK_EVERY_S = 0.01


class Prober:
    def __init__(self, conf: str, host: str, maria_port: int) -> None:
        cfg.CONF(["--config-file", conf], project="cinder")
        objects.register_all()
        rpc.init(cfg.CONF)
        self._context = context.get_admin_context()
        self._api = rpcapi.VolumeAPI()
        self._host = host
        self._maria_port = maria_port
        self._stop = threading.Event()
        self.seen: dict[str, list[object]] = {"rpc": [], "list": [], "beats": []}

    def run(self) -> None:
        backend = f"{self._host}#{self._host.partition('@')[2]}"
        service = objects.Service.get_by_args(self._context, self._host, "cinder-volume")

        def capabilities() -> None:
            self._api.get_capabilities(self._context, backend, False)

        def listing() -> None:
            self._api.get_manageable_volumes(self._context, service, None, 10, 0, ["size"], ["asc"])

        threads = [
            threading.Thread(target=self._ask, args=("rpc", EVERY_S, capabilities)),
            threading.Thread(target=self._ask, args=("list", LIST_EVERY_S, listing)),
            threading.Thread(target=self._look),
        ]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.read()
        self._stop.set()
        for thread in threads:
            thread.join()

    def _ask(self, name: str, every_s: float, ask: Callable[[], None]) -> None:
        """Ask at fixed times; what is late is asked at once, so no wait hides another."""
        at = time.monotonic()
        while not self._stop.is_set():
            start = time.monotonic()
            ask()
            self.seen[name].append((start, time.monotonic() - start))
            at = max(at + every_s, start)
            self._stop.wait(max(0.0, at - time.monotonic()))

    def _look(self) -> None:
        known = None
        with pymysql.connect(
            host="127.0.0.1", port=self._maria_port, user="rig", password="rig",
            database="cinder", autocommit=True, ssl_disabled=True,
        ) as database, database.cursor() as cursor:  # fmt: skip
            while not self._stop.wait(LOOK_EVERY_S):
                cursor.execute(
                    "select report_count from services where host = %s and not deleted",
                    (self._host,),
                )
                row = cursor.fetchone()
                if known is not None and row != known:
                    self.seen["beats"].append(time.monotonic())
                known = row


if __name__ == "__main__":
    prober = Prober(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    prober.run()
    json.dump(prober.seen, sys.stdout)
