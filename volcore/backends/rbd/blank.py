"""Making blank volumes: by the short path if it may be used, else librbd."""

from collections.abc import Callable, Mapping

from volcore.backends.contract import Records, no_reserve
from volcore.backends.rbd.clones import side_by_side
from volcore.backends.rbd.direct.cloner import Once
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.session import FEATURES, ORDER, Session
from volcore.backends.refusals import check_size, id_taken
from volcore.errors import VolcoreError


def create_many(
    session: Session,
    sizes_bytes: Mapping[str, int],
    reserve: Callable[[], None] = no_reserve,
    records: Records | None = None,
) -> dict[str, VolcoreError]:
    """See `SupportsMakeMany.create_many`."""
    for size_bytes in sizes_bytes.values():
        check_size(size_bytes)
    once = Once(reserve)
    with session.claiming(sizes_bytes, records or {}):
        failed = session.direct.make_blank(sizes_bytes, once)
    if failed is not None:
        return failed
    once()
    return side_by_side(sizes_bytes, lambda one: _by_librbd(session, one, sizes_bytes[one]))


def _by_librbd(session: Session, volume_id: str, size_bytes: int) -> None:
    """Create a volume as librbd does."""
    with (
        session.building(volume_id),
        translated(f"create volume {volume_id}", exists=id_taken(volume_id)),
    ):
        session.rbd.create(
            session.ioctx, volume_id, size_bytes, ORDER, old_format=False, features=FEATURES
        )
