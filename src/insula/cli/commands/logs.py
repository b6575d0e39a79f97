"""insula logs: what the daemon says of itself."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from insula.cli.main import current, root_option
from insula.cli.paths import Paths
from insula.errors import NotFound

_BLOCK = 64 * 1024


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
    paths = current(ctx)
    if _in_journal(paths):
        argv = ["journalctl", "--no-pager", "--output", "cat", "-u", paths.unit.name, "-n", str(tail)]
        os.execvp(argv[0], [*argv, "-f"] if follow else argv)  # noqa: S606
    if not paths.log.exists():
        raise NotFound(f"there is no log at {paths.log}", hint="a daemon in the foreground logs to its terminal")
    with paths.log.open("rb") as file:
        sys.stdout.buffer.write(last_lines(file, tail))
        sys.stdout.buffer.flush()
        if follow:
            try:
                asyncio.run(_follow(file, paths.log.parent))
            except KeyboardInterrupt:
                return


def _in_journal(paths: Paths) -> bool:
    from insula.cli import daemon

    running = daemon.serving(paths)
    return bool(running.unit) if running else paths.unit.exists() and not paths.log.exists()


def last_lines(file: BinaryIO, count: int) -> bytes:
    """The last lines of a file, read from its end; the file is left at its end."""
    position = file.seek(0, os.SEEK_END)
    found = b""
    while position and found.count(b"\n") <= count:
        step = min(_BLOCK, position)
        position -= step
        file.seek(position)
        found = file.read(step) + found
    file.seek(0, os.SEEK_END)
    lines = found.splitlines(keepends=True)
    return b"".join(lines[len(lines) - count :]) if count < len(lines) else found


async def _follow(file: BinaryIO, folder: Path) -> None:
    from insula.engine.watchfile import FolderWatch

    with FolderWatch(folder) as watch:
        while True:
            if data := file.read():
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            elif os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)  # it was emptied
            else:
                await watch.changed()
