"""What commands print: a table for people; JSON or YAML, complete and stable, for programs."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

output_option = click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print.",
)


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], how: str) -> None:
    """Print rows; a table shows only `columns`, whose headings are their names in capitals."""
    if how == "table":
        print_table(rows, columns)
    else:
        dump(list(rows), how)


def dump(value: Any, how: str) -> None:
    """Print any value as JSON or YAML."""
    plain = msgspec.to_builtins(value)
    if how == "yaml":
        import yaml

        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode() + "\n")


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print a borderless table as kubectl and docker do; cut to the terminal's width only on a terminal."""
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.upper().replace("_", " "), overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    text, on_terminal = io.StringIO(), sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else 4000
    Console(file=text, width=width, highlight=False, markup=False, color_system=None).print(table)
    for line in text.getvalue().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value) or "-"
    return str(value)
