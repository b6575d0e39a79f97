"""Certificates and keys of the Kubernetes door: our own authority, the server's and the administrator's certificate.

Everything lives in one folder, is made once and renewed when it nears its end:

    ca.crt ca.key              the authority that signs client and server certificates
    server.crt server.key      what the API server shows; names and addresses in it follow `names`
    admin.crt admin.key        user `kubernetes-admin` of the group `system:masters`
    sa.key                     signs service account tokens
    admin.conf                 a kubeconfig with the administrator's certificate
    checked.json               what these files were when they were last found good, and until when they are

All functions that touch files block for some milliseconds: call them through `tasks.in_thread`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from insula.clock import now

if TYPE_CHECKING:
    from insula.api.kube.certificates import Key, Usage

_MADE = ("ca.key", "ca.crt", "server.key", "server.crt", "admin.key", "admin.crt", "sa.key")


@dataclass(frozen=True)
class Credential:
    """A certificate with its key, both PEM."""

    certificate: bytes
    key: bytes


class _Checked(Struct, frozen=True):
    """That the files with this digest hold these names and need nothing done before `renew_s` (seconds since 1970)."""

    digest: str
    names: tuple[str, ...]
    renew_s: float


def _write(path: Path, data: bytes, mode: int, *, durable: bool = False) -> None:
    """`durable` for what cannot be made anew after a loss of power: a certificate is, its authority is in clients' hands."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    part.chmod(mode)
    part.replace(path)


class Pki:
    """The folder of credentials. Made with what is missing or near its end on opening."""

    def __init__(self, folder: Path, names: Iterable[str] = ()) -> None:
        """`names`: further host names and addresses of the server, such as the service address."""
        self.folder = folder
        self._names = tuple(dict.fromkeys((*default_names(), *names)))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._known_good():
            self._make()
        self.ca_pem = (folder / "ca.crt").read_bytes()

    # --- making -------------------------------------------------------------------------------------------------

    def _known_good(self) -> bool:
        """Whether nothing has changed since the files were last looked into: then `cryptography` need not be loaded."""
        try:
            checked = msgspec.json.decode((self.folder / "checked.json").read_bytes(), type=_Checked)
            return (
                now().timestamp() < checked.renew_s
                and set(self._names) <= set(checked.names)
                and checked.digest == self._digest()
            )
        except (OSError, msgspec.MsgspecError):
            return False

    def _digest(self) -> str:
        """Of all files together. Raises OSError when one is missing."""
        digest = hashlib.sha256()
        for name in _MADE:
            data = (self.folder / name).read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
        return digest.hexdigest()

    def _make(self) -> None:
        from insula.api.kube import certificates

        self._authority()
        renew = (
            self._leaf("server", "kube-apiserver", (), "server", self._names),
            self._leaf("admin", "kubernetes-admin", ("system:masters",), "client"),
        )
        if not (self.folder / "sa.key").exists():
            _write(self.folder / "sa.key", certificates.key_pem(certificates.new_key()), 0o600, durable=True)
        for name in ("ca.key", "sa.key"):
            self._key(name)  # that cannot be read is better known now
        checked = _Checked(self._digest(), self._names, min(renew))
        _write(self.folder / "checked.json", msgspec.json.encode(checked), 0o600)

    def _authority(self) -> None:
        from insula.api.kube import certificates

        key_path, path = self.folder / "ca.key", self.folder / "ca.crt"
        if key_path.exists() and path.exists():
            return
        key = certificates.new_key()
        _write(key_path, certificates.key_pem(key), 0o600, durable=True)
        _write(path, certificates.certificate_pem(certificates.authority(key)), 0o644, durable=True)

    def _leaf(self, file: str, user: str, groups: tuple[str, ...], usage: Usage, names: tuple[str, ...] = ()) -> float:
        """See to it that a certificate is good. Returns when it has to be looked at again, in seconds since 1970."""
        from insula.api.kube import certificates

        path, key_path = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        ca = certificates.read_certificate((self.folder / "ca.crt").read_bytes())
        if path.exists() and key_path.exists():
            renew = certificates.good_until(path.read_bytes(), key_path.read_bytes(), ca, names)
            if renew is not None:
                return renew.timestamp()
        made = self.issue(user, groups, usage=usage, names=names)
        _write(key_path, made.key, 0o600)
        _write(path, made.certificate, 0o644)
        renewed = certificates.good_until(made.certificate, made.key, ca, names)
        return renewed.timestamp() if renewed else 0.0

    # --- using --------------------------------------------------------------------------------------------------

    def issue(
        self,
        user: str,
        groups: Iterable[str] = (),
        *,
        usage: Usage = "client",
        names: Iterable[str] = (),
        life: timedelta | None = None,
    ) -> Credential:
        """A new certificate of our authority, with its key; good for a year where `life` says nothing."""
        from insula.api.kube import certificates

        ca = certificates.read_certificate((self.folder / "ca.crt").read_bytes())
        ca_key, key = self._key("ca.key"), certificates.new_key()
        life = life or certificates.LEAF_LIFE
        made = certificates.leaf(ca, ca_key, key, user, groups, usage=usage, names=names, life=life)
        return Credential(certificates.certificate_pem(made), certificates.key_pem(key))

    def _key(self, file: str) -> Key:
        from insula.api.kube import certificates

        return certificates.read_key((self.folder / file).read_bytes(), self.folder / file)

    @cached_property
    def signing_key(self) -> Key:
        """What signs service account tokens; read when it is first needed."""
        return self._key("sa.key")

    def server_context(self) -> ssl.SSLContext:
        """TLS for the API server: client certificates of our authority are asked for, not required."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.folder / "server.crt", self.folder / "server.key")
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols(["http/1.1"])
        return context

    def admin(self) -> Credential:
        """The administrator's certificate and key."""
        return Credential((self.folder / "admin.crt").read_bytes(), (self.folder / "admin.key").read_bytes())

    def write_kubeconfig(self, server: str) -> Path:
        """Write `admin.conf` for the URL of the server and return its path."""
        path = self.folder / "admin.conf"
        text = kubeconfig(server, self.ca_pem, self.admin())
        if not path.exists() or path.read_text() != text:
            _write(path, text.encode(), 0o600)
        return path


def default_names() -> tuple[str, ...]:
    """What clients on this machine and pods in the cluster call the server."""
    host = socket.gethostname()
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    hosts = (host,) if host and host.isascii() and "_" not in host else ()
    return ("localhost", "127.0.0.1", "::1", *hosts, *service)


_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- name: insula
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: insula
  context:
    cluster: insula
    user: {user}
current-context: insula
"""


def kubeconfig(server: str, ca_pem: bytes, credential: Credential, *, user: str = "kubernetes-admin") -> str:
    """The text of a kubeconfig with everything inside."""

    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return _KUBECONFIG.format(
        server=_text(server),
        user=_text(user),
        ca=b64(ca_pem),
        certificate=b64(credential.certificate),
        key=b64(credential.key),
    )


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()  # a JSON string is a YAML string
