"""The command line: `python -m nbd.fuzz --seconds 300`."""

import argparse
import json
import tempfile
import time
from pathlib import Path

from .campaign import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="nbd.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="one kind of session, such as honest or tls")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="volcore-fuzz-") as directory:
        print(json.dumps(run(Path(directory), **vars(given)), indent=1))


if __name__ == "__main__":
    main()
