"""JSON Patch (RFC 6902) over JSON Pointers (RFC 6901), with the limits of kube-apiserver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from insula.errors import Cause, Invalid

MAX_OPERATIONS = 10_000
_MAX_COPIED_BYTES = 3 << 20


def _fault(why: str, path: str) -> Invalid:
    sentence = f"the server rejected our request due to an error in our request: {why}"
    return Invalid(sentence, field=path, causes=[Cause(path, "FieldValueInvalid", why)])


def pointer(path: Any) -> list[str]:
    """The steps of a JSON Pointer. Raises Invalid."""
    if not isinstance(path, str) or (path and not path.startswith("/")):
        raise Invalid(f"a JSON pointer must be empty or begin with '/', not {path!r}", field="path")
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]


def _index(step: str, length: int, path: str) -> int:
    if step.isascii() and step.isdigit() and (step == "0" or step[0] != "0") and len(step) < 10 and int(step) < length:
        return int(step)
    raise _fault(f"the index {step!r} is not in the list of {length} at {path}", path)


def _child(place: Any, step: str, path: str) -> Any:
    if isinstance(place, dict):
        if step in place:
            return place[step]
    elif isinstance(place, list):
        return place[_index(step, len(place), path)]
    raise _fault(f"doc is missing path: {path}: missing value", path)


def _get(doc: Any, steps: list[str], path: str) -> Any:
    for step in steps:
        doc = _child(doc, step, path)
    return doc


def _add(doc: Any, steps: list[str], value: Any, path: str) -> Any:
    if not steps:
        return value
    place, last = _get(doc, steps[:-1], path), steps[-1]
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list):
        place.insert(len(place) if last == "-" else _index(last, len(place) + 1, path), value)
    else:
        raise _fault(f"add operation does not apply: doc is missing path: {path}: missing value", path)
    return doc


def _remove(doc: Any, steps: list[str], path: str) -> Any:
    if not steps:
        raise _fault("the whole document cannot be removed", path)
    place, last = _get(doc, steps[:-1], path), steps[-1]
    if isinstance(place, dict) and last in place:
        del place[last]
    elif isinstance(place, list):
        del place[_index(last, len(place), path)]
    else:
        raise _fault(f"remove operation does not apply: doc is missing key: {path}: missing value", path)
    return doc


def _replace(doc: Any, steps: list[str], value: Any, path: str) -> Any:
    if not steps:
        return value
    place, last = _get(doc, steps[:-1], path), steps[-1]
    if isinstance(place, list):
        place[_index(last, len(place), path)] = value
        return doc
    _child(place, last, path)
    place[last] = value
    return doc


def _same(left: Any, right: Any) -> bool:
    """Equality of JSON values: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _deep(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


class _Budget:
    """How much may still be copied: a short patch must not grow a document without bound."""

    def __init__(self) -> None:
        self.left = _MAX_COPIED_BYTES

    def copy(self, value: Any, path: str) -> Any:
        text = msgspec.json.encode(value)
        self.left -= len(text)
        if self.left < 0:
            raise _fault(f"copy operations add more than {_MAX_COPIED_BYTES} bytes", path)
        return msgspec.json.decode(text)


def _operate(doc: Any, one: Mapping[str, Any], budget: _Budget) -> Any:
    operation, path = one.get("op"), one.get("path")
    steps = pointer(path)
    assert isinstance(path, str)
    if operation in ("add", "replace") and "value" not in one:
        raise _fault(f"{operation} operation at {path} has no value", path)
    match operation:
        case "add":
            return _add(doc, steps, _deep(one["value"]), path)
        case "remove":
            return _remove(doc, steps, path)
        case "replace":
            return _replace(doc, steps, _deep(one["value"]), path)
        case "test":
            if not _same(_get_or_none(doc, steps), one.get("value")):
                raise _fault(f"testing value {path} failed: test failed", path)
            return doc
        case "copy" | "move":
            return _transfer(doc, operation, one.get("from"), steps, path, budget)
    raise Invalid(f"Unexpected kind of JSON patch operation: {operation!r}", field="op")


def _get_or_none(doc: Any, steps: list[str]) -> Any:
    for step in steps:
        if isinstance(doc, dict):
            doc = doc.get(step)
        elif isinstance(doc, list) and step.isdigit() and int(step) < len(doc):
            doc = doc[int(step)]
        else:
            return None
    return doc


def _transfer(doc: Any, operation: str, source: Any, steps: list[str], path: str, budget: _Budget) -> Any:
    origin = pointer(source)
    value = _get(doc, origin, source)
    if operation == "copy":
        return _add(doc, steps, budget.copy(value, path), path)
    if steps[: len(origin)] == origin and len(steps) > len(origin):
        raise _fault(f"{source} cannot be moved into itself", path)
    return _add(_remove(doc, origin, source), steps, value, path)


def apply(doc: Any, operations: Any) -> Any:
    """The document after all operations. `doc` may be changed. Raises Invalid, also for a failed test."""
    if not isinstance(operations, list) or not all(isinstance(one, dict) for one in operations):
        raise Invalid("a JSON patch must be a list of operations", field="patch")
    if len(operations) > MAX_OPERATIONS:
        raise Invalid(
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}", field="patch"
        )
    budget = _Budget()
    for one in operations:
        doc = _operate(doc, one, budget)
    return doc
