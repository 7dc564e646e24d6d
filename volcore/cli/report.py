"""What a failed command says and returns: a sentence, the reason, what to do next, the request id.

The exit code follows from the class of the error; docs/cli.md has the table, and a test holds the
two together.
"""

import sys
import traceback
from typing import Final

from volcore.errors import VolcoreError

OK: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
"""Given by the parser of the command line, too."""
INTERRUPTED: Final = 130
EXIT_CODES: Final = {
    "INTERNAL": UNEXPECTED,
    "INVALID_ARGUMENT": 3,
    "OUT_OF_RANGE": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "FAILED_PRECONDITION": 7,
    "ABORTED": 8,
    "RESOURCE_EXHAUSTED": 9,
    "UNAVAILABLE": 10,
    "DEADLINE_EXCEEDED": 11,
    "CANCELLED": 12,
    "DATA_LOSS": 13,
    "UNIMPLEMENTED": 14,
    "PERMISSION_DENIED": 15,
    "UNAUTHENTICATED": 16,
}
"""By the error's gRPC status."""
BLOCKERS_SHOWN_MAX: Final = 10


def report(error: VolcoreError, *, debug: bool = False) -> int:
    """Write `error` to stderr and return the exit code of its class."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.write("\n".join(lines(error)) + "\n")
    return exit_code(error)


def exit_code(error: VolcoreError) -> int:
    """Return the exit code of the error's class."""
    return EXIT_CODES.get(error.status, UNEXPECTED)


def lines(error: VolcoreError) -> list[str]:
    """Return what people should read about `error`, a fact a line."""
    said = [f"error: {error.message.rstrip('.')}", f"  reason:  {error.reason}"]
    shown = error.blockers[:BLOCKERS_SHOWN_MAX]
    said += [f"  blocker: {blocker.kind} {blocker.name}" for blocker in shown]
    total = max(len(error.blockers), int(error.context.get("blockers_total", "0")))
    if total > len(shown):
        said.append(f"  blocker: and {total - len(shown)} more")
    said.append(f"  next:    {error.recovery}")
    if request_id := error.context.get("request_id"):
        said.append(f"  request: {request_id}")
    return said


def report_unexpected(error: Exception, *, debug: bool) -> int:
    """Write a failure that is a bug to stderr; the traceback only when asked for."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    kind = type(error).__name__
    sys.stderr.write(
        f"error: this command failed in a way that it should not ({kind}: {error})\n"
        "  next:    repeat it with --debug and report what it prints\n"
    )
    return UNEXPECTED
