"""insula status: what runs, and where the doors are."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from insula.cli import daemon, doors, workloads
from insula.cli.main import current, root_option
from insula.cli.output import dump, output_option, print_table
from insula.cli.paths import Paths

COLUMNS = ("kind", "name", "state", "address", "image", "door")


@click.command("status")
@output_option
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, output: str) -> None:  # noqa: N802
    """Show what runs and where the doors are.

    \b
    insula status
    insula status --output json
    """
    paths = current(ctx)
    serving = daemon.need_running(paths)
    rows = asyncio.run(_rows(paths))
    if output != "table":
        dump({"daemon": msgspec.to_builtins(serving), "workloads": rows}, output)
        return
    print_table(rows, COLUMNS)
    click.echo()
    click.echo(f"Docker      DOCKER_HOST=unix://{serving.docker}")
    click.echo(f"Kubernetes  {serving.api}, kubeconfig {paths.kubeconfig}")
    click.echo(f"Node        {serving.node}, pid {serving.pid}, version {serving.version}")


async def _rows(paths: Paths) -> list[dict[str, Any]]:
    async with doors.docker(paths) as docker, doors.kubernetes(paths) as kubernetes:
        return await workloads.rows(docker, kubernetes)
