#!/usr/bin/env python3
"""Turn the published .proto files of Kubernetes into one compact table of field numbers, names and types.

    tools/protobuf_table.py -o src/insula/api/kube/protobuf_fields.json DIR...
    tools/protobuf_table.py -o FILE --onto FILE tools/protobuf_newer

Field numbers are facts of the published interface; the files themselves (Debian packages golang-k8s-api-dev,
golang-k8s-apimachinery-dev and golang-k8s-apiextensions-apiserver-dev, or a checkout of kubernetes/kubernetes) are not needed
afterwards. Directories are read in the given order and a message read later replaces an earlier one, so newer files come
last. With `--onto` a table that exists is where it starts: `tools/protobuf_newer` holds what no package has yet. The types.go
beside a .proto file says which scalars are pointers: only those are sent on purpose when zero.
A message that the files lack in one version and have in another of its group is taken from there where the fields are the
same, as graduations of an API keep the numbers.

The table: message name to rows [number, JSON name, type]. Types: string bytes bool int32 int64 double, or a message;
`*T` repeated, `%T` a map from string to T, `+T` a message whose fields stand in the owner's own object (embedded in Go).
Message names are short: `core.v1.Pod`, `meta.v1.ObjectMeta`. `?T` a scalar that may be absent, so that a zero counts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from insula.kinds import schemas

Row = list[int | str]
Table = dict[str, list[Row]]

_PACKAGE = re.compile(r"^package ([\w.]+);", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_MESSAGE = re.compile(r"\bmessage (\w+) \{([^{}]*)\}")
_FIELD = re.compile(
    r"(?:(optional|repeated|required)\s+([\w.]+)|map<string, ([\w.]+)>)\s+(\w+) = (\d+)\s*(\??);",
)
_POINTER_REMARK = "; // pointer"  # in tools/protobuf_newer, which has no types.go beside it
_SCALARS = {"string", "bytes", "bool", "int32", "int64", "double", "uint32", "uint64"}
_PREFIXES = (
    ("k8s.io.apimachinery.pkg.apis.", ""),
    ("k8s.io.apimachinery.pkg.api.", ""),
    ("k8s.io.apimachinery.pkg.util.", ""),
    ("k8s.io.apimachinery.pkg.", ""),
    ("k8s.io.apiextensions_apiserver.pkg.apis.", ""),
    ("k8s.io.kube_aggregator.pkg.apis.", ""),
    ("k8s.io.api.", ""),
)
_DEFINITIONS = (
    "io.k8s.api.",
    "io.k8s.apimachinery.pkg.apis.",
    "io.k8s.apiextensions-apiserver.pkg.apis.",
    "io.k8s.kube-aggregator.pkg.apis.",
)
# JSON names that Go gives by tag and that .proto cannot say
_RENAMED = {"apiextensions.v1.JSONSchemaProps": {"ref": "$ref", "schema": "$schema"}}


# versions whose messages have other numbers than their siblings of the same fields
_NOT_PROMOTED = {"scheduling.v1alpha3"}


def short(package: str) -> str:
    """`k8s.io.api.core.v1` as `core.v1`."""
    for prefix, instead in _PREFIXES:
        if package.startswith(prefix):
            return instead + package[len(prefix) :]
    return package


def messages(text: str) -> Iterator[tuple[str, list[Row]]]:
    """The messages of one file with their rows."""
    text = _COMMENT.sub("", text.replace(_POINTER_REMARK, "?;"))
    found = _PACKAGE.search(text)
    if found is None:
        return
    package = short(found.group(1))
    for name, body in _MESSAGE.findall(text):
        yield f"{package}.{name}", [_row(package, *each) for each in _FIELD.findall(body)]


def _row(package: str, label: str, type_: str, map_value: str, name: str, number: str, pointer: str) -> Row:
    mark = "%" if map_value else "*" if label == "repeated" else pointer
    return [int(number), name, mark + _typed(package, map_value or type_)]


def _typed(package: str, name: str) -> str:
    if name in _SCALARS:
        return name
    if name.startswith("."):
        owner, _, message = name[1:].rpartition(".")
    else:
        owner, _, message = name.rpartition(".")
        owner = owner if "." in owner else package
        return f"{short(owner)}.{message}" if "." in name else f"{package}.{name}"
    return f"{short(owner)}.{message}"


_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_POINTER = re.compile(r"^\s+\w+\s+\*[\w.]+\s+`.*protobuf:\"\w+,(\d+),", re.MULTILINE)


def pointers(text: str) -> dict[str, set[int]]:
    """Field numbers that are pointers in Go, by struct name."""
    return {name: {int(number) for number in _POINTER.findall(body)} for name, body in _STRUCT.findall(text)}


def mark_pointers(rows: list[Row], numbers: set[int]) -> None:
    """Mark scalars that Go holds by pointer."""
    for row in rows:
        if row[0] in numbers and row[2] in _SCALARS:
            row[2] = f"?{row[2]}"


def promote(table: Table) -> Iterator[str]:
    """Fill in messages of the schemas from another version of their group that has the same fields; tells which."""
    for name in schemas.names():
        message = next((name[len(prefix) :] for prefix in _DEFINITIONS if name.startswith(prefix)), "")
        if not message or message in table or message.count(".") != 2:
            continue
        group, version, base = message.split(".")
        wanted = set(schemas.get(name).get("properties") or ()) - {"apiVersion", "kind"}
        if f"{group}.{version}" in _NOT_PROMOTED:
            continue
        siblings = [each for each in table if each.startswith(f"{group}.") and each.endswith(f".{base}")]
        for other in sorted(siblings, reverse=True):
            if wanted != set(_names(table, other)):
                continue
            old, new = other.rpartition(".")[0], f"{group}.{version}"
            table[message] = [[number, field, _moved(str(type_), old, new)] for number, field, type_ in table[other]]
            yield f"{message} from {other}"
            break


def _moved(type_: str, old: str, new: str) -> str:
    return type_.replace(f"{old}.", f"{new}.")


def definition(message: str) -> Mapping[str, object] | None:
    """The OpenAPI definition of a message's JSON form, if it has one."""
    known = set(schemas.names())
    for prefix in _DEFINITIONS:
        if prefix + message in known:
            return schemas.get(prefix + message)
    return None


