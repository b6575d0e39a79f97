"""insula down: stop Insula, or everything."""

from __future__ import annotations

import asyncio

import click

from insula.cli import daemon
from insula.cli.main import current, root_option
from insula.cli.paths import Paths
from insula.tasks import in_thread

GRACE_S = 2.0  # what a container gets to end by itself


@click.command("down")
@click.option("--all", "everything", is_flag=True, help="Stop every workload too, and leave nothing in the kernel.")
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, everything: bool) -> None:  # noqa: N802
    """Stop the daemon; containers, pods and machines go on running.

    With --all everything that runs is stopped: containers are asked to end and killed after two seconds, machines have their
    plug pulled. No process, mount, interface or rule is left. What is on disk is kept: images, volumes, stopped containers,
    the cluster's objects. The next `insula up` is as after a reboot: restart policies bring back what they cover.

    \b
    insula down
    insula down --all
    """
    paths = current(ctx)
    ran = daemon.stop(paths)
    if everything:
        asyncio.run(_destroy(paths))
        click.echo("Insula and everything that it ran are stopped.")
    else:
        click.echo("Insula is stopped; workloads go on." if ran else "Insula does not run.")


async def _destroy(paths: Paths) -> None:
    from insula.agent.podvolumes import end_lives
    from insula.cli import settings as settings_module
    from insula.cli.engines import open_engine

    if not paths.data.exists():
        return
    with daemon.locked(paths):
        engine = await open_engine(paths, settings_module.load(paths.config))
        try:
            await engine.recover()
            await engine.destroy(grace_s=GRACE_S)
        finally:
            await engine.close()
        await in_thread(end_lives, paths.data / "agent")
    for socket in (paths.docker_socket, paths.agent_socket):
        socket.unlink(missing_ok=True)
