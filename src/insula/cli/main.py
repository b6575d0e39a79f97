"""The command `insula`. A command is one file in `commands/` that exports `COMMAND`; only the one asked for is imported, so
that the command line answers quickly. The first line of the file is its line in the help: `insula NAME: what it does.`"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import click

from insula import __version__
from insula.cli.errors import friendly
from insula.cli.paths import Paths, paths_of

FOLDER = Path(__file__).parent / "commands"


class Commands(click.Group):
    """A group whose members are the files of a folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [
            name.replace("_", "-") for name in sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in names():
            return None
        module = importlib.import_module(f"insula.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.COMMAND
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in names()])

    def invoke(self, ctx: click.Context) -> Any:
        with friendly():
            return super().invoke(ctx)


def names() -> list[str]:
    """Every command."""
    return [name.replace("_", "-") for name in sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))]


def summary(name: str) -> str:
    """What a command does, from the first line of its file: importing them all would take most of a second."""
    with (FOLDER / f"{name.replace('-', '_')}.py").open() as file:
        text = file.readline().strip().strip('"').partition(": ")[2]
    return text[:1].upper() + text[1:]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="insula")
@click.option(
    "--root", metavar="DIR", envvar="INSULA_ROOT", help="Use the Insula that lives below DIR instead of the machine's."
)
@click.pass_context
def main(ctx: click.Context, root: str | None) -> None:
    """One control plane for containers, virtual machines and every other level of virtualization.

    \b
    insula up --detach            start Insula on this machine
    insula doctor                 what this machine offers and what it lacks
    insula status                 what runs, and where the doors are
    insula vm create demo         a virtual machine
    docker -H unix:///run/insula/docker.sock run --rm busybox echo hello
    kubectl --kubeconfig <(insula kubeconfig) get pods -A
    """
    ctx.obj = paths_of(root)


def root_option(command: Any) -> Any:
    """`--root` is accepted after the command as well: `insula up --root DIR`."""

    def choose(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value:
            ctx.obj = paths_of(value)

    return click.option(
        "--root", metavar="DIR", expose_value=False, callback=choose, help="Use the Insula that lives below DIR."
    )(command)


def current(ctx: click.Context) -> Paths:
    """The paths that this command works on."""
    paths: Paths = ctx.obj
    return paths
