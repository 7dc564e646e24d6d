"""The sanity suite on a local and a memory pool, and on the endpoint that the caller names."""

import os

import pytest

from volcore.client import Client
from volcore.testing.api_sanity import ApiSanity
from volcore.testing.server import RunningServer

LIVE = os.environ.get("VOLCORE_TEST_ENDPOINT", "")


class TestLocal(ApiSanity):
    @pytest.fixture
    def client(self, server):
        with Client(server.endpoint, timeout_s=60) as client:
            yield client

    @pytest.fixture
    def pool(self):
        return "pools/p"


@pytest.fixture(scope="module")
def memory_server(short_directory):
    with RunningServer(short_directory / "m", 'backend = "memory"\n') as running:
        yield running
        assert running.stop() == 0, running.log()
        assert '"exception"' not in running.log()


class TestMemory(ApiSanity):
    @pytest.fixture
    def client(self, memory_server):
        with Client(memory_server.endpoint, timeout_s=60) as client:
            yield client

    @pytest.fixture
    def pool(self):
        return "pools/p"


if LIVE:

    class TestLive(ApiSanity):
        """VOLCORE_TEST_ENDPOINT and VOLCORE_TEST_POOL say where."""

        @pytest.fixture
        def client(self):
            with Client(LIVE, timeout_s=60) as client:
                yield client

        @pytest.fixture
        def pool(self):
            return f"pools/{os.environ.get('VOLCORE_TEST_POOL', 'default')}"
