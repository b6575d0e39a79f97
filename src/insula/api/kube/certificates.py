"""Certificates made and checked: the part of `pki` that needs `cryptography`, whose import costs a tenth of a start, so that
`pki` brings it in only when something has to be made, checked or signed. Pure: nothing here touches a file.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from insula.clock import now

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=60)
_CLOCK_SKEW = timedelta(minutes=5)
_USAGE = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}

Usage = Literal["client", "server"]
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    """A fresh key on the curve that all of ours use."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """A private key as text."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes, where: object) -> Key:
    """Raises ValueError naming `where` when it holds another sort of key."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{where} holds no elliptic curve key")
    return key


def read_certificate(pem: bytes) -> x509.Certificate:
    """Raises ValueError for what is no certificate."""
    return x509.load_pem_x509_certificate(pem)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def authority(key: Key) -> x509.Certificate:
    """A new authority that signs itself."""
    name, start = _name(f"insula-ca-{os.urandom(4).hex()}", ()), now() - _CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def leaf(
    ca: x509.Certificate,
    ca_key: Key,
    key: Key,
    user: str,
    groups: Iterable[str],
    *,
    usage: Usage,
    names: Iterable[str],
    life: timedelta,
) -> x509.Certificate:
    """A certificate of an authority for a client or a server."""
    names, start = tuple(names), now() - _CLOCK_SKEW
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(user, groups))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(min(start + life, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[usage]]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(_alt_names(names), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def good_until(pem: bytes, key: bytes, ca: x509.Certificate, names: tuple[str, ...]) -> datetime | None:
    """When a certificate has to be made anew; None at once: it is not ours, not of this key, near its end or without one of
    the names."""
    try:
        certificate = read_certificate(pem)
        certificate.verify_directly_issued_by(ca)
        if certificate.public_key() != read_key(key, "the file").public_key():
            return None
    except Exception:  # any flaw of the file is a reason to make it anew
        return None
    renew = certificate.not_valid_after_utc - RENEW_BEFORE
    if renew < now() or not set(_alt_names(names)) <= _names_in(certificate):
        return None
    return renew


def _names_in(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


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


def _key_usage(*, ca: bool) -> x509.KeyUsage:
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
