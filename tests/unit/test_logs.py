"""What reaches stderr, and what does not."""

import json
import subprocess
import sys

PROGRAM = """
import logging
import structlog
from grpc._cython import cygrpc
from volcore.observability.logs import set_up_logs

set_up_logs()
set_up_logs()
grpc = logging.getLogger("grpc._cython.cygrpc")
for error in (cygrpc.ExecuteBatchError("the caller left"), cygrpc.UsageError("a mistake")):
    try:
        raise error
    except cygrpc.BaseError:
        grpc.exception("raised")
grpc.error("no trace")
structlog.get_logger("volcore").info("event", password="p", secret_uuid="u")
"""


def test_events():
    """Goal: one object a line, no secrets, and no trace for an answer that nobody waited for."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert not done.stdout
    mistake, plain, event = [json.loads(line) for line in done.stderr.splitlines()]
    assert "a mistake" in mistake["exception"]
    assert plain["event"] == "no trace"
    assert (event["password"], event["secret_uuid"]) == ("(hidden)", "u")
