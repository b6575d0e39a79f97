"""The tree of faults as the command line says it: one sentence, what to do next, exit code 1; never a trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from insula.errors import HostFault, InsulaError

TRACE = "INSULA_TRACE"


@contextmanager
def friendly() -> Iterator[None]:
    """Turn faults into sentences on standard error. INSULA_TRACE=1 shows the trace as well."""
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as fault:
        if os.environ.get(TRACE):
            raise
        click.echo(f"insula: {sentence(fault)}", err=True)
        sys.exit(1)


def sentence(fault: BaseException) -> str:
    """A fault as one or two lines: the message, the hint, the command that failed."""
    if isinstance(fault, InsulaError):
        lines = [str(fault)]
        if isinstance(fault, HostFault) and fault.command:
            lines.append(f"the command was: {fault.command}")
        return "\n".join(lines)
    if isinstance(fault, BaseExceptionGroup):
        return "; ".join(sentence(member) for member in fault.exceptions)
    if isinstance(fault, PermissionError):
        return f"permission denied: {fault.filename or fault}. Insula's commands need root: try again with sudo"
    if isinstance(fault, OSError):
        where = f"{fault.filename}: " if fault.filename else ""
        return f"{where}{fault.strerror or fault}"
    if isinstance(fault, KeyboardInterrupt):
        return "interrupted"
    return f"a fault that nobody foresaw, {type(fault).__name__}: {fault} ({TRACE}=1 shows where)"
