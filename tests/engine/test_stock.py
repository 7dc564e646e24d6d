"""How many warm clones there should be: marks, bounds and clocks, without any storage."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from volcore.engine.stock import FILL_MAX, Stock, StockFigures
from volcore.limits import MIB, WARM_CLONES_FIRST, WARM_DEMAND_S, WARM_HOT_S, WARM_IDLE_S
from volcore.model import names
from volcore.model.records import Image, State, WarmClone

SIZE = 8 * MIB


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def image(name: str) -> Image:
    return Image(
        name=name, id=name * 8, backend_volume_id=name, backend_snapshot_id="base", digest="",
        size_bytes=SIZE, source_format="raw", state=State.READY, create_time_ns=1,
    )  # fmt: skip


def fill(stock: Stock) -> int:
    """Make all that is missing; return how many that were."""
    count = 0
    while (shortage := stock.shortage()) is not None:
        assert shortage.count <= FILL_MAX
        clones = [
            WarmClone(
                image=shortage.image.name, id=names.new_id(), image_id=shortage.image.id,
                backend_id="", size_bytes=shortage.size_bytes, state=State.READY, create_time_ns=1,
            )
            for _ in range(shortage.count)
        ]  # fmt: skip
        stock.add(clones)
        count += len(clones)
    return count


def clear(stock: Stock) -> int:
    """Delete all that is doomed; return how many that were."""
    count = 0
    while stock.doomed() is not None:
        count += 1
    return count


def counts(stock: Stock) -> tuple[int, int]:
    found = stock.figures()
    return found.ready_count, found.target_count


def test_off():
    """Without a bound nothing is kept, whatever is asked for."""
    stock = Stock(0)
    stock.missed(image("a"), SIZE, 10)
    assert stock.take("a", SIZE, 1) is None
    assert stock.shortage() is None
    assert stock.figures() == StockFigures(ready_count=0, target_count=0, count_max=0)


def test_marks(clock):
    """Filled to the high mark, and again when half is gone, not before; all or none is taken."""
    stock = Stock(100, clock=clock)
    gold = image("a")
    assert stock.take("a", 0, 1) is None
    stock.missed(gold, SIZE, 1)
    assert fill(stock) == WARM_CLONES_FIRST == 4
    clock.now_s += 10 * WARM_DEMAND_S
    taken = stock.take("a", 0, 1)
    assert taken is not None
    assert taken.image == gold
    assert fill(stock) == 0
    clock.now_s += 10 * WARM_DEMAND_S
    assert stock.take("a", SIZE, 1) is not None
    assert fill(stock) == 2
    assert stock.take("a", 0, 5) is None
    assert stock.take("a", 2 * SIZE, 1) is None
    assert stock.take("b", 0, 1) is None
    assert counts(stock) == (4, 4)


def test_growth_and_bound(clock):
    """Twice what is asked for in a while, within the bound."""
    stock = Stock(50, clock=clock)
    stock.missed(image("a"), SIZE, 6)
    assert fill(stock) == 12
    assert stock.take("a", 0, 6) is not None
    fill(stock)
    assert counts(stock) == (24, 24)
    stock.missed(image("a"), SIZE, 1000)
    fill(stock)
    assert counts(stock) == (50, 50)


def test_sizes_and_images_share(clock):
    """A hot line keeps its share; a cold one gives what another needs."""
    stock = Stock(20, clock=clock)
    stock.missed(image("a"), SIZE, 8)
    stock.missed(image("a"), 2 * SIZE, 8)
    stock.missed(image("b"), SIZE, 1)
    fill(stock)
    assert counts(stock) == (20, 20)
    assert stock.take("b", SIZE, 1) is None
    clock.now_s += WARM_HOT_S
    stock.missed(image("b"), SIZE, 3)
    assert fill(stock) == 0, "no more than the bound, the doomed included"
    assert clear(stock) == 6
    assert fill(stock) == 6
    assert counts(stock) == (20, 20)
    assert stock.take("b", SIZE, 6) is not None


def test_idle(clock):
    """What is not needed is halved again and again, until nothing is left."""
    stock = Stock(100, clock=clock)
    stock.missed(image("a"), SIZE, 20)
    fill(stock)
    assert counts(stock) == (40, 40)
    clock.now_s += WARM_IDLE_S
    stock.adjust()  # the time that made it is over, and was needed
    assert counts(stock) == (40, 40)
    left = []
    for _ in range(7):
        clock.now_s += WARM_IDLE_S
        stock.adjust()
        left.append(counts(stock)[1])
    assert left == [20, 10, 5, 2, 1, 0, 0]
    assert clear(stock) == 40
    assert stock.shortage() is None
    assert not stock.has("a")


def test_slow_demand_keeps_little(clock):
    """A burst is forgotten although single volumes are asked for all the time."""
    stock = Stock(1000, clock=clock)
    stock.missed(image("a"), SIZE, 200)
    fill(stock)
    for _ in range(200):
        clock.now_s += WARM_IDLE_S / 10
        assert stock.take("a", 0, 1) is not None
        stock.adjust()
        clear(stock)
        fill(stock)
    assert counts(stock)[1] == WARM_CLONES_FIRST


def test_image_goes(clock):
    """Forgetting an image dooms its clones of all sizes, those under way too, and no others."""
    stock = Stock(100, clock=clock)
    for name, size_bytes in (("a", SIZE), ("a", 2 * SIZE), ("b", SIZE)):
        stock.missed(image(name), size_bytes, 1)
    fill(stock)
    late = stock.take("a", 0, 1)
    assert late is not None
    stock.forget(image("a").id)
    stock.add(late.clones)
    assert clear(stock) == 8
    assert counts(stock) == (4, 4)
    assert stock.take("a", 0, 1) is None


def test_another_image_of_that_name(clock):
    """An image that went unnoticed is gone when another has its name."""
    stock = Stock(100, clock=clock)
    stock.missed(image("a"), SIZE, 1)
    fill(stock)
    other = replace(image("a"), id="other")
    stock.missed(other, SIZE, 1)
    assert clear(stock) == 4
    fill(stock)
    taken = stock.take("a", 0, 1)
    assert taken is not None
    assert taken.image == other


def test_adopted(clock):
    """What a server before has left is the demand that is known; above the bound it goes."""
    stock = Stock(6, clock=clock)
    before = Stock(100, clock=clock)
    for name in ("a", "b"):
        before.missed(image(name), SIZE, 2)
        fill(before)
        taken = before.take(name, 0, 4)
        assert taken is not None
        stock.adopt(taken.image, taken.clones)
    assert counts(stock) == (6, 6)
    assert clear(stock) == 2
    assert fill(stock) == 0


def test_threads_get_distinct_clones():
    """Many threads take at once: no clone twice."""
    stock = Stock(1000)
    stock.missed(image("a"), SIZE, 200)
    fill(stock)
    gate = threading.Barrier(8)

    def work(_: int) -> list[str]:
        gate.wait()
        found = [stock.take("a", 0, 1) for _ in range(50)]
        return [clone.id for taken in found if taken is not None for clone in taken.clones]

    with ThreadPoolExecutor(8) as pool:
        taken = [one for many in pool.map(work, range(8)) for one in many]
    assert len(taken) == len(set(taken)) == 400
