"""insula up: start Insula."""

from __future__ import annotations

import click

from insula.cli import daemon, service
from insula.cli.main import current, root_option


@click.command("up")
@click.option("--detach", "-d", is_flag=True, help="Go on in the background once Insula is ready.")
@click.option(
    "--docker-host",
    "hosts",
    multiple=True,
    metavar="tcp://HOST[:PORT]",
    help="Open the Docker door on TCP too, with TLS and client certificates (`insula docker cert`).",
)
@click.option(
    "--docker-name", "names", multiple=True, metavar="NAME", help="Another name of this machine, for its certificate."
)
@click.option("--docker-tls/--no-docker-tls", default=None, help="Without TLS, on loopback only.")
@root_option
@click.pass_context
def COMMAND(  # noqa: N802
    ctx: click.Context, detach: bool, hosts: tuple[str, ...], names: tuple[str, ...], docker_tls: bool | None
) -> None:
    """Start Insula on this machine. What ran before goes on running and is taken back.

    \b
    insula up                                  stay in the foreground; Ctrl-C stops Insula, not the workloads
    insula up --detach
    insula up --detach --root /tmp/second      a whole second Insula beside the first
    insula up --docker-host tcp://0.0.0.0:2376 --docker-name build.example
    """
    paths = current(ctx)
    given = {"docker_hosts": hosts or None, "docker_names": names or None, "docker_tls": docker_tls}
    changed = {name: value for name, value in given.items() if value is not None}
    if not detach:
        service.foreground(paths, changed=changed)
        click.echo("Insula is stopped; workloads go on.")
        return
    if daemon.serving(paths) is not None and (running := daemon.wait_ready(paths)) is not None:
        click.echo(f"Insula already runs (pid {running.pid}); nothing to do.")
        return
    click.echo(service.doors_line(service.started(paths, changed)) + ".")
