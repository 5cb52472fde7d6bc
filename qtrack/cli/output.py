"""The formats in which a command shows what it found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from qtrack.cli.options import as_json

if TYPE_CHECKING:
    from qtrack.report.view import View


class Output(NamedTuple):
    """Which format was asked for; none is a table for people."""

    as_json: bool
    as_csv: bool
    as_markdown: bool
    html: Path | None

    def check(self) -> None:
        """Raise InputError where several were asked for."""
        from qtrack.errors import InputError

        if sum(map(bool, self)) > 1:
            raise InputError("choose one of --json, --csv, --markdown and --html")

    def write(self, view: View) -> None:
        """On stdout, or into the file; what belongs below a table goes to stderr."""
        from qtrack.cli import render
        from qtrack.report.formats import csv_text, markdown_text

        if self.html is not None:
            self._write_page(self.html, view)
        elif self.as_json:
            render.print_json(view.records)
        elif self.as_csv:
            click.echo(csv_text(view), nl=False)
        elif self.as_markdown:
            click.echo(markdown_text(view), nl=False)
        else:
            render.show(view.table)

    def _write_page(self, path: Path, view: View) -> None:
        from qtrack.cli import render
        from qtrack.cli.files import write_file
        from qtrack.report.page import page

        write_file(path, page(view.title, view.table, view.svg, view.verdict).encode())
        render.remark(f"wrote {path}")

    @property
    def width(self) -> int | None:
        """Columns that a table has to fit."""
        from qtrack.cli import render

        return None if any(self) else render.terminal_width()


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json, --csv, --markdown and --html."""
    options = (
        as_json,
        click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values."),
        click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown, for a pull request."),
        click.option(
            "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page that loads nothing."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
