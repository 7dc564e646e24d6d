"""Calls that cut hosts off from their volumes, and let them in again."""

from collections.abc import Sequence

from volcore.client.calls import Call, Listing, int32, nothing
from volcore.v1 import fenced_host_pb2 as fenced
from volcore.v1 import host_service_pb2 as hosts


def plan_fence(
    parent: str, host: str, *, client_addresses: Sequence[str] = ()
) -> Call[fenced.FencePlan]:
    """Tell what fencing a host of pool `pools/p` will hit; changes nothing."""
    return Call(
        service="HostService",
        rpc="FenceHost",
        request=hosts.FenceHostRequest(
            parent=parent, host=host, client_addresses=client_addresses, validate_only=True
        ),
        take=lambda r: r.plan,
    )


def fence_host(
    parent: str,
    host: str,
    *,
    etag: str,
    client_addresses: Sequence[str] = (),
    host_is_off: bool = False,
) -> Call[fenced.FencedHost]:
    """Cut a host off from the volumes of a pool, and free them; `etag` is that of `plan_fence`.

    `host_is_off` states that clients which nobody knows of are gone.
    """
    return Call(
        service="HostService",
        rpc="FenceHost",
        request=hosts.FenceHostRequest(
            parent=parent,
            host=host,
            client_addresses=client_addresses,
            etag=etag,
            host_is_off=host_is_off,
        ),
        take=lambda r: r.fenced_host,
    )


def unfence_host(name: str) -> Call[None]:
    """Let volumes be attached to a host again that was restarted; not being fenced is no error."""
    request = hosts.UnfenceHostRequest(name=name)
    return Call(service="HostService", rpc="UnfenceHost", request=request, take=nothing)


def get_fenced_host(name: str) -> Call[fenced.FencedHost]:
    """Return one fenced host, `pools/p/fencedHosts/h`."""
    request = hosts.GetFencedHostRequest(name=name)
    return Call(
        service="HostService",
        rpc="GetFencedHost",
        request=request,
        take=lambda r: r.fenced_host,
    )


def list_fenced_hosts(parent: str, *, page_size: int = 0) -> Listing[fenced.FencedHost]:
    """List fenced hosts of `pools/p`, or of all pools (`pools/-`), in the order of their names."""
    return Listing(
        service="HostService",
        rpc="ListFencedHosts",
        request=hosts.ListFencedHostsRequest(
            parent=parent, page_size=int32(page_size, "page_size")
        ),
        items=lambda r: r.fenced_hosts,
    )
