"""insula explain: what this Insula is made of: levels, kinds, controllers, settings and more."""

from __future__ import annotations

import click

from insula.cli import explain
from insula.cli.main import current, root_option
from insula.cli.output import output_option, show


@click.command("explain")
@click.argument("topic", required=False, type=click.Choice(list(explain.TOPICS)))
@output_option
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, topic: str | None, output: str) -> None:  # noqa: N802
    """List what is registered: a file that is there is in the list. Without a topic: the topics.

    \b
    insula explain
    insula explain levels
    insula explain settings -o yaml
    """
    if topic is None:
        show(explain.overview(), ("topic", "summary"), output)
        return
    chosen = explain.TOPICS[topic]
    show(chosen.rows(current(ctx)), chosen.columns, output)
