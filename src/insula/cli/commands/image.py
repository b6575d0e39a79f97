"""insula image: images of containers and machines."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from insula.cli import doors
from insula.cli.main import current, root_option
from insula.cli.output import output_option, show
from insula.cli.paths import Paths


@click.group("image")
def COMMAND() -> None:  # noqa: N802
    """Images of containers and machines: one store for both.

    \b
    insula image list
    insula image pull alpine:3.20
    insula image demo          make the demo images without a network
    """


@COMMAND.command("list")
@output_option
@root_option
@click.pass_context
def list_images(ctx: click.Context, output: str) -> None:
    """List images."""

    async def work(paths: Paths) -> list[dict[str, Any]]:
        async with doors.docker(paths) as door:
            return [_row(image) for image in await door.call("GET", "/images/json")]

    show(asyncio.run(work(current(ctx))), ["name", "id", "size"], output)


def _row(image: dict[str, Any]) -> dict[str, Any]:
    size = f"{image['Size'] / 1e6:.1f} MB"
    names = image.get("RepoTags") or []
    return {"name": ",".join(names), "id": image["Id"][7:19], "size": size, "names": names, "bytes": image["Size"]}


@COMMAND.command("pull")
@click.argument("reference")
@root_option
@click.pass_context
def pull(ctx: click.Context, reference: str) -> None:
    """Pull an image from its registry."""
    asyncio.run(_pull(current(ctx), reference))


def whole(reference: str) -> str:
    """With the tag that a reference without one means: the door would fetch every tag."""
    is_whole = "@" in reference or ":" in reference.rpartition("/")[2]
    return reference if is_whole else f"{reference}:latest"


async def _pull(paths: Paths, reference: str) -> None:
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}
        async with doors.docker(paths) as door:
            async for line in door.lines("POST", f"/images/create?fromImage={quote(whole(reference), safe='')}"):
                detail = line.get("progressDetail") or {}
                if line.get("id") and detail.get("total"):
                    if line["id"] not in bars:
                        bars[line["id"]] = progress.add_task(line["id"])
                    progress.update(bars[line["id"]], completed=detail.get("current", 0), total=detail["total"])
    click.echo(f"{reference} is here.")


@COMMAND.command("load")
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@root_option
@click.pass_context
def load(ctx: click.Context, archive: Path) -> None:
    """Load an archive that `docker save` or an OCI tool wrote."""

    async def work(paths: Paths) -> None:
        async with doors.docker(paths) as door:
            with archive.open("rb") as file:
                async for line in door.lines("POST", "/images/load", file, "application/x-tar"):
                    if line.get("stream"):
                        click.echo(line["stream"], nl=False)

    asyncio.run(work(current(ctx)))


@COMMAND.command("remove")
@click.argument("references", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also when a stopped container uses it.")
@root_option
@click.pass_context
def remove(ctx: click.Context, references: tuple[str, ...], force: bool) -> None:
    """Remove images."""

    async def work(paths: Paths) -> None:
        async with doors.docker(paths) as door:
            for reference in references:
                await door.call("DELETE", f"/images/{quote(reference, safe='')}?force={int(force)}")
                click.echo(f"{reference} is removed.")

    asyncio.run(work(current(ctx)))


@COMMAND.command("demo")
@root_option
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Make the demo images insula/busybox and insula/linux from this distribution's packages."""
    from insula.cli import demoimages

    async def work(paths: Paths) -> None:
        async with doors.docker(paths) as door:
            made = await demoimages.add_busybox(door)
            made = await demoimages.add_machine(door, paths, lambda text: click.echo(text, err=True)) or made
            click.echo("The demo images are ready." if made else "The demo images are there already.")

    asyncio.run(work(current(ctx)))
