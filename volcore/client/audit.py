"""What the sync and the async client share for the audit and the catalog of a pool."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from volcore import limits
from volcore.errors import Reason, UnavailableError
from volcore.v1.pool_fault_pb2 import PoolFault
from volcore.v1.pool_service_pb2 import (
    CheckPoolEnd,
    CheckPoolRequest,
    CheckPoolResponse,
    ExportCatalogRequest,
    ImportCatalogRequest,
    RebuildCatalogEnd,
    RebuildCatalogRequest,
    RebuildCatalogResponse,
)


def check_request(name: str, repair: bool, objects: bool) -> CheckPoolRequest:
    """Return the request."""
    return CheckPoolRequest(name=name, repair=repair, objects=objects)


def export_request(name: str) -> ExportCatalogRequest:
    """Return the request."""
    return ExportCatalogRequest(name=name)


def import_requests(name: str, data: bytes) -> Iterator[ImportCatalogRequest]:
    """Yield the requests, the name in the first."""
    for start in range(0, len(data) or 1, limits.FRAME_BYTES_MAX):
        piece = data[start : start + limits.FRAME_BYTES_MAX]
        yield ImportCatalogRequest(name="" if start else name, data=piece)


def rebuild_request(name: str) -> RebuildCatalogRequest:
    """Return the request."""
    return RebuildCatalogRequest(name=name)


@dataclass
class PoolRebuild:
    """What a rebuild has done."""

    faults: list[PoolFault] = field(default_factory=list)
    """What could not be made again."""
    end: RebuildCatalogEnd | None = None

    def take(self, response: RebuildCatalogResponse) -> None:
        """Add one message."""
        if response.HasField("end"):
            self.end = response.end
        else:
            self.faults.append(response.fault)

    def finish(self) -> "PoolRebuild":
        """Return this, which must be whole.

        Raises:
            UnavailableError: SERVER_UNREACHABLE, the stream ended early.
        """
        if self.end is None:
            raise UnavailableError(
                "the rebuild broke off; repeat it", reason=Reason.SERVER_UNREACHABLE, retryable=True
            )
        return self


@dataclass
class PoolCheck:
    """What an audit has found."""

    faults: list[PoolFault] = field(default_factory=list)
    end: CheckPoolEnd = field(default_factory=CheckPoolEnd)
    """How much was compared."""
    _is_whole: bool = False

    def begin(self) -> None:
        """Forget what is found again by another try; what was repaired is not."""
        self.faults = [fault for fault in self.faults if fault.repaired]

    def take(self, response: CheckPoolResponse) -> None:
        """Add one message."""
        if response.HasField("end"):
            self.end, self._is_whole = response.end, True
        else:
            self.faults.append(response.fault)

    def finish(self) -> "PoolCheck":
        """Return this, which must be whole.

        Raises:
            UnavailableError: SERVER_UNREACHABLE, the stream ended early.
        """
        if not self._is_whole:
            raise UnavailableError(
                "the check broke off; repeat it", reason=Reason.SERVER_UNREACHABLE, retryable=True
            )
        return self
