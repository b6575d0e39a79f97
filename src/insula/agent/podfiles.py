"""What the files of a configMap, secret, downwardAPI or projected volume are. Pure: path → bytes and mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from msgspec import Struct

from insula.agent.podenv import PodFacts, References, field_value, resource_value
from insula.agent.podview import all_containers
from insula.errors import Invalid, NotFound
from insula.model.resource import Resource

DEFAULT_MODE = 0o644


class File(Struct, frozen=True):
    """One file's content and permission bits."""

    data: bytes
    mode: int = DEFAULT_MODE


Files = dict[str, File]


def files_of(
    volume: Resource, pod: Resource, references: References, tokens: Mapping[str, str], facts: PodFacts
) -> Files:
    """The files of one volume. `tokens` are service account tokens by `VOLUME/PATH`. Raises NotFound for a missing object
    that is not optional, Invalid for a path that leaves the volume."""
    if source := volume.get("configMap"):
        return _from_map(source, references, source.get("defaultMode"))
    if source := volume.get("secret"):
        renamed = {**source, "name": source.get("secretName", "")}
        return _from_secret(renamed, references, source.get("defaultMode"))
    if source := volume.get("downwardAPI"):
        return _from_fields(source.get("items") or (), pod, facts, source.get("defaultMode"))
    if source := volume.get("projected"):
        return _projected(volume["name"], source, pod, references, tokens, facts)
    return {}


def _projected(
    name: str, source: Resource, pod: Resource, references: References, tokens: Mapping[str, str], facts: PodFacts
) -> Files:
    files: Files = {}
    mode = source.get("defaultMode")
    for part in source.get("sources") or ():
        if inner := part.get("configMap"):
            files.update(_from_map(inner, references, mode))
        elif inner := part.get("secret"):
            files.update(_from_secret(inner, references, mode))
        elif inner := part.get("downwardAPI"):
            files.update(_from_fields(inner.get("items") or (), pod, facts, mode))
        elif inner := part.get("serviceAccountToken"):
            files[_inside(inner["path"])] = File(tokens[f"{name}/{inner['path']}"].encode(), mode or 0o600)
        else:
            raise Invalid(f"volume {name}: projected source {sorted(part)} is not supported")
    return files


def _from_map(source: Resource, references: References, mode: int | None) -> Files:
    found = references.config_maps.get(source["name"])
    if found is None:
        return _absent("configmap", source)
    return _select({k: v.encode(errors="surrogateescape") for k, v in found.items()}, source, mode)


def _from_secret(source: Resource, references: References, mode: int | None) -> Files:
    found = references.secrets.get(source["name"])
    return _absent("secret", source) if found is None else _select(found, source, mode)


def _absent(kind: str, source: Resource) -> Files:
    if source.get("optional"):
        return {}
    raise NotFound(f'{kind} "{source["name"]}" not found', kind=kind, name=source["name"])


def _select(data: Mapping[str, bytes], source: Resource, mode: int | None) -> Files:
    items = source.get("items")
    default = DEFAULT_MODE if mode is None else mode
    if items is None:
        return {_inside(key): File(value, default) for key, value in data.items()}
    files: Files = {}
    for item in items:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise Invalid(f"references non-existent config key: {item['key']}")
        files[_inside(item["path"])] = File(data[item["key"]], item.get("mode", default))
    return files


def _from_fields(items: Iterable[Resource], pod: Resource, facts: PodFacts, mode: int | None) -> Files:
    files: Files = {}
    for item in items:
        if reference := item.get("fieldRef"):
            text = field_value(reference["fieldPath"], pod, facts)
        else:
            text = resource_value(item["resourceFieldRef"], {}, pod, facts)
        files[_inside(item["path"])] = File(text.encode(), item.get("mode", DEFAULT_MODE if mode is None else mode))
    return files


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or parts[0].startswith(".."):
        raise Invalid(f"path {path!r} must be relative and stay inside the volume", field="path")
    return str(PurePosixPath(path))


def config_names(pod: Resource) -> set[tuple[str, str]]:
    """(plural, name) of every ConfigMap and Secret that the pod's volumes and containers refer to."""
    names: set[tuple[str, str]] = set()
    for volume in pod["spec"].get("volumes") or ():
        sources = [volume, *((volume.get("projected") or {}).get("sources") or ())]
        for source in sources:
            if found := source.get("configMap"):
                names.add(("configmaps", found["name"]))
            if found := source.get("secret"):
                names.add(("secrets", found.get("secretName") or found.get("name", "")))
    for container in all_containers(pod):
        for item in container.get("envFrom") or ():
            names |= _referred(item, "configMapRef", "secretRef")
        for item in container.get("env") or ():
            names |= _referred(item.get("valueFrom") or {}, "configMapKeyRef", "secretKeyRef")
    return names


def _referred(item: Resource, config_map: str, secret: str) -> set[tuple[str, str]]:
    pairs = (("configmaps", item.get(config_map)), ("secrets", item.get(secret)))
    return {(plural, found["name"]) for plural, found in pairs if found}
