"""Structured logs on stderr: one event a line, UTC times, the request id of the call at hand.

Values under keys that sound like secrets are never written.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

_SECRET: Final = re.compile(
    r"(^|_)(secret|password|passphrase|token|credentials?|keyring|(private|ceph)_key)($|_)"
)
_NOT_SECRET: Final = frozenset({"secret_uuid"})
_HIDDEN: Final = "(hidden)"
_GRPC: Final = "grpc._cython.cygrpc"


def set_up_logs(*, level: str = "info", format: str = "json") -> None:
    """Route structlog and the standard library's loggers to stderr.

    Args:
        level: least severe level that is written.
        format: `json`, or `console` for people.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        hide_secrets,
    ]
    if format == "json":
        ends: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        ends = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *ends],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
        )
    )
    logging.getLogger(_GRPC).addFilter(_not_of_a_caller_that_left)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def _not_of_a_caller_that_left(record: logging.LogRecord) -> bool:
    """Say no to the trace of an answer that nobody waited for; a `logging` filter.

    grpc raises and logs this if a caller goes while its answer is sent. The call has its own event.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"


def hide_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace values whose key sounds like a secret; a structlog processor."""
    for key in event:
        if _SECRET.search(key) and key not in _NOT_SECRET:
            event[key] = _HIDDEN
    return event
