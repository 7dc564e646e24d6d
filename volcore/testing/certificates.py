"""Throw-away certificates, made with the `openssl` command, in the layout that NBD clients want."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from volcore.credentials import TlsFiles


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a directory of its own."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, name: str = "authority") -> "Authority":
        """Make an authority; the directory is made too."""
        directory.mkdir(mode=0o700, parents=True)
        _openssl(
            directory,
            *("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", "ca-key.pem", "-out", "ca-cert.pem"),
        )
        return cls(directory)

    @property
    def certificate(self) -> Path:
        """The authority's own certificate."""
        return self.directory / "ca-cert.pem"

    def server(
        self,
        name: str = "server",
        *,
        names: str = "DNS:localhost,IP:127.0.0.1",
        peers: bool = False,
    ) -> TlsFiles:
        """Return the files of a server that serves clients of this authority only.

        With `peers` it may be a client of other servers, too.
        """
        made = self._issue(name, "server", names=names, days=2, more=",clientAuth" * peers)
        return TlsFiles(
            certificate=made / "server-cert.pem",
            key=made / "server-key.pem",
            client_ca=self.certificate,
        )

    def client(self, name: str, *, names: str = "", days: int = 2) -> Path:
        """Return a directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, anew.

        Args:
            name: the common name.
            names: more of them, as in `DNS:host-1`.
            days: how long it is valid; negative: it has expired.
        """
        return self._issue(name, "client", names=names, days=days)

    def _issue(self, name: str, role: str, *, names: str, days: int, more: str = "") -> Path:
        made = self.directory / f"{role}-{name}"
        made.mkdir(exist_ok=True)
        (made / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        extensions = f"extendedKeyUsage={role}Auth{more}\n"
        if names:
            extensions += f"subjectAltName={names}\n"
        (made / "extensions").write_text(extensions)
        _openssl(
            made,
            *("req", *_NEW_KEY, "-subj", f"/CN={name}"),
            *("-keyout", f"{role}-key.pem", "-out", "request.pem"),
        )
        _openssl(
            made,
            *("x509", "-req", "-in", "request.pem", "-days", str(days), "-extfile", "extensions"),
            *("-CA", "../ca-cert.pem", "-CAkey", "../ca-key.pem", "-CAcreateserial"),
            *("-out", f"{role}-cert.pem"),
        )
        return made


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)
