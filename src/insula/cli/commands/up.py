"""insula up: start Insula."""

from __future__ import annotations

import click

from insula.cli import daemon, service
from insula.cli.main import current, root_option


@click.command("up")
@click.option("--detach", "-d", is_flag=True, help="Go on in the background once Insula is ready.")
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, detach: bool) -> None:  # noqa: N802
    """Start Insula on this machine. What ran before goes on running and is taken back.

    \b
    insula up                                  stay in the foreground; Ctrl-C stops Insula, not the workloads
    insula up --detach
    insula up --detach --root /tmp/second      a whole second Insula beside the first
    """
    paths = current(ctx)
    if not detach:
        service.foreground(paths)
        click.echo("Insula is stopped; workloads go on.")
        return
    if daemon.serving(paths) is not None and (running := daemon.wait_ready(paths)) is not None:
        click.echo(f"Insula already runs (pid {running.pid}); nothing to do.")
        return
    click.echo(service.doors_line(service.started(paths)) + ".")
