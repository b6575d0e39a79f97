"""`RUN --mount=…`: the words of one mount. Pure; see the Dockerfile reference, "RUN --mount"."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Mapping
from typing import Literal, cast

import msgspec
from msgspec import Struct

from insula.errors import Invalid, Unsupported
from insula.images.dockerfile.words import expand

Kind = Literal["bind", "cache", "tmpfs", "secret", "ssh"]
Sharing = Literal["shared", "private", "locked"]
_KINDS = ("bind", "cache", "tmpfs", "secret", "ssh")
_ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite", "write": "readwrite",
}  # fmt: skip
_SIZE = re.compile(r"([0-9]+)([kmgt]?)b?", re.IGNORECASE)


class Mount(Struct, frozen=True, kw_only=True):
    """One mount as asked."""

    kind: Kind = "bind"
    source_stage: str = ""
    source: str = ""
    target: str = ""
    readonly: bool | None = None
    required: bool = False
    id: str = ""
    env: str = ""
    sharing: Sharing = "shared"
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None


def parse_mount(text: str, variables: Mapping[str, str], *, working_dir: str = "/") -> Mount:
    """Read one. A relative target is below `working_dir`. Raises Invalid, Unsupported."""
    found: dict[str, object] = {}
    rows = list(csv.reader([text])) if text else [[]]
    for word in rows[0]:
        name, equals, value = word.strip().partition("=")
        name = _ALIASES.get(name.lower(), name.lower())
        value = expand(value, variables)
        if name in ("readonly", "readwrite", "required"):
            _set_flag(found, name, value if equals else "true", text)
        elif not equals:
            raise Invalid(f"invalid field '{word}' must be a key=value pair", field="mount")
        else:
            _set_value(found, name, value, text)
    mount = Mount(**found)  # type: ignore[arg-type]
    return _placed(mount, working_dir)


def _set_flag(found: dict[str, object], name: str, value: str, text: str) -> None:
    if value.lower() not in ("true", "false", "1", "0"):
        raise Invalid(f"invalid value for {name}: {value}", field="mount")
    truth = value.lower() in ("true", "1")
    if name == "required":
        found["required"] = truth
    else:
        found["readonly"] = truth if name == "readonly" else not truth


def _set_value(found: dict[str, object], name: str, value: str, text: str) -> None:
    match name:
        case "type":
            if value.lower() not in _KINDS:
                raise Invalid(f'unsupported mount type "{value}"', field="mount")
            found["kind"] = cast("Kind", value.lower())
        case "from":
            found["source_stage"] = value
        case "source" | "target" | "id" | "env":
            if "\0" in value:
                raise Invalid("a mount holds a NUL byte", field="mount")
            found[name] = value
        case "sharing":
            if value.lower() not in ("shared", "private", "locked"):
                raise Invalid(f'unsupported sharing value "{value}"', field="mount")
            found["sharing"] = value.lower()
        case "mode":
            found["mode"] = _number(name, value, 8)
        case "uid" | "gid":
            found[name] = _number(name, value, 10)
        case "size":
            match = _SIZE.fullmatch(value)
            if match is None:
                raise Invalid(f"invalid value for size: {value}", field="mount")
            found["size_bytes"] = int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ")
        case _:
            raise Invalid(f"unexpected key '{name}' in '{text}'", field="mount")


def _number(name: str, value: str, base: int) -> int:
    try:
        number = int(value, base)
    except ValueError:
        raise Invalid(f"invalid value {value} for {name}", field="mount") from None
    if not 0 <= number < 1 << 31:
        raise Invalid(f"invalid value {value} for {name}", field="mount")
    return number


def _placed(mount: Mount, working_dir: str) -> Mount:
    """Defaults that depend on the kind."""
    target = mount.target
    if mount.kind == "secret":
        id = mount.id or posixpath.basename(mount.target or mount.source)
        if not id:
            raise Invalid("invalid secret mount. one of source, target required", field="mount")
        target = "" if mount.env and not target else target or f"/run/secrets/{posixpath.basename(id)}"
        mount = _with(mount, id=id)
    elif mount.kind == "ssh":
        mount, target = _with(mount, id=mount.id or "default"), target or "/run/buildkit/ssh_agent.0"
    elif not target:
        raise Invalid("target is required", field="mount")
    elif mount.kind == "cache":
        if mount.source_stage == "" and mount.source:
            mount = _with(mount, source="")
        mount = _with(mount, id=mount.id or posixpath.normpath(posixpath.join(working_dir or "/", target)))
    if target:
        target = posixpath.normpath(posixpath.join("/", working_dir or "/", target))
        if target in ("/", "//"):
            raise Invalid("invalid mount target /", field="mount")
    if mount.kind == "tmpfs" and mount.readonly:
        raise Unsupported("a tmpfs of a RUN step cannot be read-only: it would stay empty")
    return _with(mount, target=target)


def _with(mount: Mount, **changes: object) -> Mount:

    return msgspec.structs.replace(mount, **changes)
