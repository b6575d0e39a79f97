"""What an image's history says of a step, in the words of the classic builder and of BuildKit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from insula.engine.building.contract import Dialect
from insula.images.dockerfile.instructions import Copy

COMMENT = "buildkit.dockerfile.v0"


def said_metadata(dialect: Dialect, shell: Sequence[str], said: str) -> str:
    """Of a step that changes only the configuration."""
    return said if dialect == "buildkit" else f"{' '.join(shell)} #(nop)  {said}"


def said_run(dialect: Dialect, words: Sequence[str], args: Mapping[str, str]) -> str:
    """Of a RUN; the build arguments that it saw are part of it."""
    text = " ".join(words)
    if args:
        pairs = " ".join(f"{name}={value}" for name, value in args.items())
        text = f"|{len(args)} {pairs} {text}"
    return f"RUN {text} # buildkit" if dialect == "buildkit" else text


def said_copy(
    dialect: Dialect, shell: Sequence[str], what: Copy, sources: Sequence[str], target: str, digest: str
) -> str:
    """Of a COPY or ADD; the classic builder names the content, so that --cache-from can compare."""
    word = "ADD" if what.add else "COPY"
    if dialect == "buildkit":
        flags = (("chown", what.owner), ("chmod", what.mode), ("from", what.source_stage), ("link", what.link))
        shown = [f"--{name}={value if value is not True else 'true'}" for name, value in flags if value]
        return " ".join([word, *shown, *sources, target]) + " # buildkit"
    kind = "multi" if len(sources) > 1 else "file"
    return f"{' '.join(shell)} #(nop) {word} {kind}:{digest} in {target} "


def history_entry(dialect: Dialect, *, created: str, said: str, author: str, empty: bool) -> dict[str, Any]:
    """One entry of an image's history."""
    entry: dict[str, Any] = {"created": created, "created_by": said}
    if author:
        entry["author"] = author
    if dialect == "buildkit":
        entry["comment"] = COMMENT
    if empty:
        entry["empty_layer"] = True
    return entry


def failed_run(dialect: Dialect, words: Sequence[str], code: int) -> str:
    """The sentence for a RUN that ended with another code than 0."""
    text = " ".join(words)
    if dialect == "buildkit":
        return f'process "{text}" did not complete successfully: exit code: {code}'
    return f"The command '{text}' returned a non-zero code: {code}"
