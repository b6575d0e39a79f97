"""Questions about a Dockerfile that build nothing: `docker buildx build --call=outline|targets|check`.

Source: BuildKit's `frontend/subrequests/{outline,targets,lint}` (names of requests and the JSON of their answers).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from insula.engine.building.contract import Builder, BuildRequest, Location, Outline, Warning
from insula.errors import Unsupported

_PREFIX = "frontend."


async def answer_to(request: str, builder: Builder, made: BuildRequest) -> Mapping[str, bytes]:
    """The metadata of a result. Raises Unsupported, BuildFault."""
    kind = request.removeprefix(_PREFIX)
    if kind == "subrequests.describe":
        rows = [
            {"Name": f"{_PREFIX}{name}", "Version": "1.0.0", "Type": "rpc", "Description": words}
            for name, words in _KNOWN.items()
        ]
        text = "\n".join(f"{row['Name']} {row['Description']}" for row in rows) + "\n"
        return _result(rows, text)
    if kind not in _KNOWN:
        raise Unsupported(f"unsupported subrequest {request}: {', '.join(_KNOWN)} are answered", field="requestid")
    outline = await builder.outline(made)
    match kind:
        case "outline":
            return _result(outline_words(outline, made), outline_text(outline, made))
        case "targets":
            return _result(targets_words(outline, made), targets_text(outline))
    return _result(
        lint_words(outline.warnings, made),
        lint_text(outline.warnings, made),
        {"result.statuscode": "1" if outline.warnings else "0"},
    )


_KNOWN = {
    "outline": "List all parameters current build target supports",
    "targets": "List all targets current build supports",
    "lint": "Lint a Dockerfile",
}


def _result(words: Any, text: str, more: Mapping[str, str] = {}) -> dict[str, bytes]:
    found = {"result.json": msgspec.json.encode(words), "result.txt": text.encode(), "version": b"1.0.0"}
    return found | {name: value.encode() for name, value in more.items()}


def _location(location: Location | None) -> dict[str, Any]:
    if location is None:
        return {}
    lines = {"start": {"line": location.start, "character": 0}, "end": {"line": location.end, "character": 0}}
    return {"location": {"sourceIndex": 0, "ranges": [lines]}}


def _sources(made: BuildRequest) -> list[str]:
    return [b64encode((made.dockerfile or "").encode()).decode()]


# --- outline --------------------------------------------------------------------------------------------------------


def outline_words(outline: Outline, made: BuildRequest) -> dict[str, Any]:
    """`subrequests/outline`."""
    return {
        "name": made.target,
        "args": [
            {
                "name": each.name,
                "description": each.description,
                **({"value": each.default} if each.default else {}),
                **_location(each.location),
            }
            for each in outline.args
        ],
        "secrets": [{"name": name, **({"required": True} if required else {})} for name, required in outline.secrets],
        "ssh": [{"name": name, **({"required": True} if required else {})} for name, required in outline.ssh],
        "cache": [{"ID": name} for name in outline.caches],
        "sources": _sources(made),
    }


def outline_text(outline: Outline, made: BuildRequest) -> str:
    """The same for people."""
    parts = [f"TARGET: {made.target}\n"] if made.target else []
    if outline.args:
        parts.append(
            _rows(
                ("BUILD ARG", "VALUE", "DESCRIPTION"),
                [(each.name, each.default or "", each.description) for each in outline.args],
            )
        )
    for title, rows in (("SECRET", outline.secrets), ("SSH", outline.ssh)):
        if rows:
            parts.append(_rows((title, "REQUIRED"), [(name, "true" if required else "") for name, required in rows]))
    return "\n".join(parts)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) + 3 for column in range(len(head))]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in (head, *rows)
    )


# --- targets --------------------------------------------------------------------------------------------------------


def targets_words(outline: Outline, made: BuildRequest) -> dict[str, Any]:
    """`subrequests/targets`."""
    return {
        "targets": [
            {
                **({"name": each.name} if each.name else {}),
                **({"default": True} if each.default else {}),
                **({"description": each.description} if each.description else {}),
                "base": each.base,
                **_location(each.location),
            }
            for each in outline.stages
        ],
        "sources": _sources(made),
    }


def targets_text(outline: Outline) -> str:
    """The same for people."""
    rows = [(each.name + (" (default)" if each.default else ""), each.description) for each in outline.stages]
    return _rows(("TARGET", "DESCRIPTION"), [row for row in rows if row[0]])


# --- lint -----------------------------------------------------------------------------------------------------------


def lint_words(warnings: Sequence[Warning], made: BuildRequest) -> dict[str, Any]:
    """`subrequests/lint`."""
    rows = [
        {
            "ruleName": each.rule,
            "description": each.detail,
            "url": each.url,
            "detail": each.message,
            **_location(each.location),
        }
        for each in warnings
    ]
    source = {"filename": made.dockerfile_path, "language": "Dockerfile", "data": _sources(made)[0]}
    return {"warnings": rows, "sources": [source]}


def lint_text(warnings: Sequence[Warning], made: BuildRequest) -> str:
    """The same for people."""
    parts = []
    for each in warnings:
        where = f"{made.dockerfile_path}:{each.location.start}" if each.location else made.dockerfile_path
        parts.append(f"\nWARNING: {each.rule}{' - ' + each.url if each.url else ''}\n{each.message}\n{where}\n")
    return "".join(parts)
