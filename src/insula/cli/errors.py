"""The tree of faults as the command line says it: one sentence, what to do next, exit code 1; never a trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from insula.errors import HostFault, InsulaError


@contextmanager
def friendly() -> Iterator[None]:
    """Turn faults into sentences on standard error. INSULA_TRACE=1 shows the trace as well."""
    try:
        yield
    except InsulaError as fault:
        _fail(sentence(fault), fault)
    except PermissionError as fault:
        _fail(f"permission denied: {fault.filename or fault}. Insula's commands need root: try again with sudo", fault)
    except ConnectionRefusedError as fault:
        _fail("Insula does not answer here. Start it with: insula up --detach", fault)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except BaseExceptionGroup as group:
        faults = [fault for fault in group.exceptions if isinstance(fault, InsulaError)]
        if not faults:
            raise
        _fail("; ".join(sentence(fault) for fault in faults), group)


def sentence(fault: InsulaError) -> str:
    """A fault as one or two lines: the message, the hint, the command that failed."""
    lines = [str(fault)]
    if isinstance(fault, HostFault) and fault.command:
        lines.append(f"the command was: {fault.command}")
    return "\n".join(lines)


def _fail(text: str, fault: BaseException) -> None:
    if os.environ.get("INSULA_TRACE"):
        raise fault
    click.echo(f"insula: {text}", err=True)
    sys.exit(1)
