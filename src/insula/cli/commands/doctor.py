"""insula doctor: what this machine offers and lacks, and what is lost by it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from insula.cli import daemon
from insula.cli import settings as settings_module
from insula.cli.main import current, root_option
from insula.cli.output import dump, output_option
from insula.cli.paths import Paths
from insula.errors import Invalid

if TYPE_CHECKING:
    from insula.cli.doctor.finding import Finding, Subject

_COLORS = {"ok": "green", "lost": "yellow", "missing": "red", "unknown": "cyan"}


@click.command("doctor")
@output_option
@root_option
@click.pass_context
def COMMAND(ctx: click.Context, output: str) -> None:  # noqa: N802
    """Examine this machine: by trying, whether or not Insula runs. Takes two or three seconds and leaves nothing behind.

    Every line is ok, lost (Insula works, something else does not) or missing (Insula does not work without it). The exit
    code is 1 when something is missing.

    \b
    insula doctor
    insula doctor --output json
    """
    from insula.cli.doctor import examine
    from insula.cli.doctor.finding import is_fatal, summary

    findings = asyncio.run(examine(_subject(current(ctx))))
    if output != "table":
        dump([msgspec.to_builtins(finding) for finding in findings], output)
    else:
        for line in lines(findings, color=sys.stdout.isatty()):
            click.echo(line)
        click.echo()
        click.echo(summary(findings))
    ctx.exit(1 if is_fatal(findings) else 0)


def _subject(paths: Paths) -> Subject:
    from insula.cli.doctor.finding import Subject

    fault, settings = "", settings_module.Settings()
    try:
        settings = settings_module.load(paths.config)
    except (Invalid, OSError) as wrong:
        fault = str(wrong)
    running = daemon.serving(paths)
    return Subject(paths=paths, settings=settings, fault=fault, running=running, root=os.geteuid() == 0)


def lines(findings: Sequence[Finding], *, color: bool = False) -> list[str]:
    """A line per finding, and an indented one for what is lost and what to do."""
    names = max(len(finding.name) for finding in findings)
    areas = max(len(finding.area) for finding in findings)
    found = []
    for finding in findings:
        state = f"{finding.state:<7}"
        shown = click.style(state, fg=_COLORS[finding.state]) if color else state
        found.append(f"{shown}  {finding.area:<{areas}}  {finding.name:<{names}}  {finding.found}")
        why = "; ".join(
            part
            for part in (finding.lost and f"lost: {finding.lost}", finding.advice and f"to do: {finding.advice}")
            if part
        )
        if why and finding.state != "ok":
            found.append(" " * (areas + names + 13) + f"→ {why}")
    return found
