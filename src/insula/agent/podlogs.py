"""A container's log as `kubectl logs` wants it: plain text, options as in core/v1 PodLogOptions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import timedelta
from typing import cast

from msgspec import Struct

from insula import clock
from insula.engine.contract import Engine, LogLine
from insula.errors import Invalid


class Options(Struct, frozen=True, kw_only=True):
    """The query of a log request."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since: str = ""
    tail: int | None = None
    limit_bytes: int | None = None


def options_of(query: Mapping[str, str]) -> Options:
    """Read a query. Raises Invalid naming the parameter."""
    since = query.get("sinceTime", "")
    if seconds := query.get("sinceSeconds"):
        since = clock.rfc3339_nano(clock.now() - timedelta(seconds=_number("sinceSeconds", seconds, 1)))
    elif since:
        try:
            clock.parse_rfc3339(since)
        except ValueError as fault:
            raise Invalid(f"sinceTime {since!r} is not an RFC 3339 time", field="sinceTime") from fault
    return Options(
        follow=_truth(query.get("follow")),
        previous=_truth(query.get("previous")),
        timestamps=_truth(query.get("timestamps")),
        since=since,
        tail=_number("tailLines", query["tailLines"], 0) if "tailLines" in query else None,
        limit_bytes=_number("limitBytes", query["limitBytes"], 1) if "limitBytes" in query else None,
    )


def _truth(text: str | None) -> bool:
    return text in ("true", "1", "")


def _number(name: str, text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise Invalid(f"{name} {text!r} must be a whole number of at least {least}", field=name)
    return int(text)


async def read(engine: Engine, instance: str, options: Options) -> AsyncIterator[bytes]:
    """Pieces of text, oldest first."""
    left = options.limit_bytes
    at_line_start = True
    lines = engine.logs(instance, follow=options.follow, since=options.since, tail=options.tail)
    async with contextlib.aclosing(cast(AsyncGenerator[LogLine, None], lines)):
        async for line in lines:
            data = line.data
            if options.timestamps and at_line_start:
                data = f"{line.time} ".encode() + data
            at_line_start = not line.partial
            if left is not None:
                data = data[:left]
                left -= len(data)
            yield data
            if left == 0:
                return
