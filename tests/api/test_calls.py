"""The hop into threads: bounded, honest about deadlines, and nothing half-sent."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
import structlog

from volcore.api.calls import CALLER, Caller, CallPool, request_id
from volcore.api.streams import FRAMES_QUEUED_MAX, ProgressFeed, Upload, broken_off
from volcore.errors import CancelledError, DeadlineError, ExhaustedError, Reason, UnavailableError


@pytest.fixture
def pool():
    made = CallPool("test", threads=1, queued_max=1)
    yield made
    made.close(5)


def test_queue_is_bounded(pool):
    """Goal: too many calls are refused at once. Method: one thread, one place in the queue."""

    async def job():
        go = threading.Event()
        first = asyncio.create_task(pool.run(go.wait))
        second = asyncio.create_task(pool.run(lambda: "second"))
        await asyncio.sleep(0)
        with pytest.raises(ExhaustedError) as caught:
            await pool.run(lambda: "third")
        assert (caught.value.reason, caught.value.retryable) == (Reason.TOO_MANY_REQUESTS, True)
        go.set()
        assert await first
        assert await second == "second"
        assert await pool.run(lambda: "fourth") == "fourth"

    asyncio.run(job())


def test_deadline_in_the_queue(pool):
    """Goal: what comes too late is not started. Method: a deadline that passes in the queue."""

    async def job():
        go, started = threading.Event(), []
        first = asyncio.create_task(pool.run(go.wait))
        await asyncio.sleep(0)
        CALLER.set(Caller("late", time.monotonic() + 0.01))
        second = asyncio.create_task(pool.run(started.append, 1))
        await asyncio.sleep(0.05)
        go.set()
        assert await first
        with pytest.raises(DeadlineError):
            await second
        assert started == []

    asyncio.run(job())


def test_begun_work_is_finished(pool):
    """Goal: a caller that leaves interrupts nothing, and what waits for it is not started."""

    async def job():
        begun, go, done = threading.Event(), threading.Event(), threading.Event()

        def work():
            begun.set()
            go.wait()
            done.set()

        first = asyncio.create_task(pool.run(work))
        second = asyncio.create_task(pool.run(done.clear))
        await asyncio.to_thread(begun.wait)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        go.set()
        assert await asyncio.to_thread(done.wait, 5)
        assert await pool.run(done.is_set)

    asyncio.run(job())


def test_request_id_goes_along(pool):
    async def job():
        CALLER.set(Caller("r7"))
        structlog.contextvars.bind_contextvars(request_id="r7")
        assert await pool.run(request_id) == "r7"
        assert (await pool.run(structlog.contextvars.get_contextvars))["request_id"] == "r7"

    asyncio.run(job())


def test_closed(pool):
    pool.close(1)

    async def job():
        with pytest.raises(UnavailableError) as caught:
            await pool.run(lambda: 1)
        assert caught.value.reason is Reason.SHUTTING_DOWN

    asyncio.run(job())


def test_closed_while_calls_wait(pool):
    """Goal: what has begun ends, what waits is refused. Method: close with one of each."""

    async def job():
        begun, go = threading.Event(), threading.Event()

        def work():
            begun.set()
            return go.wait()

        first = asyncio.create_task(pool.run(work))
        second = asyncio.create_task(pool.run(lambda: "second"))
        await asyncio.to_thread(begun.wait)
        assert not await asyncio.to_thread(pool.close, 0.05)
        with pytest.raises(UnavailableError) as caught:
            await second
        assert (caught.value.reason, caught.value.retryable) == (Reason.SHUTTING_DOWN, True)
        go.set()
        assert await first
        assert pool.close(5)

    asyncio.run(job())


def test_nothing_is_kept(pool):
    """Goal: an idle thread holds no answer. Method: a weak reference to one."""

    class Answer:
        pass

    async def job():
        return weakref.ref(await pool.run(Answer))

    found = asyncio.run(job())
    deadline_s = time.monotonic() + 5
    while found() is not None and time.monotonic() < deadline_s:  # the thread lets go just now
        gc.collect()
        time.sleep(0.01)
    assert found() is None


def test_upload_pushes_back():
    """Goal: a slow reader slows the sender. Method: put more than the queue holds."""

    async def job():
        upload = Upload()
        put = []

        async def feed():
            for at in range(3 * FRAMES_QUEUED_MAX):
                await upload.put(bytes([at]))
                put.append(at)
            upload.end()

        feeding = asyncio.create_task(feed())
        await asyncio.sleep(0.05)
        assert len(put) == FRAMES_QUEUED_MAX
        got = await asyncio.to_thread(lambda: b"".join(upload))
        await feeding
        assert got == bytes(range(3 * FRAMES_QUEUED_MAX))

    asyncio.run(job())


def test_broken_upload_raises():
    """Goal: a broken upload never looks like a short one. Method: fail before and after the end."""

    async def job():
        upload = Upload()
        await upload.put(b"a")
        upload.fail(broken_off())
        upload.end()
        with pytest.raises(CancelledError):
            await asyncio.to_thread(lambda: list(upload))
        whole = Upload()
        await whole.put(b"a")
        whole.end()
        whole.fail(broken_off())
        assert await asyncio.to_thread(lambda: list(whole)) == [b"a"]

    asyncio.run(job())


def test_progress_keeps_the_latest():
    """Goal: a reader that is slow costs no memory. Method: tell a thousand states at once."""

    async def job():
        feed = ProgressFeed()
        work = asyncio.get_running_loop().create_future()

        def tell():
            for at in range(1000):
                feed.put(at)

        await asyncio.to_thread(tell)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, work.set_result, None)
        assert [state async for state in feed.until(work)] == [999]

    asyncio.run(job())


def test_progress_is_received():
    """Goal: a sender can be told something at the end. Method: ask; nothing new has happened."""

    async def job():
        feed = ProgressFeed()
        work = asyncio.get_running_loop().create_future()
        feed.put("state")
        states = feed.until(work)
        assert await anext(states) == "state"
        asked = asyncio.create_task(feed.received())
        assert await anext(states) == "state"
        assert not asked.done()
        asyncio.get_running_loop().call_later(0.01, work.set_result, None)
        assert [state async for state in states] == []
        await asked

    asyncio.run(job())
