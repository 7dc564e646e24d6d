"""Nova's REST API, as far as the tests need it."""

import time

from .rest import ApiError, call

DONE_S = 120.0


class NovaApi:
    """Calls as whoever a token of Keystone is for."""

    def __init__(self, port: int, token: str):
        self._url, self._token = f"http://127.0.0.1:{port}/v2.1", token

    def call(self, method: str, path: str, body=None):
        """Return the parsed answer."""
        version = {"OpenStack-API-Version": "compute 2.89"}
        return call(method, self._url + path, body, token=self._token, headers=version)

    def boot(self, flavor: str, source: str, kind: str = "volume", **fields) -> str:
        """Boot a server from a volume, or from one that Nova makes; return its id when it is up.

        It has no network.
        """
        disk = {
            "boot_index": 0,
            "uuid": source,
            "source_type": kind,
            "destination_type": "volume",
            **fields,
        }
        asked = {"name": "guest", "flavorRef": flavor, "networks": "none"}
        made = self.call(
            "POST", "/servers", {"server": {**asked, "block_device_mapping_v2": [disk]}}
        )
        self._wait(made["server"]["id"], "ACTIVE")
        return made["server"]["id"]

    def migrate(self, server: str, end: str = "ACTIVE") -> None:
        """Move a running server to another host, as an administrator; wait for its status then."""
        asked = {"os-migrateLive": {"host": None, "block_migration": "auto"}}
        self.call("POST", f"/servers/{server}/action", asked)
        self._wait(server, end)

    def evacuate(self, server: str, host: str) -> None:
        """Start a server elsewhere, as an administrator, as its host is gone for good."""
        found = self.call("GET", f"/os-services?binary=nova-compute&host={host}")["services"]
        self.call("PUT", f"/os-services/{found[0]['id']}", {"forced_down": True})
        self.call("POST", f"/servers/{server}/action", {"evacuate": {}})
        self._wait(server, "ACTIVE")

    def console(self, server: str) -> str:
        """Return what the server's console shows."""
        asked = {"os-getConsoleOutput": {}}
        return self.call("POST", f"/servers/{server}/action", asked)["output"]

    def wait_said(self, server: str, text: str) -> str:
        """Wait until the console shows a text; return all of it."""
        deadline = time.monotonic() + DONE_S
        while text not in (said := self.console(server).replace("\r\n", "\n")):
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        return said

    def volumes(self, server: str) -> list[str]:
        """Return the ids of a server's volumes."""
        told = self.call("GET", f"/servers/{server}/os-volume_attachments")["volumeAttachments"]
        return [one["volumeId"] for one in told]

    def attach(self, server: str, volume: str) -> None:
        asked = {"volumeAttachment": {"volumeId": volume}}
        self.call("POST", f"/servers/{server}/os-volume_attachments", asked)

    def detach(self, server: str, volume: str) -> None:
        self.call("DELETE", f"/servers/{server}/os-volume_attachments/{volume}")

    def delete(self, server: str) -> None:
        """Delete a server, and wait until it is gone."""
        self.call("DELETE", f"/servers/{server}")
        deadline = time.monotonic() + DONE_S
        while True:
            try:
                now = self.call("GET", f"/servers/{server}")["server"]
            except ApiError as err:
                if err.code != 404:
                    raise
                return
            assert now["status"] != "ERROR", now
            assert time.monotonic() < deadline, now
            time.sleep(0.5)

    def _wait(self, server, status):
        deadline = time.monotonic() + DONE_S
        while True:
            now = self.call("GET", f"/servers/{server}")["server"]
            if now["status"] == status and now["OS-EXT-STS:task_state"] is None:
                return
            assert now["status"] != "ERROR", now
            assert time.monotonic() < deadline, now
            time.sleep(0.5)
