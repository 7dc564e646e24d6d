"""The connection that a process has with a cluster."""

import subprocess
import sys

from rbd_backend.pools import options

CODE = """
import sys, threading, time
from volcore.backends.rbd.connection import Cluster, ClusterOptions
from volcore.errors import UnavailableError

def ask(cluster):
    try:
        while True:
            cluster.ask_monitors()
    except UnavailableError as err:
        reasons.append(err.reason)

reasons = []
for number in range(60):
    cluster = Cluster(ClusterOptions(conf_path=sys.argv[1], user=sys.argv[2]))
    cluster.acquire()
    threads = [threading.Thread(target=ask, args=(cluster,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.01 + 0.0003 * number)
    cluster.release()
    for thread in threads:
        thread.join()
assert reasons == ["SHUTTING_DOWN"] * 240, reasons
"""


def test_closed_under_calls(ceph_cluster) -> None:
    """Goal: no call is in librados when it is shut down. Method: threads ask until it is."""
    chosen = options(ceph_cluster)
    subprocess.run([sys.executable, "-c", CODE, chosen.conf_path, chosen.user], check=True)
