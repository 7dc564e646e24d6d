"""Cinder's REST API, as far as the tests need it."""

import time

from .rest import ApiError
from .rest import call as call_rest

DONE_S = 180.0


class CinderApi:
    """Calls as an administrator, without Keystone; or as whoever a token of Keystone is for."""

    def __init__(self, port: int, token: str = "admin:admin"):
        self._url, self._token = f"http://127.0.0.1:{port}/v3", token

    def call(self, method: str, path: str, body=None):
        """Return the parsed answer."""
        version = {"OpenStack-API-Version": "volume 3.66"}
        return call_rest(method, self._url + path, body, token=self._token, headers=version)

    def make_type(self, name: str, backend: str, **specs: str) -> str:
        made = self.call("POST", "/types", {"volume_type": {"name": name}})["volume_type"]["id"]
        specs = {"volume_backend_name": backend, **specs}
        self.call("POST", f"/types/{made}/extra_specs", {"extra_specs": specs})
        return made

    def make_group_type(self, name: str, **specs: str) -> str:
        made = self.call("POST", "/group_types", {"group_type": {"name": name}})
        one = made["group_type"]["id"]
        self.call("POST", f"/group_types/{one}/group_specs", {"group_specs": specs})
        return one

    def create(self, kind: str, *, wait: bool = True, **fields) -> dict:
        """Create a volume or snapshot and wait until it is available."""
        made = self.call("POST", f"/{kind}s", {kind: fields})[kind]
        return self.wait(kind, made["id"]) if wait else made

    def get(self, kind: str, one: str) -> dict:
        return self.call("GET", f"/{kind}s/{one}")[kind]

    def wait(self, kind: str, one: str, status: str = "available") -> dict:
        deadline = time.monotonic() + DONE_S
        while True:
            now = self.get(kind, one)
            if now["status"] == status:
                return now
            assert "error" not in now["status"], now
            assert time.monotonic() < deadline, now
            time.sleep(0.1)

    def volumes_of(self, group: str) -> list[dict]:
        return self.call("GET", f"/volumes/detail?group_id={group}")["volumes"]

    def act(self, kind: str, one: str, action: str, arguments=None):
        return self.call("POST", f"/{kind}s/{one}/action", {action: arguments or {}})

    def delete(self, kind: str, one: str, *, force: bool = False) -> None:
        """Delete, a group with its volumes, and wait until it is gone."""
        if kind == "group":
            self.act(kind, one, "delete", {"delete-volumes": True})
        elif force:
            self.act(kind, one, "os-force_delete")
        else:
            self.call("DELETE", f"/{kind}s/{one}")
        self.wait_gone(kind, one)

    def wait_gone(self, kind: str, one: str) -> None:
        deadline = time.monotonic() + DONE_S
        while True:
            try:
                now = self.get(kind, one)
            except ApiError as err:
                if err.code != 404:
                    raise
                return
            assert now["status"] in ("deleting", "deleted", "available"), now
            assert time.monotonic() < deadline, now
            time.sleep(0.1)

    def attach(self, volume: str, host: str) -> dict:
        """Attach through the attachments API as Nova does; return the attachment."""
        made = self.call("POST", "/attachments", {"attachment": {"volume_uuid": volume}})
        one = made["attachment"]["id"]
        try:
            self.attach_again(one, host)
        except ApiError:
            self.call("DELETE", f"/attachments/{one}")
            raise
        self.call("POST", f"/attachments/{one}/action", {"os-complete": {}})
        return self.call("GET", f"/attachments/{one}")["attachment"]

    def attach_again(self, attachment: str, host: str) -> dict:
        """Return the connection info that the driver gives now."""
        connector = {"host": host, "ip": "127.0.0.1", "multipath": False, "platform": "x86_64",
                     "os_type": "linux", "initiator": f"iqn.1994-05.com.example:{host}",
                     "mountpoint": "/dev/vdb"}  # fmt: skip
        asked = {"attachment": {"connector": connector}}
        made = self.call("PUT", f"/attachments/{attachment}", asked)
        return made["attachment"]["connection_info"]

    def detach(self, attachment: str) -> None:
        self.call("DELETE", f"/attachments/{attachment}")
