"""What becomes of requests that were cut off, and what administrators and users do about it.

A status that nobody will change any more is one that stays while Cinder has nothing else to do.
"""

import time

from .cinder_api import DONE_S, ApiError

STILL_S = 3.0
_FINAL = {"available", "in-use", "error", "error_deleting", "error_extending", "gone"}


def until(found, *, timeout_s=DONE_S):
    """Return what `found` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return value


def is_gone(cinder, kind, one):
    try:
        cinder.get(kind, one)
    except ApiError as err:
        if err.code != 404:
            raise
        return True
    return False


def settled(cinder, kind, one):
    """Return a status that stays, `gone` without any."""
    seen, since_s = "", 0.0
    while True:
        now = "gone" if is_gone(cinder, kind, one) else cinder.get(kind, one)["status"]
        if now in _FINAL:
            return now
        if now != seen:
            seen, since_s = now, time.monotonic()
        elif time.monotonic() > since_s + STILL_S:
            return now
        time.sleep(0.2)


def survived(cinder, kind, one):
    """Tell whether a new one came into being all the same; delete it otherwise."""
    status = settled(cinder, kind, one)
    if status == "available":
        return True
    if status != "error":
        reset(cinder, kind, one, "error")
    cinder.call("DELETE", f"/{kind}s/{one}")
    until(lambda: is_gone(cinder, kind, one))
    return False


def unstick(cinder, kind, one, stuck, status="available"):
    """Reset a status that stays as an administrator does; tell whether that was needed."""
    if (found := settled(cinder, kind, one)) != stuck:
        assert found in ("gone", status), found
        return False
    reset(cinder, kind, one, status)
    return True


def reset(cinder, kind, one, status):
    """Do what an administrator does with a status that nobody will change any more."""
    action = "reset_status" if "group" in kind else "os-reset_status"
    cinder.act(kind, one, action, {"status": status})


def answered(asked):
    """Tell whether a request that waits for its answer has had a good one."""
    try:
        asked.result()
    except ApiError:
        return False
    return True
