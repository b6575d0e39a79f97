"""CustomResourceDefinition, and the kinds that come of it.

`kinds_of(crd)` makes one Kind per served version; who watches the definitions puts them into the registry (the Kubernetes door
does). Conversion between versions changes only apiVersion (strategy None); webhooks are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules, structural
from insula.kinds.builtin import row, rows
from insula.kinds.kind import Column, Kind
from insula.kinds.printing import column, get
from insula.model.resource import Ref, Resource

_VERSION = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_FREE: Mapping[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_PATH = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\['([^']+)'\]|\[\?\(@\.([\w-]+)==[\"']([^\"']*)[\"']\)\]")
_BUILTIN_GROUPS = frozenset(kind.ref.group for kind in rows().values())


def _default(obj: Resource) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    names = spec.get("names")
    if isinstance(names, dict) and names.get("kind"):
        names.setdefault("singular", str(names["kind"]).lower())
        names.setdefault("listKind", f"{names['kind']}List")
    if not isinstance(spec.get("conversion"), dict):
        spec["conversion"] = {"strategy": "None"}


CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def _prepare(new: Resource, old: Resource | None) -> None:
    """The status that the API server itself keeps: names are accepted and the type is established at once. The finalizer
    keeps a definition until its objects are gone."""
    if old is None:
        new["metadata"]["finalizers"] = list(dict.fromkeys([*(new["metadata"].get("finalizers") or ()), CLEANUP]))
    spec, status = new.get("spec") or {}, dict((old or {}).get("status") or {})
    stored = [each["name"] for each in spec.get("versions") or () if each.get("storage")]
    status["storedVersions"] = list(dict.fromkeys([*(status.get("storedVersions") or ()), *stored]))
    status["acceptedNames"] = spec.get("names") or {}
    created = new["metadata"].get("creationTimestamp", "")
    status["conditions"] = [
        _condition("NamesAccepted", "NoConflicts", "no conflicts found", created),
        _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", created),
    ]
    new["status"] = status


def _condition(type: str, reason: str, message: str, moment: str) -> Resource:
    return {"type": type, "status": "True", "lastTransitionTime": moment, "reason": reason, "message": message}


def _validate(new: Resource, old: Resource | None) -> list[Cause]:
    spec, name = new["spec"], new["metadata"].get("name", "")
    names, group = spec.get("names") or {}, spec.get("group", "")
    found = rules.dns_subdomain("spec.group", group)
    if "." not in group:
        found.append(rules.invalid("spec.group", group, "should be a domain with at least one dot"))
    if group in _BUILTIN_GROUPS:
        found.append(rules.invalid("spec.group", group, "this group is built in"))
    wanted = f"{names.get('plural')}.{group}"
    if name != wanted:
        found.append(rules.invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    found += rules.one_of("spec.scope", spec.get("scope"), ("Cluster", "Namespaced"))
    for field in ("plural", "singular"):
        found += rules.dns_label(f"spec.names.{field}", names.get(field))
    if get(spec, "conversion", "strategy") not in (None, "None"):
        found.append(rules.unsupported("spec.conversion.strategy", spec["conversion"]["strategy"], ("None",)))
    found += _versions(spec)
    if old:
        found += rules.immutable("spec.group", group, old["spec"].get("group"))
        found += rules.immutable("spec.names.plural", names.get("plural"), get(old, "spec", "names", "plural"))
        found += rules.immutable("spec.names.kind", names.get("kind"), get(old, "spec", "names", "kind"))
        found += rules.immutable("spec.scope", spec.get("scope"), old["spec"].get("scope"))
    return found


def _versions(spec: Mapping[str, Any]) -> list[Cause]:
    versions = spec.get("versions") or ()
    found: list[Cause] = []
    seen: set[str] = set()
    for index, version in enumerate(versions):
        where, name = f"spec.versions[{index}]", version.get("name") or ""
        if not _VERSION.match(name):
            found.append(rules.invalid(f"{where}.name", name, "must be a DNS-1035 label"))
        if name in seen:
            found.append(rules.duplicate(f"{where}.name", name))
        seen.add(name)
        schema = get(version, "schema", "openAPIV3Schema")
        if schema is None:
            found.append(rules.required(f"{where}.schema.openAPIV3Schema", "schemas are required"))
        else:
            if schema.get("type") != "object":
                found.append(
                    rules.invalid(
                        f"{where}.schema.openAPIV3Schema.type", schema.get("type", ""), "must be object at the root"
                    )
                )
            found += _structural(schema, f"{where}.schema.openAPIV3Schema", 0)[:10]
    if sum(bool(version.get("storage")) for version in versions) != 1:
        found.append(
            rules.invalid(
                "spec.versions",
                [each.get("name") for each in versions],
                "must have exactly one version marked as storage version",
            )
        )
    return found


_TYPES = ("array", "boolean", "integer", "number", "object", "string")


def _structural(schema: Any, path: str, depth: int) -> list[Cause]:
    """What keeps a schema from being structural."""
    if not isinstance(schema, Mapping) or depth > 64:
        return [rules.invalid(path, depth, "must be an object, and not nested too deeply")]
    found: list[Cause] = []
    type_ = schema.get("type")
    loose = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if type_ is None and not loose and depth:
        found.append(rules.required(f"{path}.type", "must not be empty for specified object fields"))
    elif type_ is not None and type_ not in _TYPES:
        found.append(rules.unsupported(f"{path}.type", type_, _TYPES))
    if "$ref" in schema:
        found.append(rules.forbidden(f"{path}.$ref", "$ref is not supported"))
    if schema.get("properties") and isinstance(schema.get("additionalProperties"), Mapping):
        found.append(
            rules.forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
        )
    for name, each in (schema.get("properties") or {}).items():
        found += _structural(each, f"{path}.properties[{name}]", depth + 1)
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), Mapping):
            found += _structural(schema[word], f"{path}.{word}", depth + 1)
    if type_ == "array" and "items" not in schema:
        found.append(rules.required(f"{path}.items", "must be specified"))
    return found


# --- the kinds ----------------------------------------------------------------------------------------------------------


def kinds_of(crd: Resource) -> list[Kind]:
    """One kind per served version of a definition."""
    spec, names = crd["spec"], crd["spec"]["names"]
    stored = next((each["name"] for each in spec["versions"] if each.get("storage")), spec["versions"][0]["name"])
    ref = Ref(spec["group"], stored, names["plural"])
    return [_kind(spec, names, version, ref) for version in spec["versions"] if version.get("served", True)]


def _kind(spec: Mapping[str, Any], names: Mapping[str, Any], version: Mapping[str, Any], stored: Ref) -> Kind:
    schema = get(version, "schema", "openAPIV3Schema", default=_FREE)
    subs = version.get("subresources") or {}
    columns = [each for each in version.get("additionalPrinterColumns") or () if each.get("name")]
    scale = subs.get("scale") or {}
    paths = {"spec": "specReplicasPath", "status": "statusReplicasPath", "selector": "labelSelectorPath"}
    return Kind(
        ref=Ref(spec["group"], version["name"], names["plural"]),
        kind=names["kind"],
        singular=names.get("singular") or names["kind"].lower(),
        namespaced=spec.get("scope") == "Namespaced",
        list_kind=names.get("listKind") or f"{names['kind']}List",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        schema=schema,
        subresources=tuple(name for name in ("scale", "status") if subs.get(name) is not None),
        status_fields=("status",) if subs.get("status") is not None else (),
        storage_version=stored.version,
        default=_defaulter(schema),
        fields=_fields([each["jsonPath"] for each in version.get("selectableFields") or ()]),
        columns=tuple(_column(each) for each in columns),
        row=_rower([each.get("jsonPath", "") for each in columns]) if columns else None,
        scale={word: scale[field] for word, field in paths.items() if scale.get(field)},
    )


def _defaulter(schema: Mapping[str, Any]) -> Callable[[Resource], None]:
    def default(obj: Resource) -> None:
        structural.default(schema, obj)

    return default


def _column(given: Mapping[str, Any]) -> Column:
    return Column(
        name=given["name"],
        type=given.get("type", "string"),
        format=given.get("format", ""),
        description=given.get("description", ""),
        priority=given.get("priority", 0),
    )


def _rower(paths: Sequence[str]) -> Callable[[Resource], Sequence[Any]]:
    def cells(obj: Resource) -> Sequence[Any]:
        return [_cell(look(obj, path)) for path in paths]

    return cells


def _cell(found: list[Any]) -> Any:
    if not found:
        return ""
    one = found[0]
    return one if isinstance(one, str | int | float | bool) else str(one) if one is not None else ""


def _fields(paths: Sequence[str]) -> Callable[[Resource], dict[str, str]]:
    def fields(obj: Resource) -> dict[str, str]:
        out = {}
        for path in paths:
            found = look(obj, path)
            value = found[0] if found else ""
            out[path.lstrip(".")] = ("true" if value else "false") if isinstance(value, bool) else str(value)
        return out

    return fields


def look(obj: Any, path: str) -> list[Any]:
    """What a simple JSON path finds: fields, indices, `[?(@.type=="Ready")]`."""
    at, found, path = 0, [obj], path.strip("{}")
    while at < len(path) and found:
        step = _PATH.match(path, at)
        if step is None:
            return []
        name, index, quoted, key, value = step.groups()
        found = [inner for each in found for inner in _step(each, name or quoted, index, key, value)]
        at = step.end()
    return [each for each in found if each is not None]


def _step(obj: Any, name: str | None, index: str | None, key: str | None, value: str | None) -> list[Any]:
    if name is not None:
        return [obj[name]] if isinstance(obj, Mapping) and name in obj else []
    if not isinstance(obj, list):
        return []
    if index is not None:
        return obj[int(index) : int(index) + 1]
    return [each for each in obj if isinstance(each, Mapping) and str(each.get(key)) == value]


KIND = replace(
    row("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    default=_default,
    prepare=_prepare,
    validate=_validate,
    columns=(column("Created At"),),
    row=lambda obj: (obj["metadata"].get("creationTimestamp", ""),),
)
