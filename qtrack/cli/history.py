"""``qtrack history``: a strategy's metric over time, and what changed where it moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.files import contents_of, plot_option, write_file
from qtrack.cli.options import as_json, debug, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qtrack.history import Line


@click.command()
@click.option(
    "--experiment", metavar="NAME", help="Of this experiment (task); default: the latest campaign's."
)
@click.option("--stage", metavar="STAGE", help="Of the stages with this name alone.")
@click.option(
    "--last",
    metavar="N",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="No more than the last N stages.",
)
@plot_option
@as_json
@tracking_uri
@debug
def history(
    experiment: str | None,
    stage: str | None,
    last: int,
    plot: Path | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Show each strategy's metric over time, and what changed where it moved.

    Each finished stage is compared with the one before it of the same name and pipeline, on the same samples
    where both were validated on the same data. Below a significant change stand its interval and the
    ingredients that are not what they were: recipe, data, weights, code, environment. A stage that a campaign
    did not execute again has its place at that campaign's time as well.

    \b
    Examples:
      qtrack history --experiment digits
      qtrack history --experiment digits --stage qat --json
      qtrack history --plot history.svg
    """
    from qtrack import api
    from qtrack.cli import render
    from qtrack.report.history import history_view

    contents = contents_of(plot) if plot else None
    lines = api.history(experiment, stage, last=last, tracking_uri=tracking_uri)
    view = history_view(lines)
    if plot and contents:
        write_file(plot, contents(_figure(lines), "history", view.table))
    if as_json:
        render.print_json(view.records)
    else:
        render.show(view.table)
    if sum(len(line.points) for line in lines) == last:
        render.remark(f"these are the last {last:,} stages; --last N shows more or fewer")
    if plot:
        render.remark(f"wrote {plot}")


def _figure(lines: Sequence[Line]) -> Figure:
    from qtrack.report.history_figure import history_figure

    figure = history_figure(lines, f"history of {lines[0].points[0].strategy.experiment}")
    assert figure is not None  # there is a line
    return figure
