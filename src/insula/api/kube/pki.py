"""Certificates and keys of the Kubernetes door: our own authority, the server's and the administrator's certificate.

Everything lives in one folder, is made once and renewed when it nears its end:

    ca.crt ca.key              the authority that signs client and server certificates
    server.crt server.key      what the API server shows; names and addresses in it follow `names`
    admin.crt admin.key        user `kubernetes-admin` of the group `system:masters`
    sa.key                     signs service account tokens
    admin.conf                 a kubeconfig with the administrator's certificate

All functions that touch files block for some milliseconds: call them through `tasks.in_thread`.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from insula.clock import now

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=60)
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
_CLOCK_SKEW = timedelta(minutes=5)

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Credential:
    """A certificate with its key, both PEM."""

    certificate: bytes
    key: bytes


def _write(path: Path, data: bytes, mode: int) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.chmod(mode)
    part.replace(path)


def _pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> Key:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no elliptic curve key")
    return key


def _name(user: str, groups: Iterable[str]) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _alt_names(names: Iterable[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


class Pki:
    """The folder of credentials. Made with what is missing or near its end on opening."""

    def __init__(self, folder: Path, names: Iterable[str] = ()) -> None:
        """`names`: further host names and addresses of the server, such as the service address."""
        self.folder = folder
        self._names = tuple(dict.fromkeys((*default_names(), *names)))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ca_key, self._ca = self._authority()
        self.ca_pem = self._ca.public_bytes(serialization.Encoding.PEM)
        self._leaf("server", "kube-apiserver", (), SERVER, self._names)
        self._leaf("admin", "kubernetes-admin", ("system:masters",), CLIENT)
        self.signing_key = self._signing_key()

    def _authority(self) -> tuple[Key, x509.Certificate]:
        key_path, path = self.folder / "ca.key", self.folder / "ca.crt"
        if key_path.exists() and path.exists():
            return _load_key(key_path), x509.load_pem_x509_certificate(path.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"insula-ca-{os.urandom(4).hex()}", ())
        start = now() - _CLOCK_SKEW
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(key_path, _pem(key), 0o600)
        _write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return key, certificate

    def issue(
        self,
        user: str,
        groups: Iterable[str] = (),
        *,
        usage: x509.ObjectIdentifier = CLIENT,
        names: Iterable[str] = (),
        life: timedelta = LEAF_LIFE,
    ) -> Credential:
        """A new certificate of our authority, with its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = tuple(names)
        start = now() - _CLOCK_SKEW
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(user, groups))
            .issuer_name(self._ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(min(start + life, self._ca.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(_alt_names(names), critical=False)
        certificate = builder.sign(self._ca_key, hashes.SHA256())
        return Credential(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))

    def _leaf(
        self, file: str, user: str, groups: tuple[str, ...], usage: x509.ObjectIdentifier, names: tuple[str, ...] = ()
    ) -> None:
        path, key_path = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        if path.exists() and key_path.exists() and self._good(path.read_bytes(), names):
            return
        made = self.issue(user, groups, usage=usage, names=names)
        _write(key_path, made.key, 0o600)
        _write(path, made.certificate, 0o644)

    def _good(self, pem: bytes, names: tuple[str, ...]) -> bool:
        """Whether a certificate is ours, far from its end and holds all the names."""
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            certificate.verify_directly_issued_by(self._ca)
        except Exception:  # any flaw of the file is a reason to make it anew
            return False
        if certificate.not_valid_after_utc - now() < RENEW_BEFORE:
            return False
        if not names:
            return True
        try:
            held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        return set(_alt_names(names)) <= set(held)

    def _signing_key(self) -> Key:
        path = self.folder / "sa.key"
        if not path.exists():
            _write(path, _pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
        return _load_key(path)

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


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def default_names() -> tuple[str, ...]:
    """What clients on this machine and pods in the cluster call the server."""
    host = socket.gethostname()
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    hosts = (host,) if host and host.isascii() and "_" not in host else ()
    return ("localhost", "127.0.0.1", "::1", *hosts, *service)


def kubeconfig(server: str, ca_pem: bytes, credential: Credential, *, user: str = "kubernetes-admin") -> str:
    """The text of a kubeconfig with everything inside."""

    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "insula", "cluster": {"server": server, "certificate-authority-data": b64(ca_pem)}}],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": b64(credential.certificate),
                    "client-key-data": b64(credential.key),
                },
            }
        ],
        "contexts": [{"name": "insula", "context": {"cluster": "insula", "user": user}}],
        "current-context": "insula",
    }
    return yaml.safe_dump(config, sort_keys=False)
