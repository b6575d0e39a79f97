"""insula build: build an image from a Dockerfile."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from insula.cli import doors
from insula.cli.main import current, root_option
from insula.cli.paths import Paths
from insula.errors import NotFound
from insula.host.tarstream import Pipe, forward_tar, produce
from insula.images.dockerfile.ignore import Matcher, read_patterns


@click.command("build")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME", help="Name the image; may be given several times.")
@click.option("-f", "--file", "dockerfile", default="Dockerfile", help="The Dockerfile, as seen from FOLDER.")
@click.option("--target", default="", help="Build this stage only, and what it needs.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE", help="Set an ARG of the Dockerfile.")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's id only.")
@root_option
@click.pass_context
def COMMAND(  # noqa: N802
    ctx: click.Context,
    folder: Path,
    tags: tuple[str, ...],
    dockerfile: str,
    target: str,
    build_args: tuple[str, ...],
    no_cache: bool,
    quiet: bool,
) -> None:
    """Build an image from the Dockerfile in FOLDER, as `docker build` does.

    \b
    insula build -t app .
    insula build -t app --target test --build-arg VERSION=2 src
    """
    args = dict(each.partition("=")[::2] if "=" in each else (each, os.environ.get(each)) for each in build_args)
    query = [
        *(("t", tag) for tag in tags),
        ("dockerfile", dockerfile),
        ("target", target),
        ("buildargs", json.dumps(args)),
        ("nocache", "1" if no_cache else "0"),
        ("q", "1" if quiet else "0"),
    ]
    asyncio.run(_build(current(ctx), folder, dockerfile, urlencode(query)))


async def _build(paths: Paths, folder: Path, dockerfile: str, query: str) -> None:
    if not (folder / dockerfile).is_file():
        raise NotFound(f"there is no {dockerfile} in {folder}", hint="name another one with --file")

    def write(pipe: Pipe) -> None:
        with forward_tar(pipe) as archive:
            for path in context_files(folder, dockerfile):
                archive.add(folder / path, arcname=path, recursive=False)

    async with doors.docker(paths) as door:
        data = produce(write, "build context")
        async for line in door.lines("POST", f"/build?{query}", data, "application/x-tar"):
            click.echo(_text(line), nl=False)


def _text(line: dict[str, Any]) -> str:
    if "status" in line:
        return "" if line.get("progressDetail") else f"{line['status']} {line.get('id', '')}\n"
    return str(line.get("stream", ""))


def context_files(folder: Path, dockerfile: str) -> Iterator[str]:
    """What is sent: everything but what `.dockerignore` leaves out; the Dockerfile and `.dockerignore` always."""
    texts = [folder / f"{dockerfile}.dockerignore", folder / ".dockerignore"]
    text = next((each.read_text() for each in texts if each.is_file()), "")
    matcher = Matcher(read_patterns(text))
    needed = {dockerfile, f"{dockerfile}.dockerignore", ".dockerignore"}
    for place, folders, files in os.walk(folder):
        below = "" if Path(place) == folder else f"{Path(place).relative_to(folder)}/"
        for name in sorted(folders + files):
            path = below + name
            if not matcher.ignores(path) or path in needed:
                yield path
        if not matcher.has_exceptions:
            folders[:] = [name for name in folders if not matcher.ignores(below + name)]
