"""insula version: this command's version, the daemon's, and what they stand on."""

from __future__ import annotations

import os
import platform

import click
import msgspec

from insula import __version__
from insula.cli import daemon
from insula.cli.main import current, root_option
from insula.cli.output import dump, output_option


@click.command("version")
@output_option
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, output: str) -> None:  # noqa: N802
    """Show versions.

    \b
    insula version
    insula version -o json
    """
    running = daemon.serving(current(ctx))
    found = {
        "insula": __version__,
        "daemon": msgspec.to_builtins(running) if running else None,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "architecture": platform.machine(),
    }
    if output != "table":
        dump(found, output)
        return
    there = f"{running.version} (pid {running.pid})" if running else "does not run"
    click.echo(f"insula  {__version__}\ndaemon  {there}\nPython  {found['python']}")
    click.echo(f"kernel  {found['kernel']} {found['architecture']}")
