"""Glance's REST API, as far as the tests need it."""

import json
import shutil
import urllib.request
from pathlib import Path


class GlanceApi:
    """Calls without Keystone: everybody may do everything."""

    def __init__(self, port: int):
        self._url = f"http://127.0.0.1:{port}/v2"

    def call(
        self, method: str, path: str, body=None, *, kind: str = "application/json", **more: str
    ) -> bytes:
        """Return the answer; `body` is sent as it is when `kind` says so, `more` are headers."""
        if body is not None and kind == "application/json":
            body = json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": kind, **more}
        if hasattr(body, "fileno"):
            headers["Content-Length"] = str(Path(body.name).stat().st_size)
        request = urllib.request.Request(
            self._url + path, method=method, data=body, headers=headers
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.read()

    def upload(self, path: Path, disk_format: str, *, store: str = "fs", **fields) -> str:
        """Make an image of a file in one of Glance's stores; return its id."""
        fields = {"container_format": "bare", "visibility": "public", **fields}
        made = self.call(
            "POST", "/images", {"name": path.name, "disk_format": disk_format, **fields}
        )
        one = json.loads(made)["id"]
        with path.open("rb") as file:
            self.call(
                "PUT", f"/images/{one}/file", file,
                kind="application/octet-stream", **{"X-Image-Meta-Store": store},
            )  # fmt: skip
        return one

    def get(self, one: str) -> dict:
        return json.loads(self.call("GET", f"/images/{one}"))

    def list(self) -> list[dict]:
        return json.loads(self.call("GET", "/images?limit=1000"))["images"]

    def download(self, one: str, path: Path) -> None:
        url = f"{self._url}/images/{one}/file"
        with urllib.request.urlopen(url, timeout=300) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)

    def delete(self, one: str) -> None:
        self.call("DELETE", f"/images/{one}")
