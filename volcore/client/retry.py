"""Which failures are worth another try, and when.

Every call of volcore may be repeated blindly, so the error class alone decides.
"""

import random
import time
from dataclasses import dataclass

from volcore import limits
from volcore.errors import (
    ExhaustedError,
    OperationPendingError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.wire.channels import DIRECT_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    `tries_max` counts the first one. The default gives up on a dead server after about two seconds;
    a deadline that comes first wins. With several endpoints, UNAVAILABLE is not counted: each of
    them is tried in turn, with a pause after a round, for `failover_s`.
    """

    tries_max: int = 6
    delay_s: float = 0.1
    delay_s_max: float = 2.0
    factor: float = 2.0
    failover_s: float = limits.FAILOVER_S
    failover_delay_s_max: float = limits.FAILOVER_DELAY_S_MAX


class Tries:
    """The tries of one call: how long each may take, and how long to pause in between."""

    def __init__(
        self, policy: RetryPolicy, timeout_s: float | None, *, endpoint_count: int = 1
    ) -> None:
        self._policy = policy
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._count = 1
        self._endpoint_count = endpoint_count
        self._unavailable_count = 0
        self._failover_end_s: float | None = None

    @property
    def timeout_s(self) -> float | None:
        """What is left of the call's time; None is for ever."""
        if self._deadline_s is None:
            return None
        return max(self._deadline_s - time.monotonic(), 0.001)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the server is told of the caller: that it asks others first, as long as it does."""
        asks = self._endpoint_count > 1 and self._unavailable_count < self._endpoint_count
        return ((DIRECT_KEY, "1"),) if asks else ()

    def pause_after(self, error: VolcoreError) -> float | None:
        """Return the seconds to wait before the next try, or None to give up."""
        if self._endpoint_count > 1 and isinstance(error, UnavailableError):
            return self._pause_of_failover()
        if self._count >= self._policy.tries_max or not worth_repeating(error):
            return None
        pause_s = self._pause(self._count - 1, self._policy.delay_s_max)
        if pause_s is not None:
            self._count += 1
        return pause_s

    def _pause_of_failover(self) -> float | None:
        """Return no pause as long as there is an endpoint that was not tried in this round."""
        now_s = time.monotonic()
        if self._failover_end_s is None:
            self._failover_end_s = now_s + self._policy.failover_s
        if now_s >= self._failover_end_s:
            return None
        self._unavailable_count += 1
        rounds, more = divmod(self._unavailable_count, self._endpoint_count)
        return 0.0 if more else self._pause(rounds - 1, self._policy.failover_delay_s_max)

    def _pause(self, number: int, bound_s: float) -> float | None:
        """Return the pause of a number, up to a bound; None if the deadline comes first."""
        bound_s = min(self._policy.delay_s * self._policy.factor ** min(number, 30), bound_s)
        pause_s = bound_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        left_s = self.timeout_s
        return None if left_s is not None and pause_s >= left_s else pause_s


def worth_repeating(error: VolcoreError) -> bool:
    """Say whether the same call may succeed soon without anybody doing anything."""
    if isinstance(error, UnavailableError):
        return True
    if error.reason is Reason.HANDED_FILE_UNKNOWN:  # the server was restarted in between
        return True
    if isinstance(error, OperationPendingError):
        return error.retryable
    return isinstance(error, ExhaustedError) and error.reason is Reason.TOO_MANY_REQUESTS
