"""The suite that every catalog passes: subclass `CatalogContract`, give it a `catalog`.

    class TestMine(CatalogContract):
        @pytest.fixture
        def catalog(self):
            catalog = MineCatalog(...)
            yield catalog
            catalog.close()

Optional hook: `another` (a second server's view of the same catalog).
"""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from volcore.catalog.contract import ABSENT, Absent, Anything, Catalog, Change
from volcore.errors import OperationPendingError, Reason
from volcore.model.records import Kind


def put(key: str, value: bytes, expect: bytes | Absent | None = None) -> Change:
    """Return the line that puts a volume record."""
    expectation: bytes | Absent | Anything = Anything() if expect is None else expect
    return Change(kind=Kind.VOLUME, key=key, value=value, expect=expectation)


def drop(key: str, expect: bytes | Absent | None = None) -> Change:
    """Return the line that deletes a volume record."""
    expectation: bytes | Absent | Anything = Anything() if expect is None else expect
    return Change(kind=Kind.VOLUME, key=key, value=None, expect=expectation)


class CatalogContract:
    """Override `catalog`; override `another` where several servers may share it."""

    @pytest.fixture
    def catalog(self) -> Iterator[Catalog]:
        """Yield an open, empty catalog, and close it afterwards."""
        raise NotImplementedError("override this fixture")

    def another(self, catalog: Catalog) -> Catalog:
        """Return a second view of the same catalog; the test does not close it."""
        return catalog

    def test_find(self, catalog: Catalog) -> None:
        """A record is what was last put, None before and after; bytes are kept as they are."""
        assert catalog.find(Kind.VOLUME, "a") is None
        for value in (b"one", b"", bytes(range(256)), b"x" * 16384):
            catalog.commit([put("a", value)])
            assert catalog.find(Kind.VOLUME, "a") == value
        catalog.commit([drop("a")])
        assert catalog.find(Kind.VOLUME, "a") is None

    def test_kinds_are_apart(self, catalog: Catalog) -> None:
        """The same key in two kinds is two records."""
        catalog.commit(
            [Change(kind=kind, key="same", value=kind.encode()) for kind in Kind],
        )
        for kind in Kind:
            assert catalog.find(kind, "same") == kind.encode()
            assert catalog.list(kind) == [("same", kind.encode())]
        catalog.commit([drop("same")])
        assert catalog.list(Kind.VOLUME) == []
        assert catalog.list(Kind.IMAGE) == [("same", b"image")]

    def test_keys_of_all_shapes(self, catalog: Catalog) -> None:
        """Keys differ by case, hold slashes, dots and underscores, and come near 200 bytes."""
        keys = ["a", "A", "a/b", "a/B", "a.b", "a_b", "a-b", "0", "n" * 100 + "/" + "s" * 100]
        catalog.commit([put(key, key.encode()) for key in keys])
        for key in keys:
            assert catalog.find(Kind.VOLUME, key) == key.encode()
        assert [key for key, _ in catalog.list(Kind.VOLUME)] == sorted(keys, key=str.encode)

    def test_list_order(self, catalog: Catalog) -> None:
        """Records are listed by key bytes, whatever the order of their commits."""
        keys = [f"k{number:03}" for number in range(50)]
        shuffled = list(keys)
        random.Random(1).shuffle(shuffled)  # noqa: S311 - test data
        for key in shuffled[:10]:
            catalog.commit([put(key, b"v")])
        catalog.commit([put(key, b"v") for key in shuffled[10:]])
        assert [key for key, _ in catalog.list(Kind.VOLUME)] == keys

    def test_list_prefix(self, catalog: Catalog) -> None:
        """A prefix selects the keys that begin with it, its wildcards are plain characters."""
        keys = ["a", "a/1", "a/2", "a0", "ab", "b", "%", "_x", "a_"]
        catalog.commit([put(key, b"") for key in keys])
        assert [key for key, _ in catalog.list(Kind.VOLUME, prefix="a/")] == ["a/1", "a/2"]
        assert [key for key, _ in catalog.list(Kind.VOLUME, prefix="%")] == ["%"]
        assert [key for key, _ in catalog.list(Kind.VOLUME, prefix="_")] == ["_x"]
        assert catalog.list(Kind.VOLUME, prefix="zz") == []
        assert len(catalog.list(Kind.VOLUME, prefix="a")) == 6

    def test_gather(self, catalog: Catalog) -> None:
        """One read of several things finds what several reads find, however many there are."""
        many = [f"v/{number:04}" for number in range(1100)]
        catalog.commit([put(key, key.encode()) for key in ["v", "v-1", "w/1", "w/2", *many]])
        wanted = [(Kind.VOLUME, "v"), (Kind.VOLUME, "x"), (Kind.IMAGE, "v")]
        below = [(Kind.VOLUME, prefix) for prefix in ("v/", "w/", "x/")] + [(Kind.IMAGE, "v/")]
        found, rows = catalog.gather(wanted, below)
        assert found == [b"v", None, None]
        assert rows[0] == [(key, key.encode()) for key in many]
        assert rows[1:] == [[("w/1", b"w/1"), ("w/2", b"w/2")], [], []]

    def test_list_pages(self, catalog: Catalog) -> None:
        """Pages of any size, each starting after the last key, give every record once."""
        keys = sorted(f"{letter}/{number}" for letter in "ab" for number in range(7))
        catalog.commit([put(key, b"v") for key in keys])
        for limit in (1, 3, 7, 14, 100):
            found: list[str] = []
            while page := catalog.list(Kind.VOLUME, after=found[-1] if found else "", limit=limit):
                assert len(page) <= limit
                found += [key for key, _ in page]
            assert found == keys
        page = catalog.list(Kind.VOLUME, prefix="b/", after="b/2", limit=2)
        assert [key for key, _ in page] == ["b/3", "b/4"]
        assert catalog.list(Kind.VOLUME, prefix="a/", after="b/0") == []
        assert len(catalog.list(Kind.VOLUME, prefix="b/", after="a/5")) == 7

    def test_unknown(self, catalog: Catalog) -> None:
        """What only a newer server knows is found, and is in nobody's way."""
        assert catalog.unknown(10) == []
        ours = [Change(kind=kind, key="same", value=b"ours") for kind in Kind]
        kinds = ("a", "volum", "volume_2", "z")
        theirs = [(kind, f"k/{number}", b"theirs") for kind in kinds for number in range(2)]
        strange = [
            Change(kind=kind, key=key, value=raw)  # type: ignore[arg-type]
            for kind, key, raw in theirs
        ]
        catalog.commit([*ours, *strange])
        assert catalog.unknown(10) == theirs
        assert catalog.unknown(3) == theirs[:3]
        assert all(catalog.list(kind) == [("same", b"ours")] for kind in Kind)

    def test_count(self, catalog: Catalog) -> None:
        """Records below a prefix are counted up to the limit, those of other kinds not at all."""
        keys = [*(f"a/{number}" for number in range(5)), "ab"]
        catalog.commit([Change(kind=Kind.SNAPSHOT, key=key, value=b"") for key in keys])
        catalog.commit([put("a/v", b"")])
        for limit, counted in ((1, 1), (4, 4), (5, 5), (6, 5)):
            assert catalog.count(Kind.SNAPSHOT, prefix="a/", limit=limit) == counted
        assert catalog.count(Kind.SNAPSHOT, prefix="b", limit=9) == 0

    def test_list_many(self, catalog: Catalog) -> None:
        """Hundreds of records in one commit are all there, and go in one commit."""
        keys = [f"v{number:04}" for number in range(300)]
        catalog.commit([put(key, key.encode() * 20) for key in keys])
        assert [key for key, _ in catalog.list(Kind.VOLUME)] == keys
        assert len(catalog.list(Kind.VOLUME, limit=250)) == 250
        catalog.commit([drop(key) for key in keys])
        assert catalog.list(Kind.VOLUME) == []

    def test_empty_commit(self, catalog: Catalog) -> None:
        """No lines are a valid commit."""
        catalog.commit([])
        assert catalog.list(Kind.VOLUME) == []

    def test_compare_and_set(self, catalog: Catalog) -> None:
        """A line with expected bytes takes effect only on exactly these bytes."""
        catalog.commit([put("a", b"1")])
        for wrong in (b"2", b"", b"11", ABSENT):
            with pytest.raises(OperationPendingError) as caught:
                catalog.commit([put("a", b"new", expect=wrong)])
            assert caught.value.reason == Reason.CATALOG_CONFLICT
            assert catalog.find(Kind.VOLUME, "a") == b"1"
        catalog.commit([put("a", b"2", expect=b"1")])
        assert catalog.find(Kind.VOLUME, "a") == b"2"
        with pytest.raises(OperationPendingError):
            catalog.commit([drop("a", expect=b"1")])
        catalog.commit([drop("a", expect=b"2")])
        assert catalog.find(Kind.VOLUME, "a") is None

    def test_absent(self, catalog: Catalog) -> None:
        """A line that expects nothing makes a record once; expected bytes fail where none is."""
        catalog.commit([put("a", b"1", expect=ABSENT)])
        with pytest.raises(OperationPendingError):
            catalog.commit([put("a", b"2", expect=ABSENT)])
        with pytest.raises(OperationPendingError):
            catalog.commit([put("b", b"2", expect=b"1")])
        with pytest.raises(OperationPendingError):
            catalog.commit([drop("b", expect=b"1")])
        assert catalog.list(Kind.VOLUME) == [("a", b"1")]
        catalog.commit([drop("b", expect=ABSENT)])

    def test_empty_is_not_absent(self, catalog: Catalog) -> None:
        """A record of no bytes exists."""
        catalog.commit([put("a", b"")])
        with pytest.raises(OperationPendingError):
            catalog.commit([put("a", b"x", expect=ABSENT)])
        catalog.commit([put("a", b"x", expect=b"")])
        with pytest.raises(OperationPendingError):
            catalog.commit([put("b", b"x", expect=b"")])

    def test_anything(self, catalog: Catalog) -> None:
        """A line without expectation puts over what is there and deletes what is not."""
        for value in (b"1", b"2"):
            catalog.commit([put("a", value)])
        catalog.commit([drop("a")])
        catalog.commit([drop("a")])
        assert catalog.find(Kind.VOLUME, "a") is None

    @pytest.mark.parametrize("wrong_line", [0, 1, 2])
    def test_atomicity(self, catalog: Catalog, wrong_line: int) -> None:
        """One expectation that does not hold, in any line and kind, undoes all lines."""
        catalog.commit([put("kept", b"old")])
        lines = [
            put("kept", b"new"),
            Change(kind=Kind.INTENT, key="i", value=b"intent"),
        ]
        lines.insert(
            wrong_line, Change(kind=Kind.IMAGE, key="missing", value=b"x", expect=b"there")
        )
        with pytest.raises(OperationPendingError):
            catalog.commit(lines)
        assert catalog.find(Kind.VOLUME, "kept") == b"old"
        assert catalog.find(Kind.INTENT, "i") is None
        assert catalog.find(Kind.IMAGE, "missing") is None

    def test_check_only(self, catalog: Catalog) -> None:
        """A line that only checks writes nothing and can still refuse the commit."""
        catalog.commit([put("source", b"1")])
        check = Change(kind=Kind.VOLUME, key="source", value=None, expect=b"1", check_only=True)
        nobody = Change(kind=Kind.IMAGE, key="i", value=b"x", expect=ABSENT, check_only=True)
        catalog.commit([check, nobody, put("target", b"2")])
        assert catalog.list(Kind.VOLUME) == [("source", b"1"), ("target", b"2")]
        assert catalog.find(Kind.IMAGE, "i") is None
        catalog.commit([put("source", b"changed")])
        with pytest.raises(OperationPendingError):
            catalog.commit([check, put("target", b"3")])
        assert catalog.find(Kind.VOLUME, "target") == b"2"

    def test_conflict_can_be_repeated(self, catalog: Catalog) -> None:
        """The error for a conflict says that a repeat may succeed."""
        with pytest.raises(OperationPendingError) as caught:
            catalog.commit([put("a", b"1", expect=b"0")])
        assert caught.value.retryable

    def test_two_views(self, catalog: Catalog) -> None:
        """What one server commits the other finds at once, and cannot overwrite unseen."""
        other = self.another(catalog)
        catalog.commit([put("a", b"1", expect=ABSENT)])
        assert other.find(Kind.VOLUME, "a") == b"1"
        other.commit([put("a", b"2", expect=b"1")])
        with pytest.raises(OperationPendingError):
            catalog.commit([put("a", b"3", expect=b"1")])
        assert catalog.find(Kind.VOLUME, "a") == b"2"

    def test_one_winner(self, catalog: Catalog) -> None:
        """Of eight threads that race for one key, one makes it."""
        views = [catalog, self.another(catalog)]

        def race(number: int) -> bool:
            try:
                views[number % 2].commit(
                    [
                        put("prize", str(number).encode(), expect=ABSENT),
                        Change(kind=Kind.INTENT, key=f"i{number}", value=b"won"),
                    ]
                )
            except OperationPendingError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(race, range(8)))
        assert outcomes.count(True) == 1
        winner = outcomes.index(True)
        assert catalog.find(Kind.VOLUME, "prize") == str(winner).encode()
        assert catalog.list(Kind.INTENT) == [(f"i{winner}", b"won")]

    def test_counter(self, catalog: Catalog) -> None:
        """Threads that increment one record with compare-and-set lose no increment."""
        catalog.commit([put("n", b"0")])
        rounds = 5

        def add() -> None:
            left = rounds
            while left:
                raw = catalog.find(Kind.VOLUME, "n")
                assert raw is not None
                with suppress(OperationPendingError):
                    catalog.commit([put("n", str(int(raw) + 1).encode(), expect=raw)])
                    left -= 1

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(add) for _ in range(4)]:
                future.result()
        assert catalog.find(Kind.VOLUME, "n") == str(4 * rounds).encode()

    def test_transaction(self, catalog: Catalog) -> None:
        """Commits joined in a transaction are all there after it."""
        with catalog.transaction():
            catalog.commit([put("a", b"1")])
            with catalog.transaction():
                catalog.commit([put("b", b"2", expect=ABSENT)])
            assert catalog.find(Kind.VOLUME, "a") == b"1"
        assert len(catalog.list(Kind.VOLUME)) == 2

    def test_close_twice(self, catalog: Catalog) -> None:
        """Closing again is nothing."""
        catalog.close()
        catalog.close()
