"""The OpenAPI definitions of the built-in kinds, from the installed package `kubernetes-validate`.

The file is read once and kept as bytes; a definition is decoded when somebody asks for it, without its prose, so that a
process pays only for the kinds that it meets. A schema is a plain mapping in OpenAPI v3 words with single types (the
package's `["string", "null"]` becomes `string`) and `$ref` holding a bare definition name. Go's own JSON types, which OpenAPI
cannot say, become: Quantity `{type: string, format: quantity}`, IntOrString `{x-kubernetes-int-or-string: true}`, free-form JSON
`{x-kubernetes-preserve-unknown-fields: true}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from insula.errors import NotFound, Unavailable
from insula.kinds.kind import Kind
from insula.model.schema import Schema as Node

Schema = Mapping[str, Any]

VERSION = "v1.37.0"
_REF = "#/$defs/"
_FREE: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_FREE_OBJECT: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_SPECIAL: dict[str, Schema] = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string", "format": "quantity"},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"x-kubernetes-int-or-string": True},
    "io.k8s.apimachinery.pkg.runtime.RawExtension": _FREE_OBJECT,
    _META + "FieldsV1": _FREE_OBJECT,
    _META + "Patch": _FREE_OBJECT,
    _META + "Time": {"type": "string", "format": "date-time"},
    _META + "MicroTime": {"type": "string", "format": "date-time"},
    _EXTENSIONS + "JSON": _FREE,
    _EXTENSIONS + "JSONSchemaPropsOrArray": _FREE,
    _EXTENSIONS + "JSONSchemaPropsOrBool": _FREE,
    _EXTENSIONS + "JSONSchemaPropsOrStringArray": _FREE,
}


class _Document(msgspec.Struct, frozen=True):
    defs: dict[str, msgspec.Raw] = msgspec.field(name="$defs")


@cache
def _raw() -> dict[str, msgspec.Raw]:
    found = find_spec("kubernetes_validate")  # found, not imported: its code would cost 20 MiB and 0.2 s
    if found is None or not found.submodule_search_locations:
        raise Unavailable("the package kubernetes-validate is not installed: it carries the schemas of all kinds")
    folder = Path(found.submodule_search_locations[0])
    data = (folder / "kubernetes-json-schema" / f"{VERSION}-local" / "_definitions.json").read_bytes()
    return msgspec.json.decode(data, type=_Document).defs


def names() -> Iterable[str]:
    """Every definition's name."""
    return _raw().keys()


def text(name: str) -> bytes:
    """A definition as the package's JSON text. Raises NotFound."""
    try:
        return bytes(_raw()[name])
    except KeyError:
        raise NotFound(f"no schema definition {name}") from None


def raw(name: str) -> dict[str, Any]:
    """A definition with its prose, as the package has it; not kept. Raises NotFound."""
    found: dict[str, Any] = msgspec.json.decode(text(name))
    return found


_known: dict[str, Schema] = {}


def get(name: str) -> Schema:
    """A definition without prose, kept for the life of the process. Raises NotFound."""
    known = _known.get(name)
    if known is None:
        known = _known[name] = _SPECIAL.get(name) or _clean(raw(name))
    return known


def _clean(schema: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for word, value in schema.items():
        match word:
            case "description" | "oneOf":
                continue
            case "type" if isinstance(value, list):
                out[word] = value[0]
            case "$ref":
                out[word] = value.removeprefix(_REF)
            case "properties":
                out[word] = {name: _clean(each) for name, each in value.items()}
            case "items" | "additionalProperties" if isinstance(value, dict):
                out[word] = _clean(value)
            case _:
                out[word] = value
    return out


_merged: dict[int, tuple[Schema, Schema]] = {}


def resolve(schema: Schema) -> Schema:
    """Follow `$ref`; what stands beside it (patch strategy, list type) is laid over the definition."""
    name = schema.get("$ref")
    if name is None:
        return schema
    target = get(name)
    if len(schema) == 1:
        return target
    kept = _merged.get(id(schema))
    if kept is None or kept[0] is not schema:
        beside = {word: value for word, value in schema.items() if word != "$ref"}
        kept = _merged[id(schema)] = (schema, {**target, **beside})
    return kept[1]


def of(kind: Kind) -> Schema | None:
    """The schema of a kind's objects; None for a kind without one (any fields go)."""
    if kind.schema is None:
        return None
    return get(kind.schema) if isinstance(kind.schema, str) else kind.schema


def field(schema: Schema | None, name: str) -> Schema | None:
    """The schema of one member of an object or map; None where nothing is known of it."""
    if schema is None:
        return None
    found = (schema.get("properties") or {}).get(name)
    if found is None:
        more = schema.get("additionalProperties")
        found = more if isinstance(more, Mapping) else None
    return None if found is None else resolve(found)


def items(schema: Schema | None) -> Schema | None:
    """The schema of a list's elements; None where nothing is known of them."""
    found = None if schema is None else schema.get("items")
    return resolve(found) if isinstance(found, Mapping) else None


_nodes: dict[str, Node] = {}


def node(kind: Kind) -> Node | None:
    """The schema as patches and server-side apply walk it; kept for built-in kinds. None for a kind without one."""
    if not isinstance(kind.schema, str):
        return None if kind.schema is None else Node(kind.schema)
    known = _nodes.get(kind.schema)
    if known is None:
        known = _nodes[kind.schema] = Node(get(kind.schema), get)
    return known
