"""What a user types for an image, parsed and normalized as Docker does.

The grammar is that of the OCI distribution specification as the `distribution/reference` package applies it:
`[domain[:port]/]path[:tag][@digest]`, where a missing domain is `docker.io` and a single-part path on it gets `library/`.
The *familiar* form leaves those out again.
"""

from __future__ import annotations

import re

from msgspec import Struct

from insula.errors import Invalid

DEFAULT_DOMAIN = "docker.io"
_OFFICIAL = "library/"
_MAX_NAME = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"

_domain = re.compile(_DOMAIN)
_path = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_tag = re.compile(_TAG)
_digest = re.compile(_DIGEST)
_hex64 = re.compile(r"[0-9a-f]{64}")
_id_prefix = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


class Reference(Struct, frozen=True, kw_only=True):
    """A parsed reference. `path` is complete (`library/busybox`); `tag` and `digest` are empty when not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Without tag and digest, familiar: `busybox`, `host:5000/a/b`."""
        if self.domain != DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        short = self.path.removeprefix(_OFFICIAL)
        return self.path if "/" in short else short

    @property
    def full_name(self) -> str:
        """Without tag and digest, complete: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str:
        """Familiar, with the tag, `latest` when none was given: what the store keeps as a name."""
        return f"{self.name}:{self.tag or 'latest'}"

    @property
    def familiar(self) -> str:
        """As messages show it: `latest` is added only where there is neither tag nor digest."""
        if not self.digest:
            return self.tagged
        return f"{self.name}{':' + self.tag if self.tag else ''}@{self.digest}"


def parse(text: str) -> Reference:
    """Read a reference. Raises Invalid with Docker's sentences."""
    rest, at, digest = text.partition("@")
    if at and not _digest.fullmatch(digest):
        raise _invalid()
    domain, remainder = _split_domain(rest)
    path, tag = remainder, ""
    if ":" in remainder:
        path, _, tag = remainder.rpartition(":")
        if not _tag.fullmatch(tag):
            raise _invalid()
    if not _path.fullmatch(path):
        if path != path.lower() and _path.fullmatch(path.lower()):
            raise Invalid(f"invalid reference format: repository name ({path}) must be lowercase")
        raise _invalid()
    if not _domain.fullmatch(domain):
        raise _invalid()
    if _hex64.fullmatch(rest):
        raise Invalid(f"invalid repository name ({rest}), cannot specify 64-byte hexadecimal strings")
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise Invalid(f"invalid reference format: repository name must not be more than {_MAX_NAME} characters")
    return Reference(domain=domain, path=path, tag=tag, digest=digest)


def parse_name(text: str) -> Reference:
    """A reference to give to an image: no digest. Raises Invalid."""
    reference = parse(text)
    if reference.digest:
        raise Invalid("refusing to create a tag with a digest reference")
    return reference


def id_prefix(text: str) -> str:
    """The hexadecimal digits, if the text may be an image id or the beginning of one, else empty."""
    found = _id_prefix.fullmatch(text)
    return found[1] if found else ""


def is_digest(text: object) -> bool:
    """Whether this is `sha256:` and 64 hexadecimal digits."""
    return isinstance(text, str) and _digest.fullmatch(text) is not None


def _split_domain(text: str) -> tuple[str, str]:
    """The first part is a domain if it looks like one: a dot, a colon, `localhost`, or a capital letter."""
    first, slash, rest = text.partition("/")
    is_domain = slash and (any(mark in first for mark in ".:[") or first == "localhost" or first != first.lower())
    domain, remainder = (first, rest) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder


def _invalid() -> Invalid:
    return Invalid("invalid reference format")
