"""``qtrack compare``: strategies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.files import contents_of, plot_option, write_file
from qtrack.cli.options import debug, tracking_uri
from qtrack.cli.output import Output, output_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qtrack.ledger import Ledger, Strategy
    from qtrack.report.view import View


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--experiment", metavar="NAME", help="The latest campaign of this experiment (of a task).")
@click.option("--campaign", metavar="ID", help="The strategies of one execution of a pipeline.")
@click.option("--only-diff", is_flag=True, help="Show the fields in which their recipes differ.")
@click.option(
    "--by", type=click.Choice(["class"]), help="Show the classes that lost and gained against float."
)
@click.option(
    "--flips", nargs=2, metavar="RUN RUN", help="Show the samples that differ between two, one by one."
)
@click.option(
    "--filter",
    "conditions",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only those with this value: a field as in --json, or a tag of the run.",
)
@click.option("--sort", "by_field", metavar="FIELD[:desc]", help="Order them by a field as in --json.")
@plot_option
@output_options
@tracking_uri
@debug
def compare(
    runs: tuple[str, ...],
    experiment: str | None,
    campaign: str | None,
    only_diff: bool,
    by: str | None,
    flips: tuple[str, str] | None,
    conditions: tuple[str, ...],
    by_field: str | None,
    plot: Path | None,
    as_json: bool,
    as_csv: bool,
    as_markdown: bool,
    html: Path | None,
    tracking_uri: str | None,
) -> None:
    """Put strategies side by side; without arguments those of the latest campaign.

    A * marks those that nothing else here beats in metric, size and latency at once. RUN is a run id or a
    unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign.

    \b
    Examples:
      qtrack compare
      qtrack compare ptq qat --only-diff
      qtrack compare --by class
      qtrack compare --flips ptq qat
      qtrack compare --filter qtrack.engine=x86 --sort size_bytes
      qtrack compare --experiment digits --json
      qtrack compare --markdown > comment.md
      qtrack compare --plot strategies.png
    """
    from qtrack.ledger import Ledger

    output = Output(as_json, as_csv, as_markdown, html)
    output.check()
    _check_view(
        only_diff, by, flips, (*runs, *conditions, *filter(None, (experiment, campaign, by_field, plot)))
    )
    contents = contents_of(plot) if plot else None
    ledger = Ledger.open(tracking_uri)
    if flips:
        output.write(_flips(ledger, flips))
        return
    found = _chosen(
        ledger, ledger.strategies(runs, experiment=experiment, campaign=campaign), conditions, by_field
    )
    view = _view(ledger, found, only_diff, by, output)
    if plot and contents:
        write_file(plot, contents(_figure(found), "strategies", view.table))
    output.write(view)
    if plot:
        click.echo(f"wrote {plot}", err=True)


def _check_view(
    only_diff: bool, by: str | None, flips: tuple[str, str] | None, others: Sequence[object]
) -> None:
    from qtrack.errors import InputError

    if sum(map(bool, (only_diff, by, flips))) > 1:
        raise InputError("choose one of --only-diff, --by and --flips")
    if flips and others:
        raise InputError("--flips names the two runs itself: leave other runs, filters and plots out")


def _chosen(
    ledger: Ledger, found: list[Strategy], conditions: Sequence[str], by_field: str | None
) -> list[Strategy]:
    from qtrack.errors import RunNotFound
    from qtrack.report.choice import chosen, ordered

    kept = chosen(found, conditions, lambda: ledger.tags(found))
    if not kept:
        raise RunNotFound(f"none of {len(found)} strategies has {' and '.join(conditions)}")
    return ordered(kept, by_field) if by_field else kept


def _view(ledger: Ledger, found: Sequence[Strategy], only_diff: bool, by: str | None, output: Output) -> View:
    from qtrack.report.classes import classes_view
    from qtrack.report.comparison import comparison_view
    from qtrack.report.recipes import recipes_view

    finished = [strategy for strategy in found if strategy.status == "FINISHED"]
    if only_diff:
        runs = {str(strategy.recipe_digest): strategy.run_id for strategy in finished}
        return recipes_view(finished, {digest: ledger.recipe(run) for digest, run in runs.items()})
    if by:
        return classes_view(finished, [ledger.samples(s.run_id) for s in finished], output.width)
    view = comparison_view(found, output.width)
    return view._replace(svg=_svg(found)) if output.html else view


def _flips(ledger: Ledger, runs: tuple[str, str]) -> View:
    from qtrack.difference import difference
    from qtrack.report.flips import flips_view

    first, second = map(ledger.recorded, runs)
    return flips_view(difference(first, second, ()))


def _svg(strategies: Sequence[Strategy]) -> str:
    from qtrack.report.figures import strategies_figure
    from qtrack.report.page import drawing

    figure = strategies_figure(strategies)
    return "" if figure is None else drawing(figure)


def _figure(strategies: Sequence[Strategy]) -> Figure:
    from qtrack.errors import InputError
    from qtrack.report.figures import strategies_figure

    figure = strategies_figure(strategies)
    if figure is None:
        raise InputError("nothing to draw: no strategy has finished")
    return figure
