"""A Kubernetes API server as the benchmarks speak to it: where it is, who asks, and single requests."""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Struct


class Server(Struct, frozen=True):
    """An API server and the credentials of an administrator: a client certificate, or a token."""

    host: str
    port: int
    ca: str
    certificate: str = ""
    token: str = ""

    def tls(self) -> ssl.SSLContext:
        """The client's side of TLS."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate)
        return context

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def of_kubeconfig(kubeconfig: Path, folder: Path) -> Server:
    """The server of a kubeconfig; its certificates are written into `folder`."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    address = urlsplit(cluster["server"])
    ca, pair = folder / "ca.pem", folder / "admin.pem"
    ca.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    pair.touch(mode=0o600)
    words = (base64.b64decode(user[word]) for word in ("client-certificate-data", "client-key-data"))
    pair.write_bytes(b"\n".join(words))
    assert address.hostname and address.port
    return Server(address.hostname, address.port, str(ca), str(pair))


class Api:
    """One kept connection. Not for several threads."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = http.client.HTTPSConnection(server.host, server.port, context=server.tls(), timeout=120)

    def call(self, method: str, path: str, body: Any = None, *, accept: tuple[int, ...] = ()) -> Any:
        """The decoded answer. Raises RuntimeError for an error that is not among the accepted codes."""
        data = msgspec.json.encode(body) if body is not None else None
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        self._connection.request(method, path, data, {"Content-Type": kind, **self.server.headers()})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400 and answer.status not in accept:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return msgspec.json.decode(text) if text.startswith((b"{", b"[")) else text

    @contextmanager
    def watch(self, path: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a watch; the deadline of one wait is two minutes."""
        connection = http.client.HTTPSConnection(
            self.server.host, self.server.port, context=self.server.tls(), timeout=120
        )
        with closing(connection):
            connection.request("GET", path, headers=self.server.headers())
            answer = connection.getresponse()
            yield (msgspec.json.decode(line) for line in iter(answer.readline, b""))

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()
