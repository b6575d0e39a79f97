"""insula kubeconfig: the administrator's way into the Kubernetes API."""

from __future__ import annotations

import click

from insula.cli.main import current, root_option
from insula.errors import Unavailable


@click.command("kubeconfig")
@root_option
@click.pass_context
def COMMAND(ctx: click.Context) -> None:  # noqa: N802 - the folder is the registry, and this is its constant
    """Print the administrator's kubeconfig.

    \b
    insula kubeconfig > ~/.kube/config
    KUBECONFIG=<(insula kubeconfig) kubectl get nodes
    """
    path = current(ctx).kubeconfig
    if not path.exists():
        raise Unavailable(f"there is no kubeconfig at {path} yet", hint="start Insula with: insula up --detach")
    click.echo(path.read_text(), nl=False)
