"""Images as Docker clients see them. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from insula import clock
from insula.api.docker.versions import NEWEST, Version
from insula.images import manifests
from insula.images.contract import Image, Progress

_BAR = 50  # characters of a progress bar, as dockerd draws it for clients that cannot


def name_of(repository: str, tag: str) -> str:
    """`repo` and `tag` of a query as one reference; a digest may stand in the tag's place."""
    if not repository:
        return ""
    if not tag:
        return repository
    return f"{repository}@{tag}" if ":" in tag else f"{repository}:{tag}"


def has_tag(reference: str) -> bool:
    """Whether a reference names one image, not a whole repository."""
    return "@" in reference or ":" in reference.rpartition("/")[2]


def repository_of(reference: str) -> str:
    """A reference without its tag or digest."""
    name = reference.partition("@")[0]
    return name.rpartition(":")[0] if has_tag(name) else name


def foreign_warnings(image: Image, machine: str) -> list[str]:
    """What dockerd says of a container from an image that is not made for this machine, when nobody asked for its platform."""
    host, made_for = manifests.host_platform(machine), manifests.platform_of(image)
    if not made_for.architecture or manifests.platform_fits(
        made_for, manifests.Platform(os="linux", architecture=host.architecture)
    ):
        return []
    return [
        f"The requested image's platform ({made_for}) does not match the detected host platform ({host}) and no specific "
        "platform was requested"
    ]


def created_at(image: Image) -> int:
    """Seconds since the epoch; 0 for an image that does not say."""
    try:
        return int(clock.parse_rfc3339(image.created).timestamp())
    except ValueError:
        return 0


def summary_words(image: Image, version: Version, *, containers: int = -1, shared: int = -1) -> dict[str, Any]:
    """One row of `GET /images/json`. Since 1.51 all rows tell how many containers there are."""
    words: dict[str, Any] = {
        "Containers": containers,
        "Created": created_at(image),
        "Id": image.id,
        "Labels": image.config.labels or None,
        "ParentId": image.parent,
        "RepoDigests": list(image.digests),
        "RepoTags": list(image.names),
        "SharedSize": shared,
        "Size": image.size_bytes,
    }
    if version < (1, 44):
        words["VirtualSize"] = image.size_bytes
    if version < (1, 43) and not image.names:
        words["RepoTags"] = ["<none>:<none>"]
        words["RepoDigests"] = words["RepoDigests"] or ["<none>@<none>"]
    return words


def inspect_words(image: Image, version: Version = NEWEST) -> dict[str, Any]:
    """`GET /images/{name}/json`."""
    raw = image.config.raw
    history = raw.get("history") or [{}]
    words: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": list(image.digests),
        "Parent": image.parent,
        "Comment": str(raw.get("comment") or history[-1].get("comment") or ""),
        "DockerVersion": str(raw.get("docker_version") or ""),
        "Author": str(raw.get("author") or ""),
        "Config": config_words(image, version),
        "Architecture": image.architecture,
        **({"Variant": raw["variant"]} if raw.get("variant") else {}),
        "Os": image.os,
        "Size": image.size_bytes,
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "RootFS": {"Type": "layers", **({"Layers": list(image.layers)} if image.layers else {})},
        "Metadata": {"LastTagTime": image.tagged_at or _NEVER},
    }
    if image.created or version < (1, 44):
        words["Created"] = image.created or _NEVER
    if version < (1, 44):
        words["VirtualSize"] = image.size_bytes
    if version < (1, 45):
        words |= {"Container": "", "ContainerConfig": _NOT_OF_IMAGES | {"Cmd": None, "Env": None, "Labels": None}}
    return words


_NEVER = "0001-01-01T00:00:00Z"
# Docker answered these of an image, always empty, until they were left out in 1.50.
_NOT_OF_IMAGES: dict[str, Any] = {
    "Hostname": "",
    "Domainname": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Image": "",
}


def config_words(image: Image, version: Version = NEWEST) -> dict[str, Any]:
    """The image's Config with the fields that clients take for granted."""
    config = image.config
    inner = config.raw.get("config") or {}
    words: dict[str, Any] = {
        **(_NOT_OF_IMAGES if version < (1, 50) else {}),
        "User": config.user,
        "Env": list(config.env) or None,
        "Cmd": list(config.command) or None,
        "Volumes": {path: {} for path in config.volumes} or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": list(config.entrypoint) or None,
        "OnBuild": inner.get("OnBuild"),
        "Labels": config.labels or None,
    }
    if config.exposed_ports:
        words["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.stop_signal:
        words["StopSignal"] = config.stop_signal
    if config.healthcheck:
        words["Healthcheck"] = config.healthcheck
    if inner.get("Shell"):
        words["Shell"] = inner["Shell"]
    return words


def progress_words(step: Progress) -> dict[str, Any]:
    """One line of a progress stream."""
    words: dict[str, Any] = {"status": step.status}
    if step.id:
        words["id"] = step.id
    if step.current or step.total:
        words["progressDetail"] = {"current": step.current, **({"total": step.total} if step.total else {})}
        words["progress"] = bar(step.current, step.total)
    elif step.id:
        words["progressDetail"] = {}
    return words


def bar(current: int, total: int) -> str:
    """`[=====>     ]  1.2MB/3MB`."""
    if not total:
        return size_text(current)
    filled = min(_BAR, current * _BAR // total)
    drawn = "=" * filled + (">" if filled < _BAR else "")
    return f"[{drawn[:_BAR]:<{_BAR}}] {size_text(current):>7}/{size_text(total)}"


def size_text(count: int) -> str:
    """Bytes with a decimal unit and four digits at most."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.4g}{units[0]}"


def error_words(message: str, code: int = 0) -> dict[str, Any]:
    """How a stream that began well ends badly; `code` is that of a command."""
    return {"errorDetail": {**({"code": code} if code else {}), "message": message}, "error": message}


def removal_words(done: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The answer of `DELETE /images/{name}`."""
    return [{"Untagged" if what == "untagged" else "Deleted": id} for what, id in done]


def pattern_matches(pattern: str, name: str) -> bool:
    """The `reference` filter: a shell pattern that does not cross slashes; one without a tag fits every tag."""
    wanted, parts = pattern.split("/"), name.split("/")
    if len(wanted) != len(parts):
        return False
    if ":" not in wanted[-1] and "@" not in wanted[-1]:
        parts[-1] = parts[-1].partition("@")[0].partition(":")[0]
    return all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))
