"""An authority of our own in a folder, for what has nothing to do with the Kubernetes API's.

ca.crt ca.key          the authority
server.crt server.key  what its server shows
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path

from insula.api.kube import certificates
from insula.api.kube.certificates import Usage
from insula.api.kube.pki import Credential


class Issuer:
    """The authority of one folder, made when it is missing. Blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key_path, path = folder / "ca.key", folder / "ca.crt"
        if not (key_path.exists() and path.exists()):
            key = certificates.new_key()
            write(key_path, certificates.key_pem(key), 0o600)
            write(path, certificates.certificate_pem(certificates.authority(key)), 0o644)
        self.ca_pem = path.read_bytes()
        self._ca = certificates.read_certificate(self.ca_pem)

    def issue(self, user: str, *, usage: Usage = "client", names: Iterable[str] = ()) -> Credential:
        """A new certificate with its key, good for a year."""
        ca_key = certificates.read_key((self.folder / "ca.key").read_bytes(), self.folder / "ca.key")
        key = certificates.new_key()
        made = certificates.leaf(self._ca, ca_key, key, user, (), usage=usage, names=names, life=certificates.LEAF_LIFE)
        return Credential(certificates.certificate_pem(made), certificates.key_pem(key))

    def server_context(self, user: str, names: tuple[str, ...]) -> ssl.SSLContext:
        """TLS for a server of these names, made anew when it nears its end; for clients with a certificate of ours only."""
        path, key_path = self.folder / "server.crt", self.folder / "server.key"
        known = path.exists() and key_path.exists()
        if not known or certificates.good_until(path.read_bytes(), key_path.read_bytes(), self._ca, names) is None:
            made = self.issue(user, usage="server", names=names)
            write(key_path, made.key, 0o600)
            write(path, made.certificate, 0o644)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(path, key_path)
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole, with its mode from the first moment on, and to the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.chmod(mode)
    part.replace(path)
