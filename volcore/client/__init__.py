"""The typed Python client of volcore, sync and async; talks gRPC only."""

from volcore.client.aio import AsyncClient
from volcore.client.channel import ClientTls
from volcore.client.retry import RetryPolicy
from volcore.client.sync import Client

__all__ = ["AsyncClient", "Client", "ClientTls", "RetryPolicy"]
