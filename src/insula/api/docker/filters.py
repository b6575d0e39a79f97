"""The `filters` parameter: JSON, either `{"name": ["a", "b"]}` or the older `{"name": {"a": true}}`.

Different filters must all match, values of one filter are alternatives; `label` values must all match. Source: the Docker
Engine API reference and the behaviour of dockerd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from insula.errors import Invalid


class Filters:
    """The parsed filters of one request."""

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self._values = values

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def having(self, name: str, value: str) -> Filters:
        """The same with one more value."""
        return Filters({**self._values, name: (*self.get(name), value)})

    def get(self, name: str) -> tuple[str, ...]:
        """The values of one filter, empty when it was not given."""
        return self._values.get(name, ())

    def any(self, name: str, test: Callable[[str], bool]) -> bool:
        """Whether the filter is absent or one of its values passes."""
        values = self._values.get(name)
        return values is None or any(map(test, values))

    def all(self, name: str, test: Callable[[str], bool]) -> bool:
        """Whether every value passes."""
        return all(map(test, self._values.get(name, ())))

    def labels(self, labels: Mapping[str, str]) -> bool:
        """`label` (all of them) and `label!` (none of them), each `key` or `key=value`."""
        return self.all("label", lambda wanted: has_label(labels, wanted)) and not any(
            has_label(labels, unwanted) for unwanted in self.get("label!")
        )

    def flag(self, name: str, default: bool = False) -> bool:
        """A filter with one truth value. Raises Invalid."""
        values = self._values.get(name)
        if values is None:
            return default
        found = {_TRUTH.get(value.lower()) for value in values}
        if len(found) != 1 or None in found:
            raise Invalid(f"invalid filter '{name}=[{' '.join(values)}]'", field="filters")
        return bool(found.pop())


_TRUTH = {"1": True, "true": True, "t": True, "0": False, "false": False, "f": False}


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """`key` or `key=value`."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def parse(text: str | None, known: Iterable[str]) -> Filters:
    """Read the parameter. Raises Invalid: not JSON, wrong shape, or a filter that this listing does not know."""
    if not text:
        return Filters({})
    try:
        raw = msgspec.json.decode(text, type=dict[str, list[str] | dict[str, bool]])
    except (msgspec.DecodeError, RecursionError) as fault:
        raise Invalid(f"invalid filter: {fault}", field="filters") from fault
    allowed = frozenset(known)
    for name in raw:
        if name not in allowed:
            raise Invalid(f"invalid filter '{name}'", field="filters")
    return Filters(
        {
            name: tuple(values) if isinstance(values, list) else tuple(value for value, on in values.items() if on)
            for name, values in raw.items()
        }
    )
