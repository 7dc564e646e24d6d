"""`volcore` with failpoints, see `volcore.testing.failpoint`; `FailingServer` starts it.

Each line of the input is a JSON list of a configuration file and a log: a server is forked off, and
its process id is printed. What it does behind answers begins sooner than usual, so that nobody has
to wait for it.
"""

import ctypes
import json
import os
import signal
import sys

from volcore import limits

limits.DELETE_SNAPSHOT_DELAY_S = 0.05  # type: ignore[misc]


def _watch_ceph() -> None:
    """Let the library see requests to Ceph, where Ceph is installed."""
    watch = ctypes.CDLL(None).failpoints_watch_ceph
    watch.restype = ctypes.c_char_p
    try:
        import rados  # noqa: F401 - loads the library that is to be watched
        import rbd  # noqa: F401
    except ImportError:
        return
    if (missing := watch()) is not None:
        sys.exit(f"this release of Ceph cannot be watched: {missing.decode()}")


def _become_server(config: str, log: str) -> None:
    """Be what was forked off."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(log, "ab") as out, open(os.devnull, "rb") as empty:
        for source, fd in ((empty, 0), (out, 1), (out, 2)):
            os.dup2(source.fileno(), fd)
    sys.argv = ["volcore", "serve", "--config", config]
    main()


if __name__ == "__main__":
    _watch_ceph()
    import volcore.backends.local
    import volcore.backends.rbd
    import volcore.daemon  # noqa: F401 - no server has to import it again
    from volcore.cli.main import main

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        if not (pid := os.fork()):
            _become_server(*json.loads(line))
        print(pid, flush=True)
