"""JSON Merge Patch (RFC 7386)."""

from __future__ import annotations

from typing import Any


def apply(target: Any, patch: Any) -> Any:
    """The target with the patch laid over it; null removes. `target` may be changed, `patch` becomes part of the result."""
    if not isinstance(patch, dict):
        return patch
    result = target if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            result[name] = apply(result.get(name), value)
        else:
            result[name] = value
    return result
