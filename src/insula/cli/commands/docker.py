"""insula docker: certificates and contexts for Docker clients elsewhere."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import click

from insula.cli import daemon
from insula.cli.main import current, root_option
from insula.cli.paths import Paths
from insula.errors import HostFault, Invalid

_LONGEST_NAME = 64  # RFC 5280, ub-common-name


@click.group("docker")
def COMMAND() -> None:  # noqa: N802
    """Let Docker clients on other machines in: by certificates of an authority that is made for this door alone.

    \b
    insula up --detach --docker-host tcp://0.0.0.0:2376
    insula docker cert alice --out ./alice            ca.pem, cert.pem, key.pem for `docker --tlsverify`
    insula docker context here                        and a docker context that uses such files
    insula docker env                                 the variables for the local socket
    """


out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for ca.pem, cert.pem and key.pem.  [default: ./insula-docker-NAME]",
)


@COMMAND.command("cert")
@click.argument("name")
@out
@root_option
@click.pass_context
def cert(ctx: click.Context, name: str, out: Path | None) -> None:
    """Issue a client certificate. Whoever has it is root on this machine; it is good for a year."""
    folder = _issue(current(ctx), name, out)
    click.echo(f"{folder} holds ca.pem, cert.pem and key.pem. On the client:")
    click.echo(
        f"  docker --tlsverify --tlscacert {folder}/ca.pem --tlscert {folder}/cert.pem --tlskey {folder}/key.pem \\"
    )
    click.echo(f"    -H {_served(current(ctx), '')} version")


@COMMAND.command("context")
@click.argument("name")
@click.option("--host", default="", metavar="HOST", help="What the client calls this machine, in place of 0.0.0.0.")
@click.option("--print", "only_print", is_flag=True, help="Print the docker command and do not run it.")
@out
@root_option
@click.pass_context
def context(ctx: click.Context, name: str, host: str, only_print: bool, out: Path | None) -> None:
    """Issue a client certificate and make a docker context of it for whoever runs this command."""
    from insula.cli import remote

    running = daemon.need_running(current(ctx))
    address = remote.reachable(running.docker_tcp, host)
    folder = _issue(current(ctx), name, out)
    command = remote.context_command(name, address, folder.resolve())
    if only_print:
        click.echo(shlex.join(command))
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as fault:
        raise HostFault(f"docker cannot be started: {fault.strerror}", command=shlex.join(command)) from fault
    if done.returncode != 0:
        raise HostFault(f"docker refused: {done.stderr.strip()}", command=shlex.join(command), code=done.returncode)
    click.echo(f"The context {name} leads to {address}. Try: docker --context {name} version")


@COMMAND.command("env")
@root_option
@click.pass_context
def env(ctx: click.Context) -> None:
    """Print the variables that lead Docker clients to the local socket.

    \b
    eval "$(insula docker env)"
    """
    click.echo(f"export DOCKER_HOST=unix://{current(ctx).docker_socket}")


def _issue(paths: Paths, name: str, out: Path | None) -> Path:
    from insula.cli import remote

    daemon.need_root()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or "/" in name:
        raise Invalid(f"{name!r} cannot be a client's name: it takes 1 to {_LONGEST_NAME} characters without slashes")
    folder = out or Path(f"insula-docker-{name}")
    remote.issue(paths, name, folder)
    return folder


def _served(paths: Paths, host: str) -> str:
    from insula.cli import remote

    running = daemon.serving(paths)
    return remote.reachable(running.docker_tcp, host) if running and running.docker_tcp else "tcp://HOST:2376"
