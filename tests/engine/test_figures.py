"""The figures of a pool are those of its records, whatever happens to these."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from volcore.catalog.contract import ABSENT, ANYTHING, Catalog, Change
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine.figures import CountedCatalog, Figures
from volcore.errors import BackendIOError, OperationPendingError, Reason
from volcore.model.records import Kind, State, Volume
from volcore.testing.catalog_contract import CatalogContract


class TestCountedCatalog(CatalogContract):
    @pytest.fixture
    def catalog(self) -> Iterator[Catalog]:
        database = Database(None)
        yield CountedCatalog(SqliteCatalog(database))
        database.close()


@pytest.fixture
def catalog() -> Iterator[CountedCatalog]:
    database = Database(None)
    yield CountedCatalog(SqliteCatalog(database))
    database.close()


def volume(name: str, size_bytes: int, state: State = State.READY) -> Change:
    record = Volume(
        name=name, id="1", backend_id=name, size_bytes=size_bytes, state=state, create_time_ns=7
    )
    return Change(kind=Kind.VOLUME, key=name, value=record.encode(), expect=ANYTHING)


def gone(name: str) -> Change:
    return Change(kind=Kind.VOLUME, key=name, value=None, expect=ANYTHING)


def counted(catalog: CountedCatalog) -> Figures:
    """The figures as one gets them who looks at everything."""
    return CountedCatalog(catalog._catalog).figures()


def test_followed_and_counted_agree(catalog: CountedCatalog) -> None:
    """Goal: following is counting. Method: random changes from threads, and somebody who asks."""

    def work(number: int) -> None:
        draw = random.Random(number)
        for _ in range(100):
            name = f"v{number}-{draw.randrange(5)}"
            state = draw.choice(list(State))
            try:
                with catalog.transaction():
                    catalog.commit([volume(name, draw.randrange(9), state)])
                    if draw.random() < 0.3:
                        catalog.commit([gone(name)])
                    if draw.random() < 0.3:
                        raise KeyError
            except KeyError:
                pass
            if draw.random() < 0.2:
                catalog.figures()

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))
    assert catalog.figures() == counted(catalog) != Figures(0, 0, 0)


def test_changes_while_all_is_looked_at(
    catalog: CountedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a change beside the first look counts once. Method: make it between two pages."""
    catalog.commit([volume("a", 1), volume("b", 2)])
    look = catalog._catalog.list

    def beside(*args, **kwargs):
        page = look(*args, **kwargs)
        changes = [gone("a"), volume("b", 20), volume("c", 30)]
        other = threading.Thread(target=lambda: catalog.commit(changes))
        other.start()
        other.join()
        return page

    monkeypatch.setattr(catalog._catalog, "list", beside)
    assert catalog.figures() == Figures(2, 50, 0)
    monkeypatch.undo()
    assert catalog.figures() == counted(catalog) == Figures(2, 50, 0)


def test_what_is_refused_or_unclear(
    catalog: CountedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: figures are right after errors. Method: a conflict, and a commit that went through
    though it seemed to fail."""
    catalog.commit([volume("a", 1)])
    assert catalog.figures() == Figures(1, 1, 0)
    taken = Change(kind=Kind.VOLUME, key="a", value=b"{}", expect=ABSENT)
    with pytest.raises(OperationPendingError):
        catalog.commit([volume("b", 2), taken])
    assert catalog.figures() == Figures(1, 1, 0)
    commit = catalog._catalog.commit

    def cut_off(changes):
        commit(changes)
        raise BackendIOError("cut off", reason=Reason.BACKEND_IO)

    monkeypatch.setattr(catalog._catalog, "commit", cut_off)
    with pytest.raises(BackendIOError):
        catalog.commit([volume("b", 2)])
    assert catalog.figures() == Figures(2, 3, 0)
