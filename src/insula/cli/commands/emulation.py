"""insula emulation: run containers of other processor architectures through qemu-user."""

from __future__ import annotations

import click

from insula.cli import daemon
from insula.cli.output import output_option, show
from insula.errors import Invalid, Unavailable
from insula.host import binfmt


@click.group("emulation")
def COMMAND() -> None:  # noqa: N802
    """Containers of other processor architectures: qemu-user, called by the kernel (binfmt_misc).

    \b
    apt-get install qemu-user-static
    insula emulation enable            every architecture that a qemu is installed for, until the machine restarts
    insula emulation enable arm64
    docker run --platform linux/arm64 alpine uname -m
    """


@COMMAND.command("list")
@output_option
def list_machines(output: str) -> None:
    """List the architectures, and what runs their programs here."""
    known, native = binfmt.rules(), binfmt.native()
    rows = []
    for machine in binfmt.MACHINES:
        is_native = machine.name in native
        why = "" if is_native else binfmt.missing(machine, known)
        rule = next((rule for rule in known if rule.takes(machine)), None)
        by = "this processor" if is_native else rule.interpreter if rule and not why else ""
        rows.append({"platform": f"linux/{machine.name}", "works": not why, "by": by, "why_not": why})
    show(rows, ["platform", "works", "by"], output)


@COMMAND.command("enable")
@click.argument("architectures", nargs=-1)
@click.option(
    "--interpreter", type=click.Path(exists=True, dir_okay=False), help="The qemu to use; for one architecture."
)
def enable(architectures: tuple[str, ...], interpreter: str | None) -> None:
    """Tell the kernel to hand programs of other architectures to qemu-user. It forgets when the machine restarts; the
    distribution's package does the same at each start."""
    daemon.need_root()
    if interpreter and len(architectures) != 1:
        raise Invalid("--interpreter goes with one architecture")
    for machine in _chosen(architectures):
        try:
            changed = binfmt.enable(machine, interpreter or binfmt.find_emulator(machine))
        except Unavailable:
            if architectures:
                raise
            continue
        click.echo(f"linux/{machine.name} {'works now' if changed else 'works already'}.")


@COMMAND.command("disable")
@click.argument("architectures", nargs=-1, required=True)
def disable(architectures: tuple[str, ...]) -> None:
    """Take such rules away again."""
    daemon.need_root()
    for machine in _chosen(architectures):
        gone = binfmt.disable(machine)
        click.echo(f"linux/{machine.name}: {'the rule is gone' if gone else 'there was no rule'}.")


def _chosen(architectures: tuple[str, ...]) -> list[binfmt.Machine]:
    foreign = {each.name: each for each in binfmt.MACHINES if each.name not in binfmt.native()}
    for name in architectures:
        if name not in foreign:
            raise Invalid(f"{name!r} is not one of {', '.join(foreign)}")
    return [foreign[name] for name in architectures or foreign]
