"""Label and field selectors: `app=web,tier in (a,b),!canary` and `spec.nodeName=n1,status.phase!=Failed`.

Syntax and meaning are Kubernetes' (docs: Labels and Selectors; apimachinery `labels.Parse`, `fields.ParseSelector`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from insula.errors import Invalid

Operator = Literal["in", "notin", "exists", "!", "gt", "lt"]

_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_SYMBOLS = frozenset({"", "=", "==", "!=", "!", "(", ")", ",", "<", ">"})
_TOKEN = re.compile(r"\s*(?:(==|!=|=|!|\(|\)|,|<|>)|([^\s=!(),<>]+))")


class Requirement(Struct, frozen=True):
    """One condition on one label. `values` is empty for exists and !."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels fulfils the condition."""
        present = labels.get(self.key)
        match self.operator:
            case "in":
                return present in self.values
            case "notin":
                return present not in self.values
            case "exists":
                return present is not None
            case "!":
                return present is None
            case _:
                return _compare(present, self.operator, self.values)


def _compare(present: str | None, operator: str, values: frozenset[str]) -> bool:
    try:
        have, bound = int(present or ""), int(next(iter(values)))
    except ValueError:
        return False
    return have > bound if operator == "gt" else have < bound


class Selector(Struct, frozen=True):
    """All of its requirements must hold; without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels are selected."""
        return all(one.matches(labels) for one in self.requirements)

    def __bool__(self) -> bool:
        return bool(self.requirements)


EVERYTHING = Selector()


def label_name_fault(key: str) -> str | None:
    """What is wrong with a label or annotation key, in Kubernetes' words; None for a good one."""
    prefix, slash, name = key.rpartition("/")
    if key.count("/") > 1:
        return "a qualified name must consist of alphanumeric characters, '-', '_' or '.' with an optional DNS prefix and '/'"
    if slash and (not prefix or len(prefix) > 253 or not _PREFIX.match(prefix)):
        return "prefix part must be a lowercase RFC 1123 subdomain of at most 253 characters"
    if not name:
        return "name part must be non-empty"
    if len(name) > 63:
        return "name part must be no more than 63 bytes"
    if not _NAME.match(name):
        return (
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc')"
        )
    return None


def label_value_fault(value: str) -> str | None:
    """What is wrong with a label's value; None for a good one."""
    if len(value) > 63:
        return "must be no more than 63 bytes"
    if value and not _NAME.match(value):
        return (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345')"
        )
    return None


