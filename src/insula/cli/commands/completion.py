"""insula completion: the script that lets a shell complete insula's commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def COMMAND(ctx: click.Context, shell: str) -> None:  # noqa: N802
    """Print the completion script of a shell.

    \b
    source <(insula completion bash)
    insula completion zsh > "${fpath[1]}/_insula"
    insula completion fish > ~/.config/fish/completions/insula.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "insula", "_INSULA_COMPLETE").source())
