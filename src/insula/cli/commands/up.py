"""insula up: start Insula."""

from __future__ import annotations

import click

from insula.cli import daemon
from insula.cli.main import current, root_option


@click.command("up")
@click.option("--detach", "-d", is_flag=True, help="Go on in the background once Insula is ready.")
@click.option("--ready-fd", type=int, hidden=True)
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, detach: bool, ready_fd: int | None) -> None:  # noqa: N802
    """Start Insula on this machine. What ran before goes on running and is taken back.

    \b
    insula up --detach
    insula up --detach --root /tmp/second      a whole second Insula beside the first
    """
    paths = current(ctx)
    if not detach:
        daemon.foreground(paths, ready_fd)
        return
    running = daemon.serving(paths)
    if running is not None:
        click.echo(f"Insula already runs (pid {running.pid}); nothing to do.")
        return
    started = daemon.detached(paths)
    click.echo(f"Insula is ready (pid {started.pid}): Docker at {started.docker}, Kubernetes at {started.api}.")
