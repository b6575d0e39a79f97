"""insula logs: what the daemon says of itself."""

from __future__ import annotations

import os

import click

from insula.cli import daemon
from insula.cli.main import current, root_option
from insula.cli.paths import Paths
from insula.errors import NotFound


@click.command("logs")
@click.option("--follow", "-f", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
@click.option(
    "--tail", "-n", type=click.IntRange(0), default=100, show_default=True, help="How many lines to begin with."
)
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, follow: bool, tail: int) -> None:  # noqa: N802
    """Show the daemon's log: the file of a detached one, the journal of one that systemd runs.

    \b
    insula logs -f
    """
    argv = command(current(ctx), _in_journal(current(ctx)), follow, tail)
    os.execvp(argv[0], argv)  # noqa: S606 - it becomes the program, as a shell's exec does


def command(paths: Paths, journal: bool, follow: bool, lines: int) -> list[str]:
    """The program that shows it: journalctl(1), or tail(1), which follows by inotify. Raises NotFound."""
    if journal:
        argv = ["journalctl", "--no-pager", "--output", "short-iso", "-u", paths.unit.name, "-n", str(lines)]
        return [*argv, "-f"] if follow else argv
    if not paths.log.exists():
        raise NotFound(f"there is no log at {paths.log}", hint="a daemon in the foreground logs to its terminal")
    return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(paths.log)]


def _in_journal(paths: Paths) -> bool:
    running = daemon.serving(paths)
    return bool(running.unit) if running else paths.unit.exists() and not paths.log.exists()
