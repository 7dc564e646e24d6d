"""A client that calls again and again, and says of each call when it began and ended."""

import itertools
import json
import sys
import time
from pathlib import Path

from volcore.client import Client, ClientTls, RetryPolicy
from volcore.errors import VolcoreError
from volcore.limits import MIB

PATIENT = RetryPolicy(tries_max=200, delay_s_max=0.5)
"""For a single address that moves: the call's own time is the bound."""


def main(endpoint: str, authority: str, action: str) -> None:
    """Make volumes (`create`) or look at the pool (`look`) until killed."""
    tls = ClientTls(ca=Path(authority))
    with Client(endpoint, tls=tls, timeout_s=120, retry=PATIENT) as client:
        for number in itertools.count():
            begin_s = time.monotonic()
            try:
                if action == "create":
                    client.create_volume(f"pools/p/volumes/v{number}", size_bytes=MIB)
                else:
                    client.get_pool("pools/p")
                reason = ""
            except VolcoreError as err:
                reason = str(err.reason)
            end_s = time.monotonic()
            print(json.dumps([number, begin_s, end_s, reason]), flush=True)
            time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
