"""insula install: let systemd run Insula from the machine's start on."""

from __future__ import annotations

import click

from insula.cli import daemon, unit
from insula.cli import settings as settings_module
from insula.cli.main import current, root_option
from insula.cli.paths import Paths


@click.command("install")
@click.option("--print", "only_print", is_flag=True, help="Print the unit and do nothing.")
@click.option("--uninstall", is_flag=True, help="Take the unit away again; data, workloads and the group stay.")
@click.option("--now", is_flag=True, help="Start it as well.")
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, only_print: bool, uninstall: bool, now: bool) -> None:  # noqa: N802
    """Write a systemd unit, make the group that may use the Docker socket, and enable the unit.

    \b
    insula install --now
    insula install --print
    insula install --uninstall
    """
    paths = current(ctx)
    if only_print:
        click.echo(unit.text(paths, unit.command()), nl=False)
        return
    daemon.need_root()
    if uninstall:
        _uninstall(paths)
    else:
        _install(paths, now)


def _install(paths: Paths, now: bool) -> None:
    group = settings_module.load(paths.config).socket_group
    if unit.add_group(group):
        click.echo(f"The group {group} is made; its members may use Docker: usermod -aG {group} USER")
    changed = unit.write(paths)
    click.echo(f"{paths.unit} is {'written' if changed else 'there already'}.")
    name = paths.unit.name
    if not unit.runs_systemd():
        click.echo(f"systemd does not run here; where it does: systemctl enable --now {name}")
        return
    daemon.systemctl("daemon-reload")
    daemon.systemctl("enable", name)
    running = daemon.serving(paths)
    if now and (running is None or not running.unit):
        daemon.stop(paths)  # one that was started by hand hands over; workloads go on
        daemon.systemctl("start", name)
        click.echo(f"{name} is enabled and runs.")
    else:
        click.echo(
            f"{name} is enabled" + (" and runs." if running and running.unit else f"; start it: systemctl start {name}")
        )


def _uninstall(paths: Paths) -> None:
    name = paths.unit.name
    if not paths.unit.exists():
        click.echo(f"{paths.unit} is not there.")
        return
    if unit.runs_systemd():
        daemon.systemctl("disable", "--now", name)
    paths.unit.unlink()
    if unit.runs_systemd():
        daemon.systemctl("daemon-reload")
    click.echo(
        f"{paths.unit} is removed; workloads go on. To end them as well: insula down --all{daemon.root_flag(paths)}"
    )