def name_as_json(table: Table) -> None:
    """Give rows the names that JSON uses and mark what Go embeds."""
    for message, rows in table.items():
        fields = (definition(message) or {}).get("properties")
        if not isinstance(fields, Mapping):
            continue
        for row in rows:
            name, type_ = str(row[1]), str(row[2])
            if name in fields:
                continue
            if renamed := _json_name(message, name, fields):
                row[1] = renamed
            elif type_ in table and any(str(inner[1]) in fields or str(inner[2])[:1] == "+" for inner in table[type_]):
                row[2] = "+" + type_


def _json_name(message: str, name: str, fields: Mapping[str, object]) -> str:
    """The name that a field has in JSON where it differs from the .proto's; empty where none fits."""
    dashed = re.sub(r"[A-Z]", lambda found: "-" + found[0].lower(), name)
    same = {each.lower(): each for each in fields}.get(name.lower(), "")
    candidates = (_RENAMED.get(message, {}).get(name, ""), same, dashed)
    return next((each for each in candidates if each in fields), "")


def missing(table: Table) -> Iterator[str]:
    """Fields that the schemas know and the table does not, for whoever keeps the table up to date."""
    for name in sorted(schemas.names()):
        for prefix in _DEFINITIONS:
            if not name.startswith(prefix):
                continue
            message = name[len(prefix) :]
            fields = set(schemas.get(name).get("properties") or ()) - {"apiVersion", "kind"}
            if message not in table:
                if fields:
                    yield f"{message}: all of it"
                continue
            have = set(_names(table, message))
            if lost := sorted(fields - have):
                yield f"{message}: {' '.join(lost)}"


def _names(table: Table, message: str) -> Iterator[str]:
    for _, name, type_ in table[message]:
        if str(type_).startswith("+"):
            yield from _names(table, str(type_)[1:])
        else:
            yield str(name)


def reachable(table: Table) -> None:
    """Drop what no definition of the schemas leads to: old versions, test types."""
    roots = [name[len(prefix) :] for name in schemas.names() for prefix in _DEFINITIONS if name.startswith(prefix)]
    keep: set[str] = set()
    while roots:
        name = roots.pop()
        if name in keep or name not in table:
            continue
        keep.add(name)
        roots += [str(row[2]).lstrip("*%+?") for row in table[name]]
    for name in set(table) - keep:
        del table[name]


def main() -> int:
    """Read, name, write; say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--onto", type=Path)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    table: Table = json.loads(options.onto.read_text()) if options.onto else {}
    for folder in options.folders:
        for path in sorted(folder.rglob("*.proto")):
            go = path.with_name("types.go")
            by_struct = pointers(go.read_text()) if go.exists() else {}
            for name, rows in messages(path.read_text()):
                mark_pointers(rows, by_struct.get(name.rpartition(".")[2], set()))
                table[name] = rows
    name_as_json(table)
    for line in promote(table):
        sys.stderr.write(f"promoted: {line}\n")
    reachable(table)
    lines = (f"{json.dumps(name)}:{json.dumps(rows, separators=(',', ':'))}" for name, rows in sorted(table.items()))
    options.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for line in missing(table):
        sys.stderr.write(f"not in the .proto files: {line}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
