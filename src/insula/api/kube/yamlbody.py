"""YAML bodies: read as Go's libraries read them, bounded against documents that unfold or nest without end."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from insula.errors import Invalid

DEPTH_LIMIT = 200
_UNFOLDED_LIMIT = 3 * 1024 * 1024  # as much as a body may hold
_SAFE_OPENERS = 5000
_EXCESSIVE = "error converting YAML to JSON: yaml: document contains excessive aliasing or nesting"

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):  # type: ignore[misc]
    """YAML 1.1 as Go's libraries read it: no dates, no base 60, exponents without a point."""

    yaml_implicit_resolvers = {
        letter: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in ("timestamp", "int", "float")]
        for letter, rules in _Safe.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"),
    list("-+0123456789."),
)


def decode(data: bytes) -> Any:
    """Plain values from one document. Raises Invalid."""
    try:
        _shallow(data)
        loader = _Loader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _bounded(node)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
        # through JSON: dates become strings, keys become strings, anything else is refused
        return msgspec.json.decode(msgspec.json.encode(value))
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        why = getattr(fault, "problem", None) or str(fault)
        raise Invalid(f"error converting YAML to JSON: yaml:{where} {why}") from None
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as fault:
        raise Invalid(f"error converting YAML to JSON: {fault}") from None


def _shallow(data: bytes) -> None:
    """Refuse nesting before a tree is made: the composer in C goes one call deeper for each level and ends the process with
    the stack. Few openers cannot nest deeply: without them a level costs one more column in each of its lines."""
    if sum(map(data.count, (b"[", b"{", b"-", b"?"))) < _SAFE_OPENERS:
        return
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise Invalid(_EXCESSIVE)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _bounded(root: yaml.Node) -> None:
    """Refuse documents whose aliases unfold to more than a body may hold, circular and too deep ones. Each node is looked at
    once, however often it is referred to."""
    sizes: dict[int, int] = {}  # of a node unfolded; 0 while it is being measured

    def size(node: yaml.Node, depth: int) -> int:
        known = sizes.get(id(node))
        if known == 0 or depth > DEPTH_LIMIT:
            raise Invalid(_EXCESSIVE)
        if known is not None:
            return known
        sizes[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            total = 1 + sum(size(part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            total = 1 + sum(size(part, depth + 1) for part in node.value)
        else:
            total = 1 + len(node.value)
        if total > _UNFOLDED_LIMIT:
            raise Invalid(_EXCESSIVE)
        sizes[id(node)] = total
        return total

    size(root, 0)
