"""A call of a REST API."""

import json
import urllib.error
import urllib.request


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, text: str):
        super().__init__(f"{code}: {text}")
        self.code = code


def call(method: str, url: str, body=None, *, token="", headers=None, with_headers=False):
    """Return the parsed answer, None without any; and the answer's headers if asked for."""
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-Auth-Token": token, "Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:
            text = answer.read()
    except urllib.error.HTTPError as err:
        raise ApiError(err.code, err.read().decode(errors="replace")) from None
    parsed = json.loads(text) if text else None
    return (parsed, answer.headers) if with_headers else parsed
