"""Tools that cinder-volume runs beside our calls."""

import subprocess
import sys

_FORKS = 300
_SCRIPT = """
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import volcore.cinder
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
failed = 0
for _ in range(int(sys.argv[1])):
    stub.Check(health_pb2.HealthCheckRequest())
    failed += subprocess.run(["true"], preexec_fn=lambda: None).returncode != 0
print(failed)
server.stop(None).wait()
"""


def test_forks_beside_calls():
    """Goal: none of them dies of grpc. Method: fork as oslo does, a call before each."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(_FORKS)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["0"], done.stdout + done.stderr[-2000:]