class _Parser:
    """Recursive descent over the tokens of one label selector."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        at = 0
        stripped = text.rstrip()
        while at < len(stripped):
            found = _TOKEN.match(stripped, at)
            if found is None:
                raise self.fault(f"unexpected character at {at}")
            self.tokens.append(found.group(1) or found.group(2))
            at = found.end()
        self.at = 0

    def fault(self, why: str) -> Invalid:
        return Invalid(f"unable to parse requirement: {why} in label selector {self.text!r}", field="labelSelector")

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def word(self, what: str) -> str:
        found = self.take()
        if found in _SYMBOLS:
            raise self.fault(f"found {found!r}, expected: {what}")
        return found

    def key(self) -> str:
        key = self.word("identifier")
        if why := label_name_fault(key):
            raise Invalid(f'key: Invalid value: "{key}": {why}', field="labelSelector")
        return key

    def value(self) -> str:
        """A value, which may be empty before a comma or the end."""
        if self.peek() in ("", ",", ")"):
            return ""
        value = self.word("value")
        if why := label_value_fault(value):
            raise Invalid(f'values[0]: Invalid value: "{value}": {why}', field="labelSelector")
        return value

    def values(self) -> frozenset[str]:
        if self.take() != "(":
            raise self.fault("expected '('")
        found = {self.value()}
        while self.peek() == ",":
            self.take()
            found.add(self.value())
        if self.take() != ")":
            raise self.fault("expected ')' or ','")
        return frozenset(found)

    def requirement(self) -> Requirement:
        if self.peek() == "!":
            self.take()
            return Requirement(self.key(), "!")
        key = self.key()
        operator = self.peek()
        if operator in ("", ","):
            return Requirement(key, "exists")
        self.take()
        match operator:
            case "=" | "==":
                return Requirement(key, "in", frozenset({self.value()}))
            case "!=":
                return Requirement(key, "notin", frozenset({self.value()}))
            case "in":
                return Requirement(key, "in", self.values())
            case "notin":
                return Requirement(key, "notin", self.values())
            case ">" | "<":
                return Requirement(key, "gt" if operator == ">" else "lt", frozenset({self.bound()}))
        raise self.fault(f"found {operator!r}, expected: in, notin, =, ==, !=, >, <")

    def bound(self) -> str:
        value = self.word("integer")
        if not re.fullmatch(r"-?\d+", value):
            raise self.fault(f"for 'Gt', 'Lt' operators, the value must be an integer, not {value!r}")
        return value

    def parse(self) -> Selector:
        if not self.tokens:
            return EVERYTHING
        found = [self.requirement()]
        while self.peek() == ",":
            self.take()
            found.append(self.requirement())
        if self.at < len(self.tokens):
            raise self.fault(f"found {self.peek()!r}, expected: ',' or 'end of string'")
        return Selector(tuple(found))


def parse_labels(text: str) -> Selector:
    """Read the text form (`-l`). Raises Invalid."""
    return _Parser(text).parse() if text else EVERYTHING


_OPERATORS: dict[str, Operator] = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def from_object(spec: Mapping[str, Any] | None) -> Selector | None:
    """Read a metav1.LabelSelector. None selects nothing and gives None; an empty one selects everything. Raises Invalid."""
    if spec is None:
        return None
    found = [Requirement(key, "in", frozenset({value})) for key, value in (spec.get("matchLabels") or {}).items()]
    for one in spec.get("matchExpressions") or ():
        operator = _OPERATORS.get(one.get("operator", ""))
        if operator is None:
            raise Invalid(f'"{one.get("operator")}" is not a valid label selector operator', field="matchExpressions")
        found.append(Requirement(one.get("key", ""), operator, frozenset(one.get("values") or ())))
    return Selector(tuple(found))


class FieldRequirement(Struct, frozen=True):
    """`path=value` or `path!=value`."""

    path: str
    value: str
    equal: bool = True


class FieldSelector(Struct, frozen=True):
    """All of its requirements must hold."""

    requirements: tuple[FieldRequirement, ...] = ()

    def matches(self, fields: Mapping[str, str]) -> bool:
        """Whether an object with these selectable fields is selected; an absent field counts as empty."""
        return all((fields.get(one.path, "") == one.value) is one.equal for one in self.requirements)

    def exact(self, path: str) -> str | None:
        """The one value that `path` must have, if the selector says so."""
        for one in self.requirements:
            if one.path == path and one.equal:
                return one.value
        return None

    def __bool__(self) -> bool:
        return bool(self.requirements)


def _split_fields(text: str) -> list[str]:
    """Split at commas that no backslash protects."""
    return re.split(r"(?<!\\),", text)


def _unescape(text: str) -> str:
    return re.sub(r"\\([\\,=])", r"\1", text)


def parse_fields(text: str) -> FieldSelector:
    """Read `a=b,c!=d` (also `==`). Raises Invalid."""
    if not text:
        return _EVERY_FIELD
    found = []
    for part in _split_fields(text):
        if not part.strip():
            continue
        match = re.match(r"([^=!\\]+)(!=|==|=)(.*)\Z", part, re.DOTALL)
        if match is None:
            raise Invalid(f"invalid selector: '{text}'; can't understand '{part}'", field="fieldSelector")
        found.append(FieldRequirement(match.group(1).strip(), _unescape(match.group(3)), match.group(2) != "!="))
    return FieldSelector(tuple(found))


_EVERY_FIELD = FieldSelector(())
