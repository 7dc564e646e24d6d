"""How connections to a server behave: sizes, and when one that is silent is given up."""

from typing import Any, Final

from volcore import limits

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", 64 * limits.KIB),
    ("grpc.enable_retries", 0),  # ours know the error classes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 2000),  # how long a host that does not answer is waited for
    ("grpc.keepalive_time_ms", 12_000),  # servers allow one in 10 s
    ("grpc.keepalive_timeout_ms", 6_000),
    # Also of the ping that measures the line: no other is sent beside it, and a frozen
    # server was waited for a minute. Longer than a lease: by then somebody else has its pools.
    ("grpc.http2.ping_timeout_ms", 6_000),
)
DIRECT_KEY: Final = "x-volcore-direct"
"""Metadata of a caller that knows other servers: to be told who has a pool, not to be forwarded."""
FORWARDED_KEY: Final = "x-volcore-forwarded"
"""Metadata of a call that another server has forwarded: it goes no further."""
