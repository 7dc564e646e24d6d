"""Keystone's REST API, as far as the tests need it."""

from .rest import call

PASSWORD = "secret"


class KeystoneApi:
    """Projects with one user each, of the same name."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}/v3"

    def token(self, name: str) -> str:
        """Sign in."""
        domain = {"id": "default"}
        methods = {
            "methods": ["password"],
            "password": {"user": {"name": name, "password": PASSWORD, "domain": domain}},
        }
        scope = {"project": {"name": name, "domain": domain}}
        asked = {"auth": {"identity": methods, "scope": scope}}
        return call("POST", f"{self.url}/auth/tokens", asked, with_headers=True)[1][
            "X-Subject-Token"
        ]

    def make_user(self, token: str, name: str, *roles: str) -> None:
        """Make a project and its user, who has the roles there."""

        def ask(method, path, body=None):
            return call(method, self.url + path, body, token=token)

        project = ask("POST", "/projects", {"project": {"name": name}})["project"]["id"]
        user = ask("POST", "/users", {"user": {"name": name, "password": PASSWORD}})["user"]["id"]
        for role in roles:
            (known,) = ask("GET", f"/roles?name={role}")["roles"]
            ask("PUT", f"/projects/{project}/users/{user}/roles/{known['id']}")

    def make_service(self, token: str, kind: str, url: str) -> None:
        """Name a service in the catalog."""
        body = {"service": {"type": kind, "name": kind}}
        made = call("POST", f"{self.url}/services", body, token=token)["service"]["id"]
        endpoint = {"service_id": made, "interface": "public", "region_id": "RegionOne", "url": url}
        call("POST", f"{self.url}/endpoints", {"endpoint": endpoint}, token=token)
